//! What the programs need of the kernel, asked of the kernel itself: its release says little where somebody
//! has configured features away, or forbids them.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use crate::capability::{self, Capability};
use crate::dataplane::maps::reason;

/// Something without which the programs cannot be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// The first release of Linux that has it.
    pub since: &'static str,
    need: Need,
}

#[derive(Clone, Copy, Debug)]
enum Need {
    Program(ProgramType),
    Map(MapType),
    Helper(ProgramType, BpfHelper),
}

const XDP: ProgramType = ProgramType::Xdp;
const TC: ProgramType = ProgramType::SchedClassifier;

const fn feature(name: &'static str, since: &'static str, need: Need) -> Feature {
    Feature { name, since, need }
}

/// All of them, those of old kernels first.
pub const ALL: [Feature; 9] = [
    feature("arrays", "3.19", Need::Map(MapType::Array)),
    feature("arrays of programs", "4.2", Need::Map(MapType::ProgramArray)),
    feature("TC programs", "4.1", Need::Program(TC)),
    feature("XDP programs", "4.8", Need::Program(XDP)),
    feature("bpf_fib_lookup", "4.18", Need::Helper(XDP, BpfHelper::BPF_FUNC_fib_lookup)),
    feature("bpf_redirect_neigh", "5.10", Need::Helper(TC, BpfHelper::BPF_FUNC_redirect_neigh)),
    feature("timers", "5.15", Need::Helper(XDP, BpfHelper::BPF_FUNC_timer_init)),
    feature("bpf_loop", "5.17", Need::Helper(XDP, BpfHelper::BPF_FUNC_loop)),
    feature(
        "frames of several buffers",
        "5.18",
        Need::Helper(XDP, BpfHelper::BPF_FUNC_xdp_load_bytes),
    ),
];

/// What came of asking.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// What the kernel does not have.
    pub missing: Vec<Feature>,
    /// What it said where it did not let itself be asked.
    pub refused: Option<String>,
}

/// Asks the kernel for all of them, by a map or a program of two instructions each, which goes at once. What it
/// would answer to who lacks the capabilities says nothing, so that nothing is missing then.
#[must_use]
pub fn ask() -> Answer {
    let mut answer = Answer::default();
    if !capability::missing(&[Capability::Bpf, Capability::NetAdmin]).is_empty() {
        return answer;
    }
    for one in ALL {
        match one.need.is_there() {
            Ok(true) => {}
            Ok(false) => answer.missing.push(one),
            Err(error) => answer.refused = answer.refused.or(Some(error)),
        }
    }
    answer
}

impl Need {
    fn is_there(self) -> Result<bool, String> {
        match self {
            Self::Map(kind) => is_map_supported(kind).map_err(|error| reason(&error)),
            Self::Program(kind) => is_program_supported(kind).map_err(|error| reason(&error)),
            Self::Helper(kind, helper) => {
                is_helper_supported(kind, helper).map_err(|error| reason(&error))
            }
        }
    }
}
