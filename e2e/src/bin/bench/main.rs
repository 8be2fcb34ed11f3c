//! The benchmark of the packet path: what a packet costs, in units of the least that a program
//! which sends it back could cost.
//!
//! Needs root. `docs/performance.md` says how to read what it prints.

#[allow(dead_code, unreachable_pub, reason = "shared with the wrapper program, which needs more")]
#[path = "../../../../crates/rlvs-ebpf/src/course.rs"]
mod course;
mod frame;
mod interrupt;
#[expect(unsafe_code, reason = "maps are memory")]
mod maps;
mod measure;
mod namespaces;
mod object;
mod paths;
mod report;
mod stage;
mod tables;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::Map;
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rlvs_control::access::{self, Access, Prefix, Verdict};
use rlvs_datapath::abi::{CONNECTIONS4_DEFAULT, CONNECTIONS6_DEFAULT, method, tunnel_form};
use rlvs_linux::dataplane::stages::{self, Body};

use crate::course::Course;
use crate::maps::Mapped;
use crate::measure::{Bench, Effort};
use crate::object::Pairs;
use crate::paths::{CROWD, Kind, Path};
use crate::report::{Report, Spread};
use crate::stage::{Interface, SERVERS, Stage, VIP4, VIP6, server};
use crate::tables::{Tables, Virtual};

/// Measures the packet path, as root.
#[derive(Parser)]
#[command(name = "cargo xtask bench", disable_version_flag = true)]
struct Arguments {
    /// Measure only the paths whose names contain one of these, such as `v4/dr/1M`
    #[arg(long = "path", value_name = "TEXT")]
    paths: Vec<String>,
    /// Fewer paths and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Rounds, each of the floor and of the program
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<usize>,
    /// The CPU to run on; by default the last one
    #[arg(long)]
    cpu: Option<u32>,
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail if a bound is missed
    #[arg(long)]
    check: bool,
    /// Do not measure: run the one path chosen for so long, for a profiler
    #[arg(long, value_name = "SECONDS")]
    dwell: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "loading BPF programs takes root");
    interrupt::listen()?;
    let chosen = |name: String, otherwise: bool| {
        let named = arguments.paths.is_empty() && otherwise;
        named || arguments.paths.iter().any(|part| name.contains(part))
    };
    let mut paths = Path::all();
    paths.retain(|path| chosen(path.name(), !arguments.quick || path.is_quick()));
    let mut through_namespaces = namespaces::Path::all();
    through_namespaces.retain(|path| chosen(path.name(), true));
    ensure!(!paths.is_empty() || !through_namespaces.is_empty(), "no path has such a name");
    let report = if paths.is_empty() {
        ensure!(arguments.dwell.is_none(), "--dwell is for paths that are not through namespaces");
        Some(Report::new(Vec::new(), Vec::new(), Spread::of(Vec::new()), Vec::new()))
    } else {
        Stage::make()?.run(|interface| measure_all(arguments, &paths, interface))?
    };
    let Some(mut report) = report else { return Ok(ExitCode::SUCCESS) };
    if !through_namespaces.is_empty() {
        let cpu = chosen_cpu(arguments)?;
        pin_to(cpu)?;
        report.namespaces = namespaces::measure_all(&through_namespaces, effort(arguments), cpu)?;
    }
    report.print();
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&report).context("writing the figures as JSON")?;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let missed = report.missed();
    for one in &missed {
        eprintln!("missed: {one}");
    }
    let refused = report.namespaces.iter().any(namespaces::Row::is_refused);
    let failed = refused || arguments.check && !missed.is_empty();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure_all(
    arguments: &Arguments,
    paths: &[Path],
    interface: Interface,
) -> Result<Option<Report>> {
    let (cpus, cpu) = (cpus()?, chosen_cpu(arguments)?);
    let bytes = object::read("rlvs.bpf.o")?;
    let load_ms = load_time(&bytes, cpus)?;
    pin_to(cpu)?;
    let sized = |family| {
        let pairs = paths.iter().filter(|path| path.family == family).map(measure::pairs).max();
        pairs.unwrap_or(1).max(if family == 4 { 1 << 20 } else { 1 })
    };
    let mut ebpf = object::load(&bytes, cpus, Pairs { v4: sized(4), v6: sized(6) })?;
    let programs = object::load_programs(&mut ebpf)?;
    let mut bench = furnish(&ebpf, cpus, cpu, interface)?;
    let effort = effort(arguments);
    if let Some(seconds) = arguments.dwell {
        bench.dwell(&paths[0], effort, seconds)?;
        return Ok(None);
    }
    let mut rows = Vec::new();
    for path in paths {
        interrupt::check()?;
        eprintln!("{}", path.name());
        rows.push(bench.measure(path, effort).with_context(|| format!("path {}", path.name()))?);
    }
    let mut capacity = Vec::new();
    if arguments.paths.is_empty() {
        for kind in [Kind::Direct, Kind::Request] {
            capacity.push(bench.capacity(kind).context("filling the table")?);
        }
    }
    Ok(Some(Report::new(rows, programs, load_ms, capacity)))
}

