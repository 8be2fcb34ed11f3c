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
            takes(parameter, value)?;
            if parameter.unheeded().is_none() {
                parameter.write(value)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says why a setting does not take a value, if so.
pub(crate) fn takes(parameter: &Parameter, value: u32) -> Result<()> {
    let Parameter { name, max, default, .. } = parameter;
    ensure!(value <= *max, "{name} takes 0 to {max}, not {value}");
    if let Some(unheeded) = parameter.unheeded() {
        let why = parameter.why_meaningless().map_or(String::new(), |why| format!(": {why}"));
        ensure!(value == *default, "{name} is {unheeded}, and stays {default}{why}");
    }
    Ok(())
}

/// Returns the setting of a name.
pub(crate) fn named(name: &str) -> Result<&'static Parameter> {
    Parameter::named(name).with_context(|| {
        let names = ALL.map(|parameter| parameter.name).join(", ");
        format!("there is no setting {name}; there are: {names}")
    })
}
