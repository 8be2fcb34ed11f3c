//! Building the eBPF objects from source, and proving that the committed ones are theirs.
//!
//! The package crates/rlvs-ebpf is built for the BPF target with a compiler that has the sources
//! of `core` ([`toolchain`]), by a recipe whose bytes do not depend on any folder ([`recipe`],
//! [`wrapper`]). Debug sections are dropped ([`object`]), and a text beside the objects says from
//! what they were built ([`record`]).

mod object;
mod recipe;
mod record;
mod toolchain;
pub(crate) mod wrapper;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::run;
use record::Record;
use toolchain::Toolchain;

/// The programs of the package, each an object of its own.
const PROGRAMS: [&str; 4] = ["rlvs", "bench", "decap", "capture"];

/// What `cargo xtask ebpf` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing: rebuild aside, and compare with the committed objects
    #[arg(long)]
    check: bool,
}

/// Builds or checks the eBPF objects.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check { check().map(drop) } else { build() }
}

/// Builds the objects into the source tree, with the record of how.
fn build() -> Result<()> {
    let folder = committed()?;
    recipe::follow_manifest(&run::workspace()?)?;
    let record = build_into(&folder)?;
    record.write(&folder)?;
    eprintln!("wrote {}:\n{}", folder.display(), record.text().trim_end());
    Ok(())
}

/// Compares the committed objects with their sources and with a rebuild.
///
/// Returns the folder of the rebuilt objects if another compiler built them, so that their bytes
/// may differ and the tests have to run on them too.
pub(crate) fn check() -> Result<Option<PathBuf>> {
    let folder = committed()?;
    let record = Record::read(&folder).context("no record of the objects: cargo xtask ebpf")?;
    let sources = record::hash_of_sources(&run::workspace()?)?;
    ensure!(
        record.sources == sources,
        "the sources of the eBPF objects have changed since they were built \
         ({sources}, recorded {}): run `cargo xtask ebpf` and commit {}",
        record.sources,
        folder.display(),
    );
    for (name, recorded) in &record.objects {
        let hash = record::hash_of_file(&folder.join(name))?;
        ensure!(hash == *recorded, "{name} is not the recorded one: run `cargo xtask ebpf`");
    }
    compare_with_rebuild(&folder, &record)
}

fn compare_with_rebuild(folder: &Path, record: &Record) -> Result<Option<PathBuf>> {
    let aside = run::target()?.join("ebpf-rebuilt");
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| format!("removing {}", aside.display()))?;
    }
    let rebuilt = build_into(&aside)?;
    ensure!(record.flags == rebuilt.flags, "the recipe has changed: run `cargo xtask ebpf`");
    if record.built_by == rebuilt.built_by {
        if record.objects != rebuilt.objects {
            bail!(
                "{} built the recorded sources to other bytes: the committed objects are in {}, \
                 the rebuilt ones in {}",
                record.built_by.rustc,
                folder.display(),
                aside.display()
            );
        }
        fs::remove_dir_all(&aside).with_context(|| format!("removing {}", aside.display()))?;
        eprintln!("ebpf: rebuilt with the recorded compiler, all bytes equal");
        return Ok(None);
    }
    for name in PROGRAMS.map(file_name) {
        object::compare_layouts(&folder.join(&name), &aside.join(&name))?;
    }
    eprintln!(
        "ebpf: rebuilt with another compiler than the recorded one\n  recorded: {}\n  here:     {}\n\
         ebpf: map layouts and programs are equal; to run the tests on the rebuilt objects:\n  \
         RLVS_BPF_OBJECT_DIR={} cargo xtask test",
        record.built_by,
        rebuilt.built_by,
        aside.display()
    );
    Ok(Some(aside))
}

/// Builds all programs, writes their objects into the folder, and returns how it was done.
fn build_into(folder: &Path) -> Result<Record> {
    let workspace = run::workspace()?;
    let toolchain = Toolchain::find()?;
    let sources = record::hash_of_sources(&workspace)?;
    let built = recipe::build(&workspace, &toolchain)?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let mut objects = Vec::new();
    for program in PROGRAMS {
        let from = built.join(program);
        let to = folder.join(file_name(program));
        let bytes = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        let bytes = object::without_debug_sections(&bytes)
            .with_context(|| format!("dropping the debug sections of {}", from.display()))?;
        object::refuse_data(&bytes).with_context(|| format!("checking {}", from.display()))?;
        fs::write(&to, &bytes).with_context(|| format!("writing {}", to.display()))?;
        objects.push((file_name(program), record::hash_of_file(&to)?));
    }
    let flags = recipe::RUSTC_FLAGS.join(" ");
    Ok(Record { sources, built_by: toolchain.identity()?, flags, objects })
}

fn committed() -> Result<PathBuf> {
    Ok(run::workspace()?.join("crates/rlvs-ebpf/object"))
}

fn file_name(program: &str) -> String {
    format!("{program}.bpf.o")
}