fn effort(arguments: &Arguments) -> Effort {
    Effort {
        rounds: arguments.rounds.unwrap_or(if arguments.quick { 5 } else { 11 }),
        round_ns: if arguments.quick { 40_000_000 } else { 120_000_000 },
    }
}

fn cpus() -> Result<u32> {
    let known = aya::util::nr_cpus();
    let failed = |(what, error)| anyhow::Error::new(error).context(format!("reading {what}"));
    Ok(known.map_err(failed)?.try_into()?)
}

fn chosen_cpu(arguments: &Arguments) -> Result<u32> {
    Ok(match arguments.cpu {
        Some(cpu) => cpu,
        None => cpus()? - 1,
    })
}

/// Fills everything but the connection tables.
fn furnish(ebpf: &Ebpf, cpus: u32, cpu: u32, interface: Interface) -> Result<Bench> {
    let mut tools = EbpfLoader::new()
        .btf(None)
        .map_max_entries("lines", course::TABLE_LINES)
        .load(&object::read("bench.bpf.o")?)?;
    object::load_programs(&mut tools)?;
    let mut course = Mapped::new(&tools, "course")?;
    let mut tables = Tables::new(ebpf, cpus, cpu)?;
    tables.set_settings(hz(&tools, &mut course)?);
    tables.add_interface(&interface);
    let mut services = Vec::new();
    for family in [4, 6] {
        let address: IpAddr = if family == 4 { VIP4.into() } else { VIP6.into() };
        let [a, b, c, d] = SERVERS;
        for (forwarding, form, is_full, numbers) in [
            (method::DIRECT, 0, false, [a, b]),
            (method::MASQUERADE, 0, false, [c, d]),
            (method::MASQUERADE, 0, true, [c, d]),
            (method::TUNNEL, tunnel_form::IPIP, false, [a, b]),
            (method::TUNNEL, tunnel_form::GUE, false, [a, b]),
        ] {
            let id = services.len() as u32 + 1;
            let destination = |number| (id * 4 + u32::from(number), server(family, number));
            let destinations = numbers.map(destination).to_vec();
            let port = tables::PORT + id as u16;
            let method = forwarding;
            let service = Virtual { id, address, port, method, form, is_full, destinations };
            tables.add_service(&service)?;
            services.push((family, service));
        }
        if family == 4 {
            let id = services.len() as u32 + 1;
            let destinations = (0..CROWD).map(|one| (1024 + one, server(4, a))).collect();
            let (port, method) = (tables::PORT + id as u16, method::DIRECT);
            let service =
                Virtual { id, address, port, method, form: 0, is_full: false, destinations };
            tables.add_service(&service)?;
            services.push((family, service));
        }
    }
    write_book(ebpf)?;
    let floor = program_fd(&tools, "floor")?;
    let floor_tunnel = program_fd(&tools, "floor_tunnel")?;
    let floor_line = program_fd(&tools, "floor_line")?;
    let under_test = program_fd(ebpf, "rlvs_xdp")?;
    Ok(Bench {
        tables,
        interface,
        services,
        tools,
        under_test,
        floor,
        floor_tunnel,
        floor_line,
        course,
    })
}

