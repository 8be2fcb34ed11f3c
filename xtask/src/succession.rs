//! Another version of the whole, whose records are laid out otherwise, for tests of what an upgrade carries.
//!
//! It is this version with a field more in front of some records, in a copy of the sources: programs for
//! the kernel, the command, the Debian package. The tests `succession`, `daemon` and `package` are then run
//! with it as the version that takes over, and as the one before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

/// Where the records stand.
const LAYOUT: &str = "crates/rlvs-datapath/src/abi.rs";
/// Records that get a field more.
const RECORDS: [&str; 3] = ["Service", "Destination", "Settings"];
const FIELD: &str = "    /// The other version's.\n    pub other: u64,\n";
/// The tests that it concerns.
const TESTS: &str = "binary(succession) | binary(package) | test(another_layout)";
/// What says where the other version's program and package are.
const PROGRAM: &str = "RLVS_OTHER_PROGRAM";
const PACKAGE: &str = "RLVS_OTHER_PACKAGE";

/// Builds the other version and runs the tests that concern it.
pub(crate) fn run() -> Result<()> {
    let (workspace, target) = (run::workspace()?, run::target()?);
    let folder = target.join("succession");
    let sources = folder.join("source");
    copy(&workspace, &sources)?;
    change(&sources.join(LAYOUT))?;
    let own = std::env::current_exe().context("finding this program")?;
    let of_other = |command: &mut Command| {
        command.current_dir(&sources).env("CARGO_MANIFEST_DIR", sources.join("xtask"));
        // Cargo would take what is built of two workspaces for one another.
        command.env("CARGO_TARGET_DIR", folder.join("target"));
    };
    let mut objects = Command::new(&own);
    of_other(objects.arg("ebpf"));
    run::stage("the other programs", || run::run(&mut objects))?;
    let mut build = run::cargo()?;
    of_other(build.args(["build", "--package", "rlvs"]));
    run::stage("the other command", || run::run(&mut build))?;
    let program = folder.join("rlvs");
    fs::copy(folder.join("target/debug/rlvs"), &program).context("keeping the other command")?;
    let mut package = Command::new(&own);
    of_other(
        package.args(["package", "--dev", "--package-version", "0.0.3", "--output"]).arg(&folder),
    );
    run::stage("the other package", || run::run(&mut package))?;

    // The package's test packs the command and runs this program.
    run::stage("build", || {
        run::run(run::cargo()?.args(["build", "--package", "rlvs", "--package", "xtask"]))
    })?;
    let mut tests = run::cargo()?;
    tests.args(["nextest", "run", "--package", "e2e", "--no-fail-fast", "-E", TESTS]);
    tests.env(PROGRAM, &program).env(PACKAGE, folder.join("rlvs_0.0.3_amd64.deb"));
    run::stage("tests", || run::run(&mut tests))
}

/// Copies the sources, without what is built of them.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in from.read_dir().with_context(|| format!("reading {}", from.display()))? {
        let entry = entry.with_context(|| format!("reading {}", from.display()))?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        if entry.path().is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
    }
    Ok(())
}

/// Lays records out otherwise.
fn change(file: &PathBuf) -> Result<()> {
    let mut text =
        fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let mut replace = |from: &str, to: &str| {
        ensure!(text.matches(from).count() == 1, "{}: `{from}` is not there once", file.display());
        text = text.replace(from, to);
        Ok(())
    };
    for record in RECORDS {
        let begin = format!("pub struct {record} {{\n");
        replace(&begin, &format!("{begin}{FIELD}"))?;
        // Sizes are asserted.
        let size = format!("size_of::<{record}>() == ");
        replace(&size, &format!("{size}8 + "))?;
    }
    replace("pub const LAYOUT: u32 = ", "pub const LAYOUT: u32 = 1000 + ")?;
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
