//! Measuring a path: rounds of the floor and of the program in turn.

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use nix::time::{ClockId, clock_gettime};
use rlvs_datapath::abi::{method, scheduler, tunnel_form};
use rlvs_wire::tcp;

use crate::course::{self, Course, FRAME};
use crate::frame::{self, End};
use crate::maps::Mapped;
use crate::paths::{CROWD, FLOWS_MAX, Kind, Load, Path};
use crate::report::{Row, Spread};
use crate::stage::Interface;
use crate::tables::{PAIR_BYTES, REAL_PORT, Tables, Virtual};

/// XDP_TX.
const TRANSMIT: u32 = 3;
/// The share of slots in use that the table is made for: one of so many.
pub(crate) const DESIGN: u32 = 3;
/// A round of new connections adds to the table at most one slot in so many.
const ADDED: u32 = 64;

/// How long and how often to measure.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) round_ns: u64,
}

/// Everything that a measurement needs.
pub(crate) struct Bench {
    pub(crate) tables: Tables,
    pub(crate) interface: Interface,
    pub(crate) services: Vec<(u8, Virtual)>,
    /// The object with the wrapper and the floor.
    pub(crate) tools: Ebpf,
    pub(crate) under_test: ProgramFd,
    pub(crate) floor: ProgramFd,
    /// The floor of what wraps packets.
    pub(crate) floor_tunnel: ProgramFd,
    /// The floor of what finds its flows in a table.
    pub(crate) floor_line: ProgramFd,
    pub(crate) course: Mapped<Course>,
}

/// Returns how many pairs of buckets the table has when a path is measured: so many that the most
/// flows are within its design load.
pub(crate) fn pairs(path: &Path) -> u32 {
    let slots = FLOWS_MAX * path.halves() * DESIGN;
    slots.div_ceil(slots_in_pair(path.family)).next_power_of_two()
}

/// Returns how many connections there are at the design load.
fn design(path: &Path) -> u32 {
    (pairs(path) * slots_in_pair(path.family)).div_ceil(DESIGN * path.halves())
}

/// Returns the number of connection slots in a pair of buckets.
pub(crate) fn slots_in_pair(family: u8) -> u32 {
    let slot_bytes = if family == 4 { 16 } else { 32 };
    PAIR_BYTES as u32 / slot_bytes
}

impl Bench {
    /// Measures one path.
    pub(crate) fn measure(&mut self, path: &Path, effort: Effort) -> Result<Row> {
        self.prepare(path)?;
        self.tables.forget_reasons();
        let (mut floor, mut line, mut program, mut ratio) = (vec![], vec![], vec![], vec![]);
        let pairs = pairs(path);
        let kept = self.tables.connections(path.family, pairs).to_vec();
        let elsewhere = self.tables.elsewhere();
        let new = !matches!(path.load, Load::Established { .. });
        let added = pairs * slots_in_pair(path.family) / ADDED / path.halves();
        self.set_floor(path)?;
        let floor_repeat = self.calibrate(effort)?;
        let repeat = if new {
            added
        } else {
            self.set_program()?;
            self.calibrate(effort)?
        };
        // The first round only warms up.
        for round in 0..=effort.rounds {
            self.set_floor(path)?;
            let floor_ns = self.run(floor_repeat)?;
            call(&mut self.tools, &self.floor_line)?;
            let line_ns = self.run(floor_repeat)?;
            if new {
                self.tables.connections(path.family, pairs).copy_from_slice(&kept);
                self.tables.set_elsewhere(elsewhere);
            }
            let before = self.counts(path)?;
            self.set_program()?;
            let program_ns = self.run(repeat)?;
            let after = self.counts(path)?;
            self.check(path, before, after, repeat)?;
            if round > 0 {
                floor.push(floor_ns);
                line.push(line_ns / floor_ns);
                program.push(program_ns);
                ratio.push(program_ns / floor_ns);
            }
        }
        Ok(Row {
            path: path.name(),
            floor_ns: Spread::of(floor),
            line: Spread::of(line),
            program_ns: Spread::of(program),
            ratio: Spread::of(ratio),
            bound: path.bound(),
            v4: path.reference().map(|reference| reference.name()),
        })
    }

