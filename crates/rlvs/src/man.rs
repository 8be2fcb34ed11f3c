//! `rlvs man` and `rlvs completions`: made of the tables that the commands themselves use.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{ipvsadm, keepalived};

/// Arguments of `rlvs man`.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Arguments {
    /// The page, such as ipvsadm or keepalived.conf; a wrong name lists all
    page: Option<String>,
    /// Write all pages into this folder instead
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

/// Arguments of `rlvs completions`.
#[derive(Args, Debug)]
pub struct CompletionArguments {
    /// The shell whose completions are printed
    shell: Shell,
    /// For which command: rlvs, ipvsadm or keepalived
    #[arg(default_value = "rlvs", value_parser = ["rlvs", "ipvsadm", "keepalived"])]
    program: String,
}

/// A manual page.
struct Page {
    name: String,
    section: u8,
    text: Vec<u8>,
}

/// Runs `rlvs man`; `rlvs` is the program's own command line.
///
/// # Errors
/// There is no such page, or it cannot be written.
pub fn run(arguments: &Arguments, rlvs: Command) -> Result<ExitCode> {
    let pages = pages(rlvs)?;
    if let Some(folder) = &arguments.into {
        write_into(folder, &pages)?;
        return Ok(ExitCode::SUCCESS);
    }
    let asked = arguments.page.as_deref().unwrap_or_default();
    let Some(page) = pages.iter().find(|page| page.name == asked) else {
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        bail!("there is no page {asked}; there are {}", names.join(", "));
    };
    io::stdout().write_all(&page.text)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `rlvs completions`; `rlvs` is the program's own command line.
///
/// # Errors
/// They cannot be written.
pub fn run_completions(arguments: &CompletionArguments, rlvs: Command) -> Result<ExitCode> {
    let mut command = match arguments.program.as_str() {
        "ipvsadm" => ipvsadm::command(),
        "keepalived" => keepalived::command(),
        _ => rlvs,
    };
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, &arguments.program, &mut text);
    io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn pages(rlvs: Command) -> Result<Vec<Page>> {
    let page = |name: &str, section, text: String| Page {
        name: name.to_owned(),
        section,
        text: text.into_bytes(),
    };
    let mut pages = vec![
        page("ipvsadm", 8, ipvsadm::man::page()),
        page("ipvsadm-save", 8, ipvsadm::man::save_page()),
        page("ipvsadm-restore", 8, ipvsadm::man::restore_page()),
        page("keepalived.conf", 5, rlvs_conf::grammar::manual(env!("CARGO_PKG_VERSION"))),
        from_command(keepalived::command(), 8)?,
    ];
    let subcommands: Vec<Command> =
        rlvs.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    pages.push(from_command(rlvs, 8)?);
    for command in subcommands {
        let name = format!("rlvs-{}", command.get_name());
        let shown = format!("rlvs {}", command.get_name());
        pages.push(from_command(command.name(name).bin_name(shown), 8)?);
    }
    Ok(pages)
}

fn from_command(command: Command, section: u8) -> Result<Page> {
    let command = command.disable_help_subcommand(true);
    let name = command.get_name().to_owned();
    let source = format!("rlvs {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).section(section.to_string()).source(source);
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok(Page { name, section, text })
}

fn write_into(folder: &Path, pages: &[Page]) -> Result<()> {
    let shown = || format!("writing manual pages into {}", folder.display());
    fs::create_dir_all(folder).with_context(shown)?;
    for Page { name, section, text } in pages {
        fs::write(folder.join(format!("{name}.{section}")), text).with_context(shown)?;
    }
    Ok(())
}
