//! Sending frames into a wire, and counting what comes out at the far end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::ProgramArray;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};

use super::wire::Wire;
use super::world::World;
use crate::course::{Course, FRAME};
use crate::frame;
use crate::maps::Mapped;
use crate::object;
use crate::paths::{Kind, Load, PORTS_LOG2, Path};
use crate::stage::Interface;

/// Frames that are made before they are handed on together, as a driver does in a poll.
const BATCH: u32 = 64;
/// How long frames may be under way after the last was sent.
const TRAVEL_MAX: Duration = Duration::from_millis(300);
/// What the sender of every segment could take, so that a connection tracker finds it sound.
const WINDOW: [u8; 2] = u16::MAX.to_be_bytes();

/// What to send.
#[derive(Clone, Copy)]
pub(super) struct Shot {
    /// Connections that the packets belong to, in the order of [`crate::course`].
    pub(super) flows: u32,
    pub(super) order: u32,
    /// Whether the server sends.
    pub(super) reply: bool,
    /// TCP flags.
    pub(super) flags: u8,
}

/// What came of it.
pub(super) struct Sent {
    /// CPU time of all that was done for the packets, from making to counting.
    pub(super) cpu_ns: u64,
    /// Packets that arrived with the right addresses.
    pub(super) right: u64,
    /// Packets that arrived otherwise.
    pub(super) wrong: u64,
}

/// The programs at the ends of the wires.
pub(super) struct Generator {
    tools: Ebpf,
    sink: OwnedFd,
    course: Mapped<Course>,
    wire: Mapped<Wire>,
    /// Where the kernel tells the CPU time of the thread that goes on with packets when the one
    /// that sent them has worked for long enough.
    helper: String,
}

impl Generator {
    /// Loads the programs; all packets are to be worked on by this CPU.
    pub(super) fn new(cpu: u32) -> Result<Self> {
        let mut tools = EbpfLoader::new().btf(None).load(&object::read("bench.bpf.o")?)?;
        object::load_programs(&mut tools)?;
        let (course, wire) = (Mapped::new(&tools, "course")?, Mapped::new(&tools, "wire")?);
        let sink = program(&tools, "sink")?.fd()?.as_fd().try_clone_to_owned()?;
        let send = program(&tools, "send")?.fd()?.try_clone()?;
        let map = tools.map_mut("programs").context("the object has no map programs")?;
        ProgramArray::try_from(map)?.set(0, &send, 0).context("choosing the program to call")?;
        Ok(Self { tools, sink, course, wire, helper: helper_of(cpu)? })
    }

    /// Returns the program for the far ends.
    pub(super) fn sink(&self) -> &OwnedFd {
        &self.sink
    }

    /// Sends packets, waits until they have arrived, and says what that took.
    pub(super) fn fire(&mut self, world: &World, shot: Shot, packets: u32) -> Result<Sent> {
        let (from, _) = world.ends(shot.reply);
        let wire = Wire { interface: from.interface, ..world.expected(shot.reply) };
        self.wire.set(0, wire);
        self.course.set(0, course(world, shot));
        let helper_ns = self.helper_ns()?;
        let wrap = program(&self.tools, "wrap")?;
        let own_ns = from.namespace.run(|| send(wrap, packets))??;
        let deadline = Instant::now() + TRAVEL_MAX;
        while self.counted() < u64::from(packets) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let Wire { right, wrong, .. } = self.wire.get(0);
        let cpu_ns = own_ns + self.helper_ns()? - helper_ns;
        Ok(Sent { cpu_ns, right, wrong })
    }

    fn counted(&self) -> u64 {
        let Wire { right, wrong, .. } = self.wire.get(0);
        right + wrong
    }

    fn helper_ns(&self) -> Result<u64> {
        let text = std::fs::read_to_string(&self.helper)
            .with_context(|| format!("reading {}", self.helper))?;
        let first = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
        first.with_context(|| format!("no time in {}", self.helper))
    }
}

/// Sends in the calling thread, and returns its CPU time.
fn send(wrap: &Xdp, packets: u32) -> Result<u64> {
    let frame = [0; FRAME];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&frame);
    options.repeat = packets;
    options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let before = now()?;
    wrap.test_run(options).context("sending (live frames take Linux 5.18)")?;
    Ok((now()? - before).as_nanos() as u64)
}

fn program<'a>(tools: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    let program = tools.program(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// Returns the file with the CPU time of `ksoftirqd` of a CPU.
fn helper_of(cpu: u32) -> Result<String> {
    let wanted = format!("ksoftirqd/{cpu}");
    for entry in std::fs::read_dir("/proc").context("listing /proc")? {
        let folder = entry?.path();
        let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if name.trim_end() == wanted {
            return Ok(format!("{}/schedstat", folder.display()));
        }
    }
    anyhow::bail!("no thread is called {wanted}")
}

/// Returns the course of frames as they leave the one who sends them.
fn course(world: &World, shot: Shot) -> Course {
    let load = Load::Established { flows: shot.flows, ports_log2: PORTS_LOG2 };
    let kind = if shot.reply { Kind::Reply } else { Kind::Request };
    let (from, _) = world.ends(shot.reply);
    let interface = Interface { index: 0, mac: from.director, router: from.mac };
    let end = world.server_end(shot.reply);
    let path = Path { kind, family: 4, load };
    let mut course = frame::course(&path, &interface, end, shot.flags);
    // Sequence numbers 0 before the connection is established, 1 after; both sides send nothing.
    let syn = shot.flags & rlvs_wire::tcp::SYN != 0;
    let acknowledges = shot.flags & rlvs_wire::tcp::ACK != 0;
    let words = [u32::from(!syn), u32::from(acknowledges)].map(u32::to_be_bytes);
    set(&mut course.words[5], 0, words.as_flattened());
    set(&mut course.words[6], 2, &WINDOW);
    Course { order: shot.order, flows: shot.flows, ports_log2: PORTS_LOG2, ..course }
}

fn set(word: &mut u64, at: usize, bytes: &[u8]) {
    let mut all = word.to_ne_bytes();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    *word = u64::from_ne_bytes(all);
}