    /// Fills the table of a family until a connection finds no room, and tells how.
    pub(crate) fn capacity(&mut self, kind: Kind) -> Result<Capacity> {
        let path = Path { kind, family: 4, load: Load::Design };
        let (pairs, slots) = (pairs(&path), pairs(&path) * slots_in_pair(4));
        self.prepare(&path)?;
        let tracked = self.tables.counted(self.service(&path)?);
        let asked = u64::from(design(&path));
        let table_bytes = u64::from(pairs) * PAIR_BYTES as u64;
        let used = self.tables.used(4, pairs);
        ensure!(used == tracked * u64::from(path.halves()), "{used} slots, {tracked} connections");
        let mut first_failure = used;
        self.tables.forget_reasons();
        while self.tables.reasons().is_empty() && first_failure < u64::from(slots) {
            first_failure = self.tables.used(4, pairs);
            self.run(slots / 256)?;
        }
        Ok(Capacity {
            path: if kind == Kind::Direct { "dr" } else { "nat" },
            failed: asked - tracked,
            connections: tracked,
            bytes_each: table_bytes as f64 / tracked as f64,
            full_at: first_failure as f64 / f64::from(slots),
        })
    }

    /// Repeats one path for ever, for a profiler to look at.
    pub(crate) fn dwell(&mut self, path: &Path, effort: Effort, seconds: u64) -> Result<()> {
        self.prepare(path)?;
        self.set_program()?;
        let repeat = self.calibrate(effort)?;
        let started = std::time::Instant::now();
        while started.elapsed().as_secs() < seconds {
            crate::interrupt::check()?;
            self.run(repeat)?;
        }
        Ok(())
    }

    /// Opens the connections that a path needs, and sets the course for its packets.
    fn prepare(&mut self, path: &Path) -> Result<()> {
        let pairs = pairs(path);
        let (flows, ports_log2) = match path.load {
            Load::Established { flows, ports_log2 } => (flows, ports_log2),
            Load::Empty | Load::Choice(_) => (0, crate::paths::PORTS_LOG2),
            Load::Guarded { anywhere: false, .. } => (0, crate::paths::PORTS_LOG2),
            // So many that hardly any is drawn twice.
            Load::Guarded { anywhere: true, .. } => (0, 0),
            Load::Design => (design(path), crate::paths::PORTS_LOG2),
        };
        let established = matches!(path.load, Load::Established { .. });
        self.tables.clear(path.family, pairs);
        self.tables.forget_reasons();
        let service = self.service_index(path)?;
        let service = &self.services[service].1;
        // Replies come from one server: all connections have to go there.
        let (number, destinations) = match path.load {
            Load::Choice(number) => (number, CROWD),
            _ if established && path.translates() => (scheduler::RR, 1),
            _ => (scheduler::RR, 2),
        };
        self.tables.set_ring(service, number, destinations as usize);
        let is_guarded = matches!(path.load, Load::Guarded { networks, .. } if networks > 0);
        self.tables.set_guarded(service.id, is_guarded);
        self.tables.set_wide(path.kind == Kind::Full);
        let virtual_end = End { address: service.address, port: service.port };
        let real_end = End { address: service.destinations[0].1, port: REAL_PORT };
        let from_client =
            if path.kind == Kind::Reply { Path { kind: Kind::Request, ..*path } } else { *path };
        self.set_program()?;
        if flows > 0 {
            for flags in [tcp::SYN, tcp::ACK] {
                let order = course::SEQUENTIAL;
                let course = self.course_of(&from_client, virtual_end, flags);
                self.course.set(0, Course { order, flows, ports_log2, ..course });
                self.run(flows)?;
            }
            let opened = self.tables.counted(self.service(path)?);
            let enough = if established { flows } else { flows - flows / 1_000 };
            if opened < u64::from(enough) {
                bail!("{opened} of {flows} connections opened: {:?}", self.tables.reasons());
            }
        }
        let (end, flags, order) = match path.load {
            Load::Established { .. } if path.kind == Kind::Reply => {
                (real_end, tcp::ACK, course::RANDOM)
            }
            Load::Established { .. } => (virtual_end, tcp::ACK, course::RANDOM),
            Load::Guarded { anywhere: true, .. } => (virtual_end, tcp::SYN, course::RANDOM),
            Load::Empty | Load::Design | Load::Choice(_) | Load::Guarded { .. } => {
                (virtual_end, tcp::SYN, course::NEW)
            }
        };
        let flows = if order == course::RANDOM && flows == 0 { u32::MAX } else { flows };
        let course = self.course_of(path, end, flags);
        let counter = if flows == u32::MAX { 0 } else { flows.into() };
        self.course.set(0, Course { order, flows, counter, ports_log2, ..course });
        Ok(())
    }

    fn course_of(&self, path: &Path, end: End, flags: u8) -> Course {
        frame::course(path, &self.interface, end, flags)
    }

