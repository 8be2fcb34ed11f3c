//! The record beside the committed objects: from what, with what and to what they were built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::toolchain::Identity;

const FILE: &str = "BUILD.txt";

/// Everything that goes into the objects; folders count with all that is in them.
const SOURCES: [&str; 7] = [
    "crates/rlvs-datapath/Cargo.toml",
    "crates/rlvs-datapath/src",
    "crates/rlvs-ebpf/Cargo.lock",
    "crates/rlvs-ebpf/Cargo.toml",
    "crates/rlvs-ebpf/src",
    "crates/rlvs-wire/Cargo.toml",
    "crates/rlvs-wire/src",
];

/// How the objects were built.
pub(super) struct Record {
    pub(super) sources: String,
    pub(super) built_by: Identity,
    pub(super) flags: String,
    /// File names and SHA-256 of the objects.
    pub(super) objects: Vec<(String, String)>,
}

impl Record {
    /// The text of the record.
    pub(super) fn text(&self) -> String {
        let Identity { rustc, rustc_llvm, linker, linker_llvm } = &self.built_by;
        let mut text = format!(
            "# Written by `cargo xtask ebpf`; `cargo xtask ebpf --check` compares.\n\
             sources: {}\n\
             rustc: {rustc}\n\
             rustc-llvm: {rustc_llvm}\n\
             linker: {linker}\n\
             linker-llvm: {linker_llvm}\n\
             flags: {}\n",
            self.sources, self.flags
        );
        for (name, hash) in &self.objects {
            text.push_str(&format!("object: {name} {hash}\n"));
        }
        text
    }

    /// Writes the record beside the objects.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let file = folder.join(FILE);
        fs::write(&file, self.text()).with_context(|| format!("writing {}", file.display()))
    }

    /// Reads the record beside the objects.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(FILE);
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("reading {}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let values = |key: &'static str| {
            text.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(": "))
        };
        let value = |key: &'static str| {
            let value = values(key).next().with_context(|| format!("no line `{key}: …`"))?;
            anyhow::Ok(value.to_owned())
        };
        let mut objects = Vec::new();
        for line in values("object") {
            let Some((name, hash)) = line.split_once(' ') else {
                bail!("no hash in the line `object: {line}`");
            };
            objects.push((name.to_owned(), hash.to_owned()));
        }
        Ok(Self {
            sources: value("sources")?,
            built_by: Identity {
                rustc: value("rustc")?,
                rustc_llvm: value("rustc-llvm")?,
                linker: value("linker")?,
                linker_llvm: value("linker-llvm")?,
            },
            flags: value("flags")?,
            objects,
        })
    }
}

/// The hash of everything that goes into the objects: of each file its path, length and content.
pub(super) fn hash_of_sources(workspace: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&workspace.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(workspace).context("a source outside the workspace")?;
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        hash.update(format!("{}\n{}\n", name.display(), content.len()));
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

/// The SHA-256 of one file, in hexadecimal.
pub(super) fn hash_of_file(file: &Path) -> Result<String> {
    let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(hex(&Sha256::digest(content)))
}

/// Lists the file, or all files below the folder, without those that editors leave behind and
/// those that only tests have (`tests.rs`).
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in path.read_dir().with_context(|| format!("reading {}", path.display()))? {
        let entry = entry.with_context(|| format!("reading {}", path.display()))?.path();
        let is_rust = entry.extension().is_some_and(|extension| extension == "rs");
        let is_tests = entry.file_name().is_some_and(|name| name == "tests.rs");
        if entry.is_dir() || (is_rust && !is_tests) {
            collect(&entry, files)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Record {
        let word = |text: &str| text.to_owned();
        let built_by = Identity {
            rustc: word("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            rustc_llvm: word("22.1.8"),
            linker: word("bpf-linker 0.13.0"),
            linker_llvm: word("22.1.8"),
        };
        let objects = vec![(word("rlvs.bpf.o"), word("12")), (word("bench.bpf.o"), word("ab"))];
        Record { sources: word("0f"), built_by, flags: word("-Ca -Cb"), objects }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let read = Record::parse(&example().text()).unwrap();
        assert_eq!(read.text(), example().text());
    }

    #[test]
    fn a_record_without_a_compiler_is_refused_with_the_missing_word() {
        let text = example().text().replace("rustc: ", "compiler: ");
        let Err(error) = Record::parse(&text) else { panic!("accepted") };
        assert_eq!(error.to_string(), "no line `rustc: …`");
    }
}
