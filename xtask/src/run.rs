//! Running other programs, and saying what was run and how long it took.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// Arguments that a task hands on to the program that it runs.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Passed {
    /// What the program itself takes; `--help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}

/// The folder of the workspace.
pub(crate) fn workspace() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .context("not run by cargo: use `cargo xtask`, which sets CARGO_MANIFEST_DIR")?;
    let folder = Path::new(&package).parent().context("xtask has no parent folder")?;
    folder.canonicalize().with_context(|| format!("finding {}", folder.display()))
}

/// The folder into which cargo builds the workspace.
pub(crate) fn target() -> Result<PathBuf> {
    Ok(match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace()?.join(folder),
        None => workspace()?.join("target"),
    })
}

/// The folder below the user's cache that belongs to this project.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(folder).join("rlvs"));
    }
    let home = env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(home.join(".cache/rlvs"))
}

/// The cargo that runs us, started in the workspace's folder.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    Ok(command)
}

/// Whether a program of this name is on the search path.
pub(crate) fn is_on_path(name: &str) -> bool {
    find_on_path(name).is_some()
}

/// Where the search path has a program of this name.
pub(crate) fn find_on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|f| f.join(name)).find(|file| file.is_file())
}

/// The search path with one more folder in front.
pub(crate) fn path_with(folder: &Path) -> Result<std::ffi::OsString> {
    let old = env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(folder.to_owned()).chain(env::split_paths(&old));
    env::join_paths(all).context("adding a folder to PATH")
}

/// The command as a person would type it, without its environment.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs the command and demands that it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = shown(command);
    let status = command.status().with_context(|| format!("starting `{text}`"))?;
    ensure!(status.success(), "`{text}`: {status}");
    Ok(())
}

/// Runs the command and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let text = shown(command);
    let output = command.output().with_context(|| format!("starting `{text}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{text}`: {}: {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{text}` printed no UTF-8"))
}

/// Runs one stage of a longer task, and prints its name before and its time after.
pub(crate) fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("== {name}");
    let start = Instant::now();
    let result = work();
    let verdict = if result.is_ok() { "done" } else { "failed" };
    eprintln!("== {name}: {verdict} in {:.1} s", start.elapsed().as_secs_f64());
    result.with_context(|| name.to_owned())
}