/// Puts lists in force that everybody is on: the whole of the addresses, and random networks of all
/// lengths from 12 to 32, or to 64, of both families.
fn write_book(ebpf: &Ebpf) -> Result<()> {
    let mut access = Access::default();
    let lists = &mut access.all.prefixes;
    let (mut random, mut drawn) = (1_u64, 0);
    let mut draw = || {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        drawn += 1;
        (random >> 32) as u32 ^ drawn
    };
    for everybody in ["0.0.0.0/0", "::/0"] {
        lists.insert(everybody.parse()?, Verdict::Allow);
    }
    let count = 2 * paths::NETWORKS as usize;
    while lists.len() < count {
        let v4 = Ipv4Addr::from_bits(draw());
        let length = 12 + (draw() % 21) as u8;
        lists.insert(Prefix::new(v4.into(), length), Verdict::Allow);
        // Where the clients are, so that they meet the tree.
        let base = u128::from(stage::CLIENT6) >> 32 << 32;
        let v6 = Ipv6Addr::from_bits(base | u128::from(draw()));
        let length = if lists.len() % 2 == 0 { 128 } else { 96 + length };
        lists.insert(Prefix::new(v6.into(), length.min(128)), Verdict::Allow);
    }
    let Some(Map::ArrayOfMaps(books)) = ebpf.map("book") else { bail!("no map of books") };
    let lines = access::book(&access, &BTreeMap::new(), 256_000_000, "");
    rlvs_linux::dataplane::access::write_book(books.fd().as_fd(), &lines)
        .context("writing the book of access")
}

fn program_fd(ebpf: &Ebpf, name: &str) -> Result<ProgramFd> {
    let program = ebpf.program(name).with_context(|| format!("no program {name}"))?;
    let program: &Xdp = program.try_into()?;
    Ok(program.fd()?.try_clone()?)
}

/// Loads several times what serves a native interface and its first service, of IPv4, with tables of
/// default size.
fn load_time(bytes: &[u8], cpus: u32) -> Result<Spread> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let pairs = Pairs { v4: CONNECTIONS4_DEFAULT, v6: CONNECTIONS6_DEFAULT };
        let mut ebpf = object::load(bytes, cpus, pairs)?;
        let needed: Vec<_> = stages::of_family(4).collect();
        stages::load(&mut ebpf, &Body::ALL, &needed, &["rlvs_arm"])?;
        times.push(object::ms(started.elapsed()));
    }
    Ok(Spread::of(times))
}

/// Returns how many jiffies the kernel counts in a second.
fn hz(tools: &Ebpf, course: &mut Mapped<Course>) -> Result<u32> {
    let program = tools.program("clock").context("the object has no program clock")?;
    let program: &Xdp = program.try_into()?;
    let read = || -> Result<u64> {
        let frame = [0; course::FRAME];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        program.test_run(options)?;
        Ok(course.get(0).jiffies)
    };
    let (started, first) = (Instant::now(), read()?);
    while started.elapsed() < Duration::from_millis(200) {}
    let passed = read()? - first;
    let measured = passed as f64 / started.elapsed().as_secs_f64();
    let known = [100.0, 250.0, 300.0, 1000.0];
    let nearest = known
        .into_iter()
        .min_by(|a: &f64, b: &f64| f64::total_cmp(&(a - measured).abs(), &(b - measured).abs()));
    Ok(nearest.unwrap_or(250.0) as u32)
}

fn pin_to(cpu: u32) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu as usize)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to CPU {cpu}"))
}
