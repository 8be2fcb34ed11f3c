//! The programs of a body: the one that hangs on interfaces and those that it hands on to.
//!
//! Verifying them is what takes time. So they are given to the kernel by several threads at once, and
//! the stages when a table first needs them: a [`Group`] at a time, or what services of one IP version
//! need ([`of_family`]).

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError, loaded_programs};
pub use rlvs_datapath::stage::Group;
use rlvs_datapath::stage::Stage;

use super::error::Error;
use super::load::{self, load_error, program_error};
use super::maps::{self, reason};
use super::pins::{self, Folder};
use super::sys;

/// A body that the kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the driver.
    Xdp,
    /// Behind it.
    Tc,
}

impl Body {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tc];

    /// Returns the name of the program that hangs on interfaces.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "rlvs_xdp",
            Self::Tc => "rlvs_tc",
        }
    }

    /// Returns the name of that program's pin.
    pub(super) const fn pin(self) -> &'static str {
        match self {
            Self::Xdp => load::XDP,
            Self::Tc => load::TC,
        }
    }

    /// Returns whether it carries a stage out itself.
    const fn has(self, stage: Stage) -> bool {
        matches!(self, Self::Tc) || stage.is_on_xdp()
    }

    fn stage(self, stage: Stage) -> String {
        format!("{}_{}", self.program(), stage.name())
    }

    pub(super) const fn stages(self) -> &'static str {
        match self {
            Self::Xdp => "stages_xdp",
            Self::Tc => "stages_tc",
        }
    }
}

/// Returns the stages that every service of an IP version (4 or 6) needs.
pub fn of_family(family: u8) -> impl Iterator<Item = Stage> {
    [Group::Ordinary, Group::Unusual]
        .into_iter()
        .flat_map(Group::stages)
        .filter(move |stage| is_for(*stage, family))
}

/// Returns whether packets of an IP version may need a stage.
fn is_for(stage: Stage, family: u8) -> bool {
    stage.family().is_none_or(|of| of == family)
}

/// Gives the kernel the programs of bodies with some stages, and `others` besides, and connects them.
/// Returns the programs that it did not take and that packets do without: Linux 6.1 counts more stack
/// than later ones.
///
/// # Errors
/// A missing capability, or what the kernel did not take.
pub fn load(
    bpf: &mut Ebpf,
    bodies: &[Body],
    stages: &[Stage],
    others: &[&str],
) -> Result<Vec<String>, Error> {
    let stages: Vec<_> = bodies
        .iter()
        .flat_map(|&body| stages.iter().map(move |&stage| (body, stage)))
        .filter(|(body, stage)| body.has(*stage))
        .collect();
    let mut names: Vec<String> = bodies.iter().map(|body| body.program().to_owned()).collect();
    names.extend(others.iter().map(|&name| name.to_owned()));
    load_programs(bpf, &names).map_or(Ok(()), Err)?;
    load_stages(bpf, &stages)
}

/// Gives the kernel the first TC program with those of some stages that packets of one IP version
/// without unusual headers may need, and connects them.
///
/// # Errors
/// As [`load()`].
pub(super) fn load_for_packets(bpf: &mut Ebpf, stages: &[Stage], family: u8) -> Result<(), Error> {
    let stages: Vec<_> = stages
        .iter()
        .filter(|stage| {
            matches!(stage, Stage::Lost4 | Stage::Lost6)
                || !matches!(stage.group(), Group::Unusual | Group::Tunnels)
        })
        .filter(|stage| is_for(**stage, family))
        .map(|&stage| (Body::Tc, stage))
        .collect();
    load_program(bpf, Body::Tc.program())?;
    load_stages(bpf, &stages).map(|_| ())
}

/// Gives the kernel the stages of a group for a body whose program it has. Returns those that it did
/// not take.
///
/// # Errors
/// As [`load()`].
pub fn load_group(bpf: &mut Ebpf, body: Body, group: Group) -> Result<Vec<String>, Error> {
    let has = |stage: &Stage| body.has(*stage);
    let stages: Vec<_> = group.stages().filter(has).map(|stage| (body, stage)).collect();
    load_stages(bpf, &stages)
}

/// Returns whether the kernel has the stages of a group.
#[must_use]
pub fn is_loaded(bpf: &Ebpf, body: Body, group: Group) -> bool {
    let has = |stage| bpf.program(&body.stage(stage)).is_some_and(|program| program.fd().is_ok());
    group.stages().all(|stage| !body.has(stage) || has(stage))
}

/// Gives the kernel those of some stages that are not there yet, for the bodies that are, in a folder
/// of pins.
///
/// # Errors
/// As [`load()`].
pub(super) fn ensure(
    folder: &Folder,
    stages: &[Stage],
    open: impl FnOnce() -> Result<Ebpf, Error>,
) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    for body in Body::ALL.into_iter().filter(|body| folder.path(body.pin()).exists()) {
        for &stage in stages {
            if body.has(stage) && !has(folder, body, stage)? {
                missing.push((body, stage));
            }
        }
    }
    if missing.is_empty() { Ok(Vec::new()) } else { load_stages(&mut open()?, &missing) }
}

/// Returns the stages that a body of a folder of pins has.
pub(super) fn present(folder: &Folder) -> Result<Vec<Stage>, Error> {
    let mut stages = Vec::new();
    for &stage in Stage::ALL {
        if has(folder, Body::Xdp, stage)? || has(folder, Body::Tc, stage)? {
            stages.push(stage);
        }
    }
    Ok(stages)
}

