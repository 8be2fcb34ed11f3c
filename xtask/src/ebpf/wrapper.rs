//! This program in the place of rustc, while the eBPF objects are built.
//!
//! Cargo tells rustc a hash of each package's *folder* (`-C metadata`), and rustc puts it into the
//! name of every function. Here the crate's name takes its place, so that the same sources give
//! the same bytes in every folder. Two versions of one crate in the program would collide, and
//! rustc would say so.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// Tells this program that cargo called it as its compiler.
const MARK: &str = "RLVS_XTASK_IS_RUSTC_WRAPPER";

/// Makes the command, a cargo, call this program instead of rustc.
pub(super) fn install(cargo: &mut Command) -> Result<()> {
    let me = env::current_exe().context("finding this program's own file")?;
    cargo.env("RUSTC_WRAPPER", me).env(MARK, "1");
    Ok(())
}

/// Becomes rustc if cargo called this program in its place; otherwise does nothing.
pub(crate) fn run() -> Option<ExitCode> {
    env::var_os(MARK)?;
    let mut arguments = env::args_os().skip(1);
    let Some(rustc) = arguments.next() else {
        eprintln!("xtask: called as a compiler, but not told which");
        return Some(ExitCode::FAILURE);
    };
    let arguments = forget_folder(arguments.collect());
    let error = Command::new(&rustc).args(arguments).exec();
    eprintln!("xtask: starting {}: {error}", rustc.display());
    Some(ExitCode::FAILURE)
}

/// Replaces the hash of the package's folder, if the crate is for the BPF target.
fn forget_folder(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let value_of = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).map(OsString::as_os_str)
    };
    if value_of("--target") != Some(OsStr::new(super::recipe::TARGET)) {
        return arguments;
    }
    let Some(name) = value_of("--crate-name").map(OsStr::to_owned) else { return arguments };
    for argument in &mut arguments {
        if argument.as_encoded_bytes().starts_with(b"metadata=") {
            *argument = OsString::from("metadata=");
            argument.push(&name);
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, expected: &str) {
        let arguments = given.split(' ').map(OsString::from).collect();
        assert_eq!(forget_folder(arguments).join(OsStr::new(" ")), OsStr::new(expected));
    }

    #[test]
    fn crates_for_bpf_lose_the_hash_of_their_folder() {
        check(
            "--crate-name wire --target bpfel-unknown-none -C metadata=0123 -C extra-filename=-0",
            "--crate-name wire --target bpfel-unknown-none -C metadata=wire -C extra-filename=-0",
        );
    }

    #[test]
    fn crates_for_the_host_and_questions_stay_as_they_are() {
        check("--crate-name syn -C metadata=0123", "--crate-name syn -C metadata=0123");
        check("-vV", "-vV");
        check("--target bpfel-unknown-none --print cfg", "--target bpfel-unknown-none --print cfg");
    }
}
