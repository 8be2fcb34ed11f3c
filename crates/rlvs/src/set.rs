//! `rlvs set`: settings of the data plane by the names of `net.ipv4.vs`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rlvs_linux::dataplane::parameters::{ALL, Parameter};
use serde_json::{Value, json};

use crate::json::{self, Json};

/// Arguments of `rlvs set`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The setting; all are shown if none is named
    name: Option<String>,
    /// Its new value; it is shown if none is given
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    #[command(flatten)]
    json: Json,
}

/// Runs `rlvs set`.
///
/// # Errors
/// No such setting, a value out of range, nothing attached, or a missing capability.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let (Some(name), Some(value)) = (&arguments.name, &arguments.value) {
        let parameter = named(name)?;
        if let Some(value) = takes(parameter, value)? {
            parameter.write(value)?;
        }
        if !arguments.json.json {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if arguments.json.json {
        let chosen: Vec<&Parameter> = match &arguments.name {
            None => ALL.iter().collect(),
            Some(name) => vec![named(name)?],
        };
        let settings: Result<Vec<Value>> = chosen.into_iter().map(as_json).collect();
        json::print(json!({ "settings": settings? }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let out = &mut io::stdout().lock();
    match &arguments.name {
        None => {
            for parameter in &ALL {
                let unheeded =
                    parameter.unheeded().map_or(String::new(), |why| format!(" ({why})"));
                let (name, about) = (parameter.name, parameter.about);
                let value = parameter.shown(parameter.read()?);
                writeln!(out, "{name} = {value}  # {about}{unheeded}")?;
            }
        }
        Some(name) => {
            let parameter = named(name)?;
            writeln!(out, "{name} = {}", parameter.shown(parameter.read()?))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(parameter: &Parameter) -> Result<Value> {
    let value = parameter.shown(parameter.read()?);
    Ok(json!({
        "name": parameter.name, "value": value, "default": parameter.shown(parameter.default),
        "about": parameter.about, "unheeded": parameter.unheeded(),
    }))
}

/// Returns the number that a word means for a setting, `None` if there is nothing to do, or says why the
/// setting does not take it.
pub(crate) fn takes(parameter: &Parameter, word: &str) -> Result<Option<u32>> {
    let Parameter { name, max, default, .. } = parameter;
    if let Some(unheeded) = parameter.unheeded() {
        let default = parameter.shown(*default);
        let why = parameter.why_meaningless().map_or(String::new(), |why| format!(": {why}"));
        let stays = if default.is_empty() { "empty" } else { &default };
        ensure!(word == default, "{name} is {unheeded}, and stays {stays}{why}");
        return Ok(None);
    }
    let value = word.parse().ok().filter(|value| value <= max);
    Ok(Some(value.with_context(|| format!("{name} takes 0 to {max}, not {word}"))?))
}

/// Returns the setting of a name.
pub(crate) fn named(name: &str) -> Result<&'static Parameter> {
    Parameter::named(name).with_context(|| {
        let names = ALL.map(|parameter| parameter.name).join(", ");
        format!("there is no setting {name}; there are: {names}")
    })
}
