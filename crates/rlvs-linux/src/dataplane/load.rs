//! Makes the maps and programs of a network namespace and pins them.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_getres};
use rlvs_datapath::abi::{
    CONNECTIONS4_DEFAULT, CONNECTIONS6_DEFAULT, IDS, REASONS, ROUTES, SLOTS4, Settings,
    WIDE_DEFAULT,
};
use rlvs_datapath::schedulers::favourites::EXPIRATION_S;
use rlvs_datapath::stage::Stage;
use rlvs_datapath::state::State;

use super::error::{EDITING, Error, LOADING};
use super::local;
use super::maps::{Maps, reason};
use super::pins::{self, Folder, Unfinished};
use super::stages::{self, Body, Group};
use super::upgrade;

/// The programs, compiled to BPF; kept beside their source.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../rlvs-ebpf/object/rlvs.bpf.o");
/// Names another folder of objects, for tests of a rebuilt one.
const OBJECT_FOLDER: &str = "RLVS_BPF_OBJECT_DIR";

/// Names under which programs are pinned.
pub(super) const XDP: &str = "program_xdp";
pub(super) const TC: &str = "program_tc";
pub(super) const OUT: &str = "program_out";

/// Programs beside those of the bodies.
const RLVS_OUT: &str = "rlvs_out";
const RLVS_ARM: &str = "rlvs_arm";

/// Smallest unit of coarse time.
const UNIT_NS_MIN: u64 = 256_000_000;

/// How large the connection tables are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pairs of IPv4 buckets, a power of two; each holds 8 halves of connections in 128 bytes.
    pub connections4: u32,
    /// Pairs of IPv6 buckets, a power of two; each holds 4 halves.
    pub connections6: u32,
    /// Buckets of the wide table, a power of two; each holds 4 templates or halves of connections of
    /// services without a port, in 256 bytes.
    pub wide: u32,
}

impl Sizes {
    /// Returns the sizes at whose design load, a third of the slots, this many connections fit.
    pub fn for_connections(connections: u32) -> Self {
        let connections4 = (u64::from(connections) * 3).div_ceil(SLOTS4 as u64);
        let connections4 = connections4.next_power_of_two().clamp(2, 1 << 26) as u32;
        let (connections6, wide) = ((connections4 / 2).max(2), (connections4 / 4).max(2));
        Self { connections4, connections6, wide }
    }

    /// Returns for how many connections [`for_connections`](Self::for_connections) makes tables of which none
    /// is smaller than these.
    pub fn connections(&self) -> u32 {
        let ratios = [(self.connections4, 1), (self.connections6, 2), (self.wide, 4)];
        let pairs = ratios.map(|(buckets, ratio)| u64::from(buckets) * ratio);
        let pairs = pairs.into_iter().fold(2, u64::max).next_power_of_two();
        (pairs * SLOTS4 as u64 / 3).min(u64::from(u32::MAX)) as u32
    }
}

impl Default for Sizes {
    fn default() -> Self {
        let (connections4, connections6) = (CONNECTIONS4_DEFAULT, CONNECTIONS6_DEFAULT);
        Self { connections4, connections6, wide: WIDE_DEFAULT }
    }
}

/// Makes and pins the maps in a folder and the programs of bodies, and arms the sweep.
///
/// # Errors
/// A missing capability, or what the kernel did not take.
pub(super) fn load(unfinished: &Unfinished, sizes: Sizes, bodies: &[Body]) -> Result<(), Error> {
    let folder = unfinished.folder();
    let cpus =
        aya::util::nr_cpus().map_err(|(_, error)| load_error("the number of CPUs", &error))?;
    let cpus = cpus as u32;
    let bytes = object()?;
    let mut bpf = EbpfLoader::new()
        .map_max_entries("connections4", sizes.connections4)
        .map_max_entries("connections6", sizes.connections6)
        .map_max_entries("wide", sizes.wide)
        .map_max_entries("scratch", cpus)
        .map_max_entries("rows", IDS * cpus)
        .map_max_entries("routes", ROUTES * cpus)
        .map_max_entries("reasons", REASONS * cpus)
        .map_max_entries("limits", cpus)
        .map_max_entries("errands", cpus)
        .load(&bytes)
        .map_err(|error| load_error("the maps", &error))?;
    for (name, map) in bpf.maps() {
        map.pin(folder.path(name)).map_err(|error| load_error(name, &error))?;
    }
    // The settings come first: from the first packet on the programs rely on them.
    Maps::open_unchecked(folder)?.settings.update(0, &settings(cpus, sizes)?)?;
    let refused = stages::load(&mut bpf, bodies, &[], &[RLVS_ARM])?;
    tell(&refused);
    for &body in bodies {
        pin(&mut bpf, folder, body)?;
    }
    upgrade::record(folder)?;
    arm(&mut bpf)
}

