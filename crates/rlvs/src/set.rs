//! `rlvs set`: settings of the data plane by the names of `net.ipv4.vs`.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rlvs_linux::dataplane::parameters::{ALL, Parameter};

/// Arguments of `rlvs set`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The setting; all are shown if none is named
    name: Option<String>,
    /// Its new value; it is shown if none is given
    value: Option<u32>,
}

/// Runs `rlvs set`.
///
/// # Errors
/// No such setting, a value out of range, nothing attached, or a missing capability.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match (&arguments.name, arguments.value) {
        (None, _) => {
            for parameter in &ALL {
                let unheeded =
                    parameter.unheeded().map_or(String::new(), |why| format!(" ({why})"));
                let (name, about) = (parameter.name, parameter.about);
                println!("{name} = {}  # {about}{unheeded}", parameter.read()?);
            }
        }
        (Some(name), None) => println!("{name} = {}", named(name)?.read()?),
        (Some(name), Some(value)) => {
            let parameter = named(name)?;
            let max = parameter.max;
            ensure!(value <= max, "{name} takes 0 to {max}, not {value}");
            match parameter.unheeded() {
                Some(why) => ensure!(
                    value == parameter.default,
                    "{name} is {why}: it stays {}",
                    parameter.default
                ),
                None => parameter.write(value)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn named(name: &str) -> Result<&'static Parameter> {
    Parameter::named(name).with_context(|| {
        let names = ALL.map(|parameter| parameter.name).join(", ");
        format!("there is no setting {name}; there are: {names}")
    })
}
