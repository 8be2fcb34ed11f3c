//! The whole test suite, run as root, with one closing line.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::leftovers::Snapshot;
use crate::run;
use crate::tally::{Runner, Tally};

/// What `cargo xtask test` takes.
#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Run only the tests whose names contain one of these
    filter: Vec<String>,
}

/// Runs the tests and prints `N passed, N failed, N skipped` as the last line.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the tests make network namespaces, which takes root: \
         sudo -E env \"PATH=$PATH\" cargo xtask test"
    );
    let filter = &arguments.filter;
    let scripts = run::workspace()?.join("scripts");
    run::stage("test tools", || {
        run::run(&mut Command::new(scripts.join("test-tools")))?;
        run::run(Command::new(scripts.join("cargo-tool")).arg("cargo-deb"))?;
        run::run(&mut Command::new(scripts.join("debian-root")))
    })?;
    run::stage("build", || {
        run::run(run::cargo()?.args(["build", "--workspace", "--all-targets"]))
    })?;
    let before = Snapshot::take()?;
    let mut tally = Tally::default();
    let suite = run::stage("tests", || run_suite(filter, &mut tally));
    let left = before.compare_with_now();
    // Continuous integration looks for a line of this form.
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    if let Err(error) = &left {
        eprintln!("warning: {error}");
    }
    suite?;
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    ensure!(tally.passed > 0, "no test ran");
    // Elsewhere others may work on the machine at the same time.
    if env::var_os("CI").is_some() {
        left?;
    }
    Ok(())
}

fn run_suite(filter: &[String], tally: &mut Tally) -> Result<()> {
    if !run::is_on_path("cargo-nextest") {
        let mut suite = run::cargo()?;
        suite.args(["test", "--workspace", "--no-fail-fast", "--"]).args(filter);
        return run_counted(&mut suite, Runner::Cargo, tally);
    }
    let mut suite = run::cargo()?;
    suite.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass"]).args(filter);
    let done = run_counted(&mut suite, Runner::Nextest, tally);
    // nextest does not run the examples in the documentation.
    let mut examples = run::cargo()?;
    examples.args(["test", "--quiet", "--workspace", "--doc", "--"]).args(filter);
    let examples_done = run_counted(&mut examples, Runner::Cargo, tally);
    done.and(examples_done)
}

/// Runs the command, passes on what it prints, and adds up the tests it says it ran.
fn run_counted(command: &mut Command, runner: Runner, tally: &mut Tally) -> Result<()> {
    if env::var_os("RLVS_NO_SKIP").is_none() {
        // All that a test may need is installed: one that wants to skip has to fail.
        command.env("RLVS_NO_SKIP", "1");
    }
    let text = run::shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{text}`"))?;
    let output = child.stdout.take().context("no pipe from the tests")?;
    let errors = child.stderr.take().context("no pipe from the tests")?;
    let (from_output, from_errors) = thread::scope(|scope| {
        let output = scope.spawn(|| pass_on(output, io::stdout(), runner));
        let errors = pass_on(errors, io::stderr(), runner);
        (output.join(), errors)
    });
    *tally += from_errors?;
    *tally += from_output.map_err(|_| anyhow!("reading the tests' output panicked"))??;
    let status = child.wait().with_context(|| format!("waiting for `{text}`"))?;
    ensure!(status.success(), "`{text}`: {status}");
    Ok(())
}

/// Copies line by line, and counts the tests that closing lines tell of.
fn pass_on(from: impl Read, mut to: impl Write, runner: Runner) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context("reading what the tests print")? > 0 {
        to.write_all(&line).context("passing on what the tests print")?;
        tally.count(runner, &String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(tally)
}