/// Makes all programs that a folder has once more, from this program's object and over the same maps,
/// and pins them in `next`, a folder in it. What hangs on links stays as it is; the sweep goes over.
///
/// # Errors
/// As [`load`].
pub(super) fn load_beside(folder: &Folder, next: &str) -> Result<(), Error> {
    let bodies: Vec<Body> =
        Body::ALL.into_iter().filter(|body| folder.path(body.pin()).exists()).collect();
    let mut stages = stages::named(folder)?;
    // The object before may have done without them.
    for group in local::groups(&Maps::open_unchecked(folder)?.settings()) {
        if !group.stages().any(|stage| stages.contains(&stage)) {
            stages.extend(group.stages());
        }
    }
    let bytes = object()?;
    let mut loader = EbpfLoader::new();
    let names = folder.names()?;
    // The number of a stage is the object's own affair, so each has arrays of its own.
    let own: Vec<&str> = Body::ALL.map(Body::stages).to_vec();
    for name in names.iter().filter(|name| !own.contains(&name.as_str())) {
        loader.map_pin_path(name, folder.path(name));
    }
    let mut bpf = loader.load(&bytes).map_err(|error| load_error("the programs", &error))?;
    let within = |name: &str| folder.path(&format!("{next}/{name}"));
    for name in own {
        let map = bpf.map(name).ok_or_else(|| stages::missing(name))?;
        map.pin(within(name)).map_err(|error| load_error(name, &error))?;
    }
    let has_out = folder.path(OUT).exists();
    let others: &[&str] = if has_out { &[RLVS_OUT, RLVS_ARM] } else { &[RLVS_ARM] };
    tell(&stages::load(&mut bpf, &bodies, &stages, others)?);
    for body in bodies {
        pin_at(&mut bpf, body, within(body.pin()))?;
    }
    if has_out {
        pin_out(&mut bpf, within(OUT))?;
    }
    arm(&mut bpf)
}

/// Makes the program that hangs at egress besides the others of a folder, unless it is there: only
/// servers on this host need it.
///
/// # Errors
/// As [`load`].
pub(super) fn ensure_out(folder: &Folder) -> Result<(), Error> {
    upgrade::ensure(folder)?;
    if folder.path(OUT).exists() {
        return Ok(());
    }
    let mut bpf = reopen(folder)?;
    stages::load_program(&mut bpf, RLVS_OUT)?;
    pin_out(&mut bpf, folder.path(OUT))
}

fn pin_out(bpf: &mut Ebpf, path: PathBuf) -> Result<(), Error> {
    let out: &mut SchedClassifier = program(bpf, RLVS_OUT)?;
    out.pin(path).map_err(|error| load_error("the TC program for egress", &error))
}

/// Makes the programs of a body besides the others of a folder, unless they are there.
///
/// # Errors
/// As [`load`].
pub(super) fn ensure_body(folder: &Folder, body: Body) -> Result<(), Error> {
    if folder.path(body.pin()).exists() {
        return Ok(());
    }
    let stages = stages::present(folder)?;
    let mut bpf = reopen(folder)?;
    tell(&stages::load(&mut bpf, &[body], &stages, &[])?);
    pin(&mut bpf, folder, body)
}

/// Makes the stages of a group besides the other programs of the calling thread's network namespace,
/// unless they are there.
///
/// # Errors
/// As [`load`].
pub(super) fn ensure_group(group: Group) -> Result<(), Error> {
    ensure(&group.stages().collect::<Vec<_>>())
}

/// As [`ensure_group`] the stages that every service of an IP version (4 or 6) needs.
///
/// # Errors
/// As [`load`].
pub(super) fn ensure_family(family: u8) -> Result<(), Error> {
    ensure(&stages::of_family(family).collect::<Vec<_>>())
}

/// As [`ensure_group`] those of a group's stages that an IP version (4 or 6) needs.
///
/// # Errors
/// As [`load`].
pub(super) fn ensure_group_of(group: Group, family: u8) -> Result<(), Error> {
    ensure(&group.stages().filter(|stage| stage.family() == Some(family)).collect::<Vec<_>>())
}