fn has(folder: &Folder, body: Body, stage: Stage) -> Result<bool, Error> {
    let name = body.stages();
    let map = maps::pinned(folder, name)?;
    match sys::lookup::<1>(map.fd().as_fd(), stage as u32) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("reading {}", pins::shown(folder, name)))(error)),
    }
}

/// Returns the stages that a body of a folder has by the names of their programs: the object that they
/// are from may number them in another way.
pub(super) fn named(folder: &Folder) -> Result<Vec<Stage>, Error> {
    /// How much of a program's name the kernel keeps.
    const NAME_BYTES: usize = 15;
    let mut ids = BTreeSet::new();
    for body in Body::ALL {
        let failed = |reason: String| Error::Load { what: body.stages().to_owned(), reason };
        let map = maps::pinned(folder, body.stages())?;
        let places = map.info().map_err(|error| failed(reason(&error)))?.max_entries();
        ids.extend((0..places).filter_map(|at| sys::lookup_id(map.fd().as_fd(), at).ok()));
    }
    let programs = loaded_programs().flatten().filter(|program| ids.contains(&program.id()));
    let names: BTreeSet<String> =
        programs.filter_map(|program| program.name_as_str().map(str::to_owned)).collect();
    let is_there = |stage: &Stage| {
        Body::ALL.into_iter().any(|body| {
            let name = body.stage(*stage);
            names.contains(name.get(..NAME_BYTES).unwrap_or(&name))
        })
    };
    Ok(Stage::ALL.iter().copied().filter(is_there).collect())
}

fn load_stages(bpf: &mut Ebpf, stages: &[(Body, Stage)]) -> Result<Vec<String>, Error> {
    let names: Vec<String> = stages.iter().map(|(body, stage)| body.stage(*stage)).collect();
    let refused = load_all(bpf, &names);
    let mut missing = Vec::new();
    for (name, error) in refused {
        let is_optional = names
            .iter()
            .zip(stages)
            .any(|(other, (_, stage))| *other == name && stage.group().is_optional());
        match error {
            Error::Load { .. } if is_optional => missing.push(name),
            error => return Err(error),
        }
    }
    missing.sort();
    connect(bpf, stages)?;
    Ok(missing)
}

/// Gives the kernel programs. Returns the first error there was.
fn load_programs(bpf: &mut Ebpf, names: &[String]) -> Option<Error> {
    load_all(bpf, names).into_iter().next().map(|(_, error)| error)
}

/// Gives the kernel programs by as many threads as there are processors, those of TC first: they are the
/// longer ones, and no thread is to wait for the other's last. Returns those that it refused.
fn load_all(bpf: &mut Ebpf, names: &[String]) -> Vec<(String, Error)> {
    let mut refused: Vec<_> = names
        .iter()
        .filter(|name| bpf.program(name).is_none())
        .map(|name| (name.clone(), missing(name)))
        .collect();
    let mut programs: Vec<_> =
        bpf.programs_mut().filter(|(name, _)| names.iter().any(|n| n == name)).collect();
    programs.sort_by_key(|(name, _)| *name);
    let queue = Mutex::new(programs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut refused = Vec::new();
        while let Some((name, program)) = next() {
            if let Err(error) = load_one(name, program) {
                refused.push((name.to_owned(), error));
            }
        }
        refused
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(names.len());
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        refused.extend(work());
        for other in others {
            refused.extend(other.join().unwrap_or_default());
        }
    });
    refused
}

/// Gives the kernel one program.
///
/// # Errors
/// As [`load()`].
pub fn load_program(bpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let program = bpf.program_mut(name).ok_or_else(|| missing(name))?;
    load_one(name, program)
}

fn load_one(name: &str, program: &mut Program) -> Result<(), Error> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(missing(name)),
    }
    .map_err(|error| program_error(name, &error))
}

/// Tells the first program of a body where the loaded programs of all its stages are.
///
/// # Errors
/// As [`load()`].
pub fn connect_all(bpf: &mut Ebpf, body: Body) -> Result<(), Error> {
    let has = |stage: &&Stage| body.has(**stage);
    let stages: Vec<_> = Stage::ALL.iter().filter(has).map(|&stage| (body, stage)).collect();
    connect(bpf, &stages)
}

/// Tells the first programs of bodies, by their maps, where the loaded programs of stages are. They
/// stay as long as that map is held or pinned.
fn connect(bpf: &mut Ebpf, stages: &[(Body, Stage)]) -> Result<(), Error> {
    for &(body, stage) in stages {
        let failed = |error: &dyn std::error::Error| load_error(body.stages(), error);
        let name = body.stage(stage);
        let fd = match bpf.program(&name).ok_or_else(|| missing(&name))?.fd() {
            Err(ProgramError::NotLoaded) if stage.group().is_optional() => continue,
            fd => fd.map_err(|error| failed(&error))?,
        };
        let fd = fd.try_clone().map_err(|error| failed(&error))?;
        let map = bpf.map_mut(body.stages()).ok_or_else(|| missing(body.stages()))?;
        let mut programs = ProgramArray::try_from(map).map_err(|error| failed(&error))?;
        programs.set(stage as u32, &fd, 0).map_err(|error| failed(&error))?;
    }
    Ok(())
}

pub(super) fn missing(what: &str) -> Error {
    Error::Load { what: what.to_owned(), reason: "the object does not have it".to_owned() }
}
