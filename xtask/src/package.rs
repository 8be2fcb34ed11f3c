//! The Debian package, and an archive with a static program for other systems.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

/// What `cargo xtask package` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A program that needs no library, in an archive with its pages and units
    #[arg(long = "static")]
    linked: bool,
    /// Of the program that `cargo build` has made, for tests
    #[arg(long, conflicts_with = "linked")]
    dev: bool,
    /// The version to give the package; that of the program if not given
    #[arg(long, value_name = "VERSION")]
    package_version: Option<String>,
    /// Where the result is put; target/package if not given
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds the program, makes pages and completions with it, and puts all into one file.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let program = build(arguments)?;
    let stage = run::workspace()?.join("target/package");
    make_texts(&program, &stage)?;
    let output = arguments.output.clone().unwrap_or_else(|| stage.clone());
    let made = if arguments.linked {
        archive(&program, &stage, &output)?
    } else {
        debian(arguments, &output)?
    };
    println!("{}", made.display());
    Ok(())
}

/// Builds `rlvs`, unless it is there, and returns where it is.
fn build(arguments: &Arguments) -> Result<PathBuf> {
    let target = run::target()?;
    if arguments.dev {
        return Ok(target.join("debug/rlvs"));
    }
    let mut cargo = run::cargo()?;
    cargo.args(["build", "--quiet", "--package", "rlvs", "--release"]);
    let mut folder = target.join("release");
    if arguments.linked {
        // A target of its own: what the build runs itself cannot be linked like this.
        cargo.args(["--target", TRIPLE]).env("RUSTFLAGS", "-C target-feature=+crt-static");
        folder = target.join(TRIPLE).join("release");
    }
    run::run(&mut cargo)?;
    Ok(folder.join("rlvs"))
}

fn make_texts(program: &Path, stage: &Path) -> Result<()> {
    let (pages, completions) = (stage.join("man"), stage.join("completions"));
    for folder in [&pages, &completions] {
        // Pages of commands that are no more must not be packed.
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    run::run(Command::new(program).args(["man", "--into"]).arg(&pages))?;
    let files = [
        ("bash", "rlvs", "rlvs.bash"),
        ("zsh", "rlvs", "_rlvs"),
        ("fish", "rlvs", "rlvs.fish"),
        ("bash", "ipvsadm", "ipvsadm.bash"),
        ("bash", "keepalived", "keepalived.bash"),
    ];
    for (shell, of, name) in files {
        let file = completions.join(name);
        let out = File::create(&file).with_context(|| format!("writing {}", file.display()))?;
        run::run(Command::new(program).args(["completions", shell, of]).stdout(out))?;
    }
    Ok(())
}

fn debian(arguments: &Arguments, output: &Path) -> Result<PathBuf> {
    let tool = match run::find_on_path("cargo-deb") {
        Some(tool) => tool,
        None => run::cache()?.join("tools/bin/cargo-deb"),
    };
    ensure!(tool.is_file(), "cargo-deb is not there: `scripts/cargo-tool cargo-deb` installs it");
    let version = arguments.package_version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    let file = output.join(format!("rlvs_{version}_amd64.deb"));
    let mut deb = Command::new(tool);
    deb.current_dir(run::workspace()?).args(["--quiet", "--package", "rlvs", "--no-build"]);
    deb.args(["--deb-version", version]).arg("--output").arg(&file);
    if arguments.dev {
        deb.args(["--profile", "dev", "--compress-type", "xz", "--fast"]);
    }
    run::run(&mut deb)?;
    Ok(file)
}

fn archive(program: &Path, stage: &Path, output: &Path) -> Result<PathBuf> {
    let name = format!("rlvs-{}-x86_64-static", env!("CARGO_PKG_VERSION"));
    let folder = stage.join(&name);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut copy = Command::new("cp");
    copy.arg("-rt").arg(&folder).arg(program).args([stage.join("man"), stage.join("completions")]);
    for part in ["packaging/systemd", "packaging/ipvsadm-service", "packaging/default", "README.md"]
    {
        copy.arg(run::workspace()?.join(part));
    }
    run::run(&mut copy)?;
    run::run(Command::new("strip").arg(folder.join("rlvs")))?;
    let file = output.join(format!("{name}.tar.gz"));
    run::run(Command::new("tar").arg("-C").arg(stage).arg("-czf").arg(&file).arg(&name))?;
    Ok(file)
}