/// Makes every program besides the others of the calling thread's network namespace, so that no
/// later edit loads any.
///
/// # Errors
/// A missing capability, nothing attached, or what the kernel did not take.
pub fn ensure_all() -> Result<(), Error> {
    let folder = attached()?;
    let _lock = folder.lock()?;
    ensure(Stage::ALL)?;
    ensure_out(&folder)
}

fn attached() -> Result<Folder, Error> {
    pins::open()?.ok_or(Error::NotAttached)
}

fn ensure(stages: &[Stage]) -> Result<(), Error> {
    let folder = attached()?;
    upgrade::ensure(&folder)?;
    stages::ensure(&folder, stages, || reopen(&folder)).map(|refused| tell(&refused))
}

/// Opens the object over the maps of a folder.
pub(super) fn reopen(folder: &Folder) -> Result<Ebpf, Error> {
    let bytes = object()?;
    let names = folder.names()?;
    let mut loader = EbpfLoader::new();
    for name in &names {
        loader.map_pin_path(name, folder.path(name));
    }
    loader.load(&bytes).map_err(|error| load_error("the programs", &error))
}

fn tell(refused: &[String]) {
    for name in refused {
        eprintln!(
            "rlvs: this kernel does not take {name}: the packets that it is for are left to the stack"
        );
    }
}

/// Pins the program of a body that hangs on interfaces; those that it hands on to stay as long as the
/// pinned maps that name them.
fn pin(bpf: &mut Ebpf, folder: &Folder, body: Body) -> Result<(), Error> {
    pin_at(bpf, body, folder.path(body.pin()))
}

fn pin_at(bpf: &mut Ebpf, body: Body, path: PathBuf) -> Result<(), Error> {
    match body {
        Body::Xdp => program::<&mut Xdp>(bpf, body.program())?.pin(path),
        Body::Tc => program::<&mut SchedClassifier>(bpf, body.program())?.pin(path),
    }
    .map_err(|error| load_error(body.program(), &error))
}

pub(super) fn object() -> Result<Cow<'static, [u8]>, Error> {
    object_of("rlvs.bpf.o", OBJECT)
}

/// Returns an object: the one built in, or that of the folder which a test of rebuilt ones names.
pub(super) fn object_of(name: &str, built_in: &'static [u8]) -> Result<Cow<'static, [u8]>, Error> {
    match std::env::var_os(OBJECT_FOLDER) {
        None => Ok(built_in.into()),
        Some(folder) => {
            let path = PathBuf::from(folder).join(name);
            let bytes =
                fs::read(&path).map_err(Error::io(format!("reading {}", path.display())))?;
            Ok(bytes.into())
        }
    }
}

/// How long the timer is asked for.
const ARM_MAX: Duration = Duration::from_millis(200);

/// Runs the program that starts the sweep's timer, which outlives it. A kernel from 6.18 on takes the timer's
/// memory without waiting for locks (`kmalloc_nolock()`), and has none while another CPU holds them.
fn arm(bpf: &mut Ebpf) -> Result<(), Error> {
    const XDP_PASS: u32 = 2;
    let program: &mut Xdp = program(bpf, RLVS_ARM)?;
    let frame = [0_u8; 64];
    let deadline = Instant::now() + ARM_MAX;
    while Instant::now() < deadline {
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
        let result =
            program.test_run(options).map_err(|error| load_error("arming the sweep", &error))?;
        if result.return_value == XDP_PASS {
            return Ok(());
        }
        thread::yield_now();
    }
    let reason = "the kernel did not start the timer".to_owned();
    Err(Error::Load { what: "arming the sweep".to_owned(), reason })
}

pub(super) fn program<'a, P>(bpf: &'a mut Ebpf, name: &str) -> Result<P, Error>
where
    P: TryFrom<&'a mut aya::programs::Program>,
{
    bpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| Error::Load {
        what: name.to_owned(),
        reason: "the object has no such program".to_owned(),
    })
}

/// How much of what the verifier said is told: the end, where it says why.
const VERIFIER_LINES: usize = 20;

/// Tells a program that the verifier refused from a missing capability: both may be EACCES, but only
/// the verifier leaves a log.
pub(super) fn program_error(what: &str, error: &ProgramError) -> Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return load_error(what, error);
    };
    if matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
        && let Some(refused) = Error::refused(&format!("loading {what}"), LOADING)
    {
        return refused;
    }
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(VERIFIER_LINES)..).unwrap_or_default();
    if last.is_empty() {
        return load_error(what, io_error);
    }
    let reason =
        format!("the kernel's verifier refused it ({io_error}){}:\n{}", age(), last.join("\n"));
    Error::Load { what: what.to_owned(), reason }
}

