//! Everything that continuous integration demands.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{ebpf, run, test};

/// What `cargo xtask ci` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the checks only, not the tests
    #[arg(long)]
    checks: bool,
}

/// Runs the checks, and then the tests on every object that has to be tested.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    run::stage("format", check_format)?;
    run::stage("clippy", || {
        let mut clippy = run::cargo()?;
        clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        run::run(&mut clippy)
    })?;
    run::stage("documentation", || {
        let mut doc = run::cargo()?;
        run::run(doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    let rebuilt = run::stage("eBPF objects", ebpf::check)?;
    run::stage("dependencies", check_dependencies)?;
    if arguments.checks {
        return Ok(());
    }
    test::run(&test::Arguments::default())?;
    if let Some(objects) = rebuilt {
        let mut again = run::cargo()?;
        again.args(["xtask", "test"]).env("RLVS_BPF_OBJECT_DIR", objects);
        run::stage("tests of the rebuilt eBPF objects", || run::run(&mut again))?;
    }
    Ok(())
}

fn check_format() -> Result<()> {
    run::run(run::cargo()?.args(["fmt", "--all", "--check"]))?;
    let mut outside = run::cargo()?;
    run::run(outside.args(["fmt", "--check", "--manifest-path", "crates/rlvs-ebpf/Cargo.toml"]))
}

fn check_dependencies() -> Result<()> {
    let tool = match run::find_on_path("cargo-deny") {
        Some(tool) => tool,
        None => run::cache()?.join("tools/bin/cargo-deny"),
    };
    ensure!(tool.is_file(), "cargo-deny is not there: `scripts/cargo-tool cargo-deny` installs it");
    let workspace = run::workspace()?;
    for manifest in ["Cargo.toml", "crates/rlvs-ebpf/Cargo.toml"] {
        let mut deny = Command::new(&tool);
        deny.arg("--manifest-path").arg(workspace.join(manifest));
        deny.arg("--config").arg(workspace.join("deny.toml"));
        run::run(deny.args(["check", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}
