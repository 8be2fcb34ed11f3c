//! The programs of a body: the one that hangs on interfaces and those that it hands on to.

use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError};
use rlvs_datapath::process::Stage;

use super::error::Error;
use super::load::{load_error, program_error};

/// A body that the kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the driver.
    Xdp,
    /// Behind it.
    Tc,
}

impl Body {
    /// Returns the name of the program that hangs on interfaces.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "rlvs_xdp",
            Self::Tc => "rlvs_tc",
        }
    }

    fn stage(self, stage: Stage) -> String {
        format!("{}_{}", self.program(), stage.name())
    }

    const fn stages(self) -> &'static str {
        match self {
            Self::Xdp => "stages_xdp",
            Self::Tc => "stages_tc",
        }
    }
}

/// Gives the kernel the programs of a body and connects them. Returns the stages that it did not take
/// and that packets do without: Linux 6.1 counts more stack than later ones.
///
/// # Errors
/// A missing capability, or what the kernel did not take.
pub fn load(bpf: &mut Ebpf, body: Body) -> Result<Vec<Stage>, Error> {
    load_program(bpf, body.program())?;
    let mut missing = Vec::new();
    for stage in Stage::ALL {
        match load_program(bpf, &body.stage(stage)) {
            Err(Error::Load { .. }) if stage.is_optional() => missing.push(stage),
            other => other?,
        }
    }
    connect(bpf, body)?;
    Ok(missing)
}

/// Gives the kernel one program.
///
/// # Errors
/// As [`load`].
pub fn load_program(bpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let program = bpf.program_mut(name).ok_or_else(|| missing(name))?;
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(missing(name)),
    }
    .map_err(|error| program_error(name, &error))
}

/// Tells the first program of a body, by its map, where the loaded programs of its stages are. They
/// stay as long as that map is held or pinned.
///
/// # Errors
/// As [`load`].
pub fn connect(bpf: &mut Ebpf, body: Body) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| load_error(body.stages(), error);
    let mut programs = Vec::new();
    for stage in Stage::ALL {
        let name = body.stage(stage);
        let program = bpf.program(&name).ok_or_else(|| missing(&name))?;
        let fd = match program.fd() {
            Err(ProgramError::NotLoaded) if stage.is_optional() => continue,
            fd => fd.map_err(|error| failed(&error))?,
        };
        programs.push((stage as u32, fd.try_clone().map_err(|error| failed(&error))?));
    }
    let map = bpf.map_mut(body.stages()).ok_or_else(|| missing(body.stages()))?;
    let mut stages = ProgramArray::try_from(map).map_err(|error| failed(&error))?;
    for (index, program) in &programs {
        stages.set(*index, program, 0).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn missing(what: &str) -> Error {
    Error::Load { what: what.to_owned(), reason: "the object does not have it".to_owned() }
}