pub(super) fn load_error(what: &str, error: &dyn std::error::Error) -> Error {
    let reason = reason(error);
    if (reason.contains("Operation not permitted") || reason.contains("Permission denied (os"))
        && let Some(refused) = Error::refused(&format!("loading {what}"), EDITING)
    {
        return refused;
    }
    Error::Load { what: what.to_owned(), reason: reason + &age() }
}

/// One of how many new connections `drop_packet` 3 drops unless `am_droprate` says otherwise.
pub(super) const DROP_RATE: u32 = 10;
/// Pages of a connection table that are free while it is not taken for full, unless `amemthresh` says
/// otherwise.
pub(super) const AMEMTHRESH: u32 = 1024;
/// The oldest kernel that the programs are tested on.
const KERNEL: (u32, u32) = (6, 1);

/// Says so if the kernel is older than what the programs need, to be put into an error. Nothing is
/// decided by it.
fn age() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if !is_old(&release) {
        return String::new();
    }
    format!(
        "; this is Linux {}, and the programs need {}.{} or later",
        release.trim(),
        KERNEL.0,
        KERNEL.1
    )
}

fn is_old(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < KERNEL,
        _ => false,
    }
}

fn settings(cpus: u32, sizes: Sizes) -> Result<Settings, Error> {
    let (clock_shift, unit_ns) = clock()?;
    let units = |seconds: u32| (u64::from(seconds) * 1_000_000_000).div_ceil(unit_ns) as u32;
    let mut timeouts = [0; 32];
    for (timeout, seconds) in timeouts.iter_mut().zip(State::TIMEOUTS_S) {
        *timeout = units(seconds);
    }
    Ok(Settings {
        layout: pins::layout(),
        cpus,
        connections4_mask: sizes.connections4 - 1,
        connections6_mask: sizes.connections6 - 1,
        wide_mask: sizes.wide - 1,
        keys: keys()?,
        clock_shift,
        second: units(1),
        timeouts,
        services: 1,
        destinations: 1,
        drop_rate_wanted: DROP_RATE,
        amemthresh: AMEMTHRESH,
        lblc_expiration: EXPIRATION_S,
        lblcr_expiration: EXPIRATION_S,
        ..Settings::default()
    })
}

/// Returns how many bits to shift jiffies by, and how many nanoseconds a unit of coarse time has.
/// The tick is what the coarse clocks advance by.
pub(super) fn clock() -> Result<(u32, u64), Error> {
    let tick_ns = tick_ns()?;
    let shift = (0..31).find(|shift| tick_ns << shift >= UNIT_NS_MIN).unwrap_or(31);
    Ok((shift, tick_ns << shift))
}

/// Returns the nanoseconds of a tick of the kernel's clock.
///
/// # Errors
/// The clock cannot be read.
pub fn tick_ns() -> Result<u64, Error> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|error| Error::io("asking for the kernel's tick")(error.into()))?;
    Ok((tick.tv_nsec() as u64).max(1))
}

/// Returns seconds in units of coarse time, rounded up.
pub(super) fn units(seconds: u32) -> Result<u32, Error> {
    let (_, unit_ns) = clock()?;
    Ok((u64::from(seconds) * 1_000_000_000).div_ceil(unit_ns) as u32)
}

/// Returns whole seconds of units of coarse time.
pub(super) fn seconds(units: u32) -> u32 {
    clock().map_or(0, |(_, unit_ns)| (u64::from(units) * unit_ns / 1_000_000_000) as u32)
}

/// Draws the secrets of the hashes.
fn keys() -> Result<[u64; 3], Error> {
    use std::io::Read;
    let mut bytes = [0; 24];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(Error::io("reading /dev/urandom"))?;
    let mut keys = [0; 3];
    for (key, bytes) in keys.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *key = u64::from_ne_bytes(*bytes);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::is_old;

    #[test]
    fn kernels_are_compared_by_number() {
        for release in ["5.10.0-35-amd64\n", "5.4", "4.19.0", "6.0.1"] {
            assert!(is_old(release), "{release}");
        }
        for release in ["6.1.0-56-amd64\n", "6.18.44", "10.0", "", "unknown"] {
            assert!(!is_old(release), "{release}");
        }
    }
}
