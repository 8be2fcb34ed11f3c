//! The object under test: loading it, and what the kernel says of its programs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::programs::{Program, ProgramInfo};
use aya::{Ebpf, EbpfLoader};
use rlvs_datapath::abi::{IDS, REASONS, ROUTES};
use rlvs_linux::dataplane::stages::{self, Body};
use serde::Serialize;

/// What the kernel says of a program.
#[derive(Debug, Serialize)]
pub(crate) struct Size {
    pub(crate) program: String,
    /// Instructions after the verifier has changed them.
    pub(crate) instructions: u32,
    /// Instructions that the verifier went through.
    pub(crate) verified: u32,
    /// Bytes of memory that the program holds.
    pub(crate) bytes: u32,
    /// Time to verify and translate it.
    pub(crate) load_ms: f64,
}

/// Returns the bytes of an object: of those built, or of those in the folder that
/// RLVS_BPF_OBJECT_DIR names.
pub(crate) fn read(name: &str) -> Result<Vec<u8>> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/rlvs-ebpf/object");
    let folder = std::env::var_os("RLVS_BPF_OBJECT_DIR").unwrap_or_else(|| committed.into());
    let file = PathBuf::from(folder).join(name);
    std::fs::read(&file).with_context(|| format!("reading {}", file.display()))
}

/// How many pairs of buckets the connection tables get.
#[derive(Clone, Copy)]
pub(crate) struct Pairs {
    pub(crate) v4: u32,
    pub(crate) v6: u32,
}

/// Makes the maps of the object under test.
pub(crate) fn load(bytes: &[u8], cpus: u32, pairs: Pairs) -> Result<Ebpf> {
    EbpfLoader::new()
        .btf(None)
        .map_max_entries("connections4", pairs.v4)
        .map_max_entries("connections6", pairs.v6)
        .map_max_entries("scratch", cpus)
        .map_max_entries("rows", IDS * cpus)
        .map_max_entries("routes", ROUTES * cpus)
        .map_max_entries("reasons", REASONS * cpus)
        .map_max_entries("limits", cpus)
        .map_max_entries("errands", cpus)
        .load(bytes)
        .context("making the maps of the object under test")
}

/// Gives the kernel every program of an object, and returns how large they are.
pub(crate) fn load_programs(ebpf: &mut Ebpf) -> Result<Vec<Size>> {
    let mut sizes = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let started = Instant::now();
        let info = load_one(program).with_context(|| format!("loading the program {name}"))?;
        sizes.push(Size {
            program: name.to_owned(),
            load_ms: ms(started.elapsed()),
            instructions: info.size_translated().unwrap_or(0) / 8,
            verified: info.verified_instruction_count().unwrap_or(0),
            bytes: info.memory_locked().unwrap_or(0),
        });
    }
    for body in Body::ALL {
        if ebpf.program(body.program()).is_some() {
            stages::connect_all(ebpf, body)?;
        }
    }
    sizes.sort_by(|a, b| a.program.cmp(&b.program));
    Ok(sizes)
}

fn load_one(program: &mut Program) -> Result<ProgramInfo> {
    match program {
        Program::Xdp(program) => program.load()?,
        Program::SchedClassifier(program) => program.load()?,
        _ => bail!("neither XDP nor TC"),
    }
    Ok(program.info()?)
}

/// Returns the time in milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
