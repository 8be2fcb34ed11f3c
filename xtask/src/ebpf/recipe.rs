//! The recipe of the eBPF objects: one cargo command whose result is the same in every folder.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::toolchain::Toolchain;
use super::wrapper;
use crate::run;

const PACKAGE: &str = "crates/rlvs-ebpf";
pub(super) const TARGET: &str = "bpfel-unknown-none";

/// The flags of the compiler, but for the folders to forget.
///
/// `v3` has the 32-bit instructions and the atomic ones that kernel 6.1 knows. The kernel allows
/// misaligned access to packets on the machines we serve, and byte-wise loads would cost more.
pub(super) const RUSTC_FLAGS: [&str; 5] = [
    "-Cdebuginfo=2",
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "-Ctarget-cpu=v3",
    "-Ctarget-feature=+allows-misaligned-mem-access",
];

/// Settings of the user's that would change the bytes.
const FOREIGN_SETTINGS: [&str; 8] = [
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
    "CARGO_CFG_BPF_TARGET_ARCH",
];

/// Brings Cargo.lock up to date with Cargo.toml, by the rules of the compiler of the workspace.
pub(super) fn follow_manifest(workspace: &Path) -> Result<()> {
    run::run(run::cargo()?.current_dir(workspace.join(PACKAGE)).args(["fetch", "--quiet"]))
}

/// Builds the package and returns the folder with its programs.
pub(super) fn build(workspace: &Path, toolchain: &Toolchain) -> Result<PathBuf> {
    let package = workspace.join(PACKAGE);
    let target = package.join("target");
    let linker_folder = toolchain.linker.parent().context("bpf-linker is in no folder")?;
    // The names of the folders to forget are known once the packages are unpacked.
    run::run(run::cargo()?.current_dir(&package).args(["fetch", "--quiet", "--locked"]))?;
    let mut cargo = run::cargo()?;
    cargo.current_dir(&package);
    cargo.args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET]);
    cargo.arg("--target-dir").arg(&target);
    for name in FOREIGN_SETTINGS {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_RELEASE_") {
            cargo.env_remove(name);
        }
    }
    toolchain.provide(&mut cargo);
    cargo.env("PATH", run::path_with(linker_folder)?);
    // `core` is built by a stable compiler.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    // aya-ebpf would look at the machine it is built on, though no program of ours needs it.
    cargo.env("AYA_BPF_TARGET_ARCH", "x86_64");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", encoded_flags(workspace, toolchain)?);
    wrapper::install(&mut cargo)?;
    run::run(&mut cargo)?;
    Ok(target.join(TARGET).join("release"))
}

fn encoded_flags(workspace: &Path, toolchain: &Toolchain) -> Result<OsString> {
    let mut flags: Vec<OsString> = RUSTC_FLAGS.iter().map(OsString::from).collect();
    for (folder, name) in folders_to_forget(workspace, toolchain)? {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(folder);
        flag.push("=");
        flag.push(name);
        flags.push(flag);
    }
    // The separator that cargo defines for this variable.
    Ok(flags.join(OsStr::new("\x1f")))
}

/// The folders that may differ from machine to machine, each with the name that replaces it.
///
/// No file may have such a name: LLVM would copy the source lines it finds there into the object.
fn folders_to_forget(
    workspace: &Path,
    toolchain: &Toolchain,
) -> Result<Vec<(PathBuf, &'static str)>> {
    let core = toolchain.sysroot.join("lib/rustlib/src/rust");
    let real = core.canonicalize().with_context(|| format!("finding {}", core.display()))?;
    let mut folders = vec![
        (workspace.to_owned(), "/rlvs-source"),
        (real, "/rust-source"),
        (core, "/rust-source"),
    ];
    let registry = cargo_home()?.join("registry/src");
    // Not there if the user has told cargo to take packages from a folder.
    let Ok(entries) = registry.read_dir() else { return Ok(folders) };
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", registry.display()))?;
        folders.push((entry.path(), "/registry-source"));
    }
    Ok(folders)
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    Ok(env::home_dir().context("neither CARGO_HOME nor HOME is set")?.join(".cargo"))
}
