//! The compiler that builds the eBPF objects: any rustc that has the sources of `core`.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

/// A rustc with the sources of `core`, and a bpf-linker.
pub(super) struct Toolchain {
    pub(super) rustc: PathBuf,
    /// Where rustc has its libraries, if the system does not find them by itself.
    pub(super) libraries: Option<PathBuf>,
    pub(super) linker: PathBuf,
    pub(super) sysroot: PathBuf,
}

/// What has to be the same for the bytes of an object to be the same.
#[derive(Debug, PartialEq)]
pub(super) struct Identity {
    pub(super) rustc: String,
    pub(super) rustc_llvm: String,
    pub(super) linker: String,
    pub(super) linker_llvm: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rustc, rustc_llvm, linker, linker_llvm } = self;
        write!(f, "{rustc}, LLVM {rustc_llvm}; {linker}, LLVM {linker_llvm}")
    }
}

impl Toolchain {
    /// Finds the toolchain: the folder named by RLVS_EBPF_TOOLCHAIN, else the active toolchain if
    /// it has rust-src, else the folder that scripts/ebpf-toolchain fills.
    pub(super) fn find() -> Result<Self> {
        if let Some(folder) = env::var_os("RLVS_EBPF_TOOLCHAIN") {
            return Self::in_folder(Path::new(&folder));
        }
        let rustc = PathBuf::from(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let sysroot = sysroot(&mut Command::new(&rustc))?;
        if has_core(&sysroot) {
            let linker = run::find_on_path("bpf-linker").context(
                "rust-src is there, but bpf-linker is not on PATH: `cargo install bpf-linker`, or \
                 run scripts/ebpf-toolchain and set RLVS_EBPF_TOOLCHAIN to the folder it prints",
            )?;
            return Ok(Self { rustc, libraries: None, linker, sysroot });
        }
        Self::in_folder(&run::cache()?.join("ebpf-toolchain"))
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let rustc = folder.join("root/usr/bin/rustc");
        let linker = folder.join("bin/bpf-linker");
        ensure!(
            rustc.is_file() && linker.is_file(),
            "no compiler with the sources of core: `rustup component add rust-src` and `cargo \
             install bpf-linker`, or, on Debian, scripts/ebpf-toolchain (looked in {})",
            folder.display()
        );
        let libraries = folder.join(format!("root/usr/lib/{}-linux-gnu", env::consts::ARCH));
        let sysroot = sysroot(Command::new(&rustc).env("LD_LIBRARY_PATH", &libraries))?;
        ensure!(has_core(&sysroot), "{} lacks the sources of core", sysroot.display());
        Ok(Self { rustc, libraries: Some(libraries), linker, sysroot })
    }

    /// Adds to the command's environment what the compiler needs to run.
    pub(super) fn provide(&self, command: &mut Command) {
        command.env("RUSTC", &self.rustc);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
    }

    /// Asks the programs for their versions.
    pub(super) fn identity(&self) -> Result<Identity> {
        let mut rustc = Command::new(&self.rustc);
        self.provide(&mut rustc);
        let told = run::output(rustc.arg("-vV"))?;
        let first = told.lines().next().context("`rustc -vV` printed nothing")?;
        let llvm = told.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm = llvm.context("`rustc -vV` told no LLVM version")?;
        let linker = run::output(Command::new(&self.linker).arg("--version"))?;
        Ok(Identity {
            rustc: first.to_owned(),
            rustc_llvm: llvm.to_owned(),
            linker: linker.trim().to_owned(),
            linker_llvm: self.linker_llvm(),
        })
    }

    /// The version of the LLVM that bpf-linker is linked to, which writes the instructions.
    fn linker_llvm(&self) -> String {
        const INSIDE: &str = "inside bpf-linker";
        let Ok(libraries) = run::output(Command::new("ldd").arg(&self.linker)) else {
            return INSIDE.to_owned();
        };
        let library = libraries.split_whitespace().find(|w| w.contains("/libLLVM"));
        let Some(prefix) = library.and_then(|l| Path::new(l).parent()?.parent()) else {
            return INSIDE.to_owned();
        };
        match run::output(Command::new(prefix.join("bin/llvm-config")).arg("--version")) {
            Ok(version) => version.trim().to_owned(),
            Err(_) => "unknown".to_owned(),
        }
    }
}

fn sysroot(rustc: &mut Command) -> Result<PathBuf> {
    let told = run::output(rustc.args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(told.trim_end()))
}

fn has_core(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}