    fn service_index(&self, path: &Path) -> Result<usize> {
        let is_full = path.kind == Kind::Full;
        let (method, form) = match path.kind {
            Kind::Direct => (method::DIRECT, 0),
            Kind::Request | Kind::Reply | Kind::Full => (method::MASQUERADE, 0),
            Kind::Tunnel => (method::TUNNEL, tunnel_form::IPIP),
            Kind::Gue => (method::TUNNEL, tunnel_form::GUE),
        };
        let crowded = matches!(path.load, Load::Choice(_));
        let wanted = |(family, service): &(u8, Virtual)| {
            *family == path.family
                && (service.method, service.form, service.is_full) == (method, form, is_full)
                && (service.destinations.len() == CROWD as usize) == crowded
        };
        self.services.iter().position(wanted).context("no service for this path")
    }

    fn service(&self, path: &Path) -> Result<&Virtual> {
        Ok(&self.services[self.service_index(path)?].1)
    }

    /// Returns packets forwarded and connections of a path's service.
    fn counts(&self, path: &Path) -> Result<(u64, u64)> {
        let service = self.service(path)?;
        Ok((self.tables.forwarded(service), self.tables.counted(service)))
    }

    fn check(&self, path: &Path, was: (u64, u64), is: (u64, u64), repeat: u32) -> Result<()> {
        let reasons = self.tables.reasons();
        let (forwarded, opened) = (is.0 - was.0, is.1 - was.1);
        // The buckets of a few new connections may be full.
        let (least, opened_least) = match path.load {
            Load::Established { .. } => (repeat, 0),
            Load::Empty | Load::Design | Load::Choice(_) | Load::Guarded { .. } => {
                (repeat - repeat / 1_000, repeat - repeat / 1_000)
            }
        };
        ensure!(forwarded >= least.into(), "{forwarded} of {repeat} forwarded: {reasons:?}");
        ensure!(opened >= opened_least.into(), "{opened} of {repeat} opened: {reasons:?}");
        Ok(())
    }

    fn set_program(&mut self) -> Result<()> {
        call(&mut self.tools, &self.under_test)
    }

    fn set_floor(&mut self, path: &Path) -> Result<()> {
        call(&mut self.tools, if path.wraps() { &self.floor_tunnel } else { &self.floor })
    }

    /// Returns how often the program runs in one round.
    fn calibrate(&mut self, effort: Effort) -> Result<u32> {
        let mut repeat = 10_000;
        let mut taken_ns = 0.0;
        while taken_ns < effort.round_ns as f64 / 8.0 {
            repeat *= 2;
            taken_ns = self.run(repeat)? * f64::from(repeat);
        }
        Ok((f64::from(repeat) * effort.round_ns as f64 / taken_ns) as u32)
    }

    /// Runs the wrapper, and returns the CPU time of a packet in nanoseconds.
    ///
    /// The kernel's own figure is in whole nanoseconds; this thread's time has its fractions, and
    /// does not count what other threads took either.
    fn run(&mut self, repeat: u32) -> Result<f64> {
        let program = self.tools.program("wrap").context("the object has no program wrap")?;
        let program: &Xdp = program.try_into()?;
        let frame = [0; FRAME];
        let context = context(FRAME as u32, self.interface.index);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.ctx_in = Some(&context);
        options.repeat = repeat;
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let result = program.test_run(options).context("running the wrapper")?;
        let after = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let verdict = result.return_value;
        ensure!(verdict == TRANSMIT, "verdict {verdict}: {:?}", self.tables.reasons());
        let ns = |time: nix::sys::time::TimeSpec| time.tv_sec() * 1_000_000_000 + time.tv_nsec();
        Ok((ns(after) - ns(before)) as f64 / f64::from(repeat))
    }
}

/// Has the wrapper call a program.
fn call(tools: &mut Ebpf, program: &ProgramFd) -> Result<()> {
    let map = tools.map_mut("programs").context("the object has no map programs")?;
    let mut programs = ProgramArray::try_from(map)?;
    programs.set(0, program, 0).context("choosing the program to call")
}

/// Returns `struct xdp_md` for a frame of this length on an interface.
fn context(length: u32, interface: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&length.to_ne_bytes());
    context[12..16].copy_from_slice(&interface.to_ne_bytes());
    context
}

/// What the connection table takes.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Capacity {
    pub(crate) path: &'static str,
    /// Connections in the table at its design load.
    pub(crate) connections: u64,
    /// Connections that found no room before that.
    pub(crate) failed: u64,
    /// Bytes of the table for each.
    pub(crate) bytes_each: f64,
    /// Share of slots in use when, later, the first connection found no room.
    pub(crate) full_at: f64,
}
