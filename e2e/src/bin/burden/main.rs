//! What the daemon costs: reading a large file, many checks, a reload that changes every weight, and
//! memory.
//!
//! Needs root. `docs/availability.md` says how to read what it prints.

mod adverts;
mod daemon;
mod figure;
mod floor;
#[path = "../bench/interrupt.rs"]
mod interrupt;
mod network;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;

use crate::adverts::Adverts;
use crate::daemon::Daemon;
use crate::figure::Figure;
use crate::network::Network;

/// Measures what the daemon costs, as root.
#[derive(Parser)]
#[command(name = "cargo xtask burden", disable_version_flag = true)]
struct Arguments {
    /// Real servers that are checked
    #[arg(long, default_value_t = 10_000)]
    servers: u32,
    /// Rounds of checks, of five seconds each
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Fail if a bound is missed
    #[arg(long)]
    check: bool,
}

/// Real servers in the large file.
const LARGE: u32 = 40_000;
/// Real servers of each virtual server.
const EACH: u32 = 100;
/// `delay_loop` of the checks.
const ROUND: Duration = Duration::from_secs(5);
/// The interval of the virtual router.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);
/// How long anything may take.
const TIME_MAX: Duration = Duration::from_secs(60);
/// How often a measurement of one moment is repeated.
const TIMES: u32 = 5;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("burden: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    interrupt::listen()?;
    let program = std::env::current_exe()?.with_file_name("rlvs-e2e");
    ensure!(program.is_file(), "{} is not built: use cargo xtask burden", program.display());
    let network = Network::new()?;
    let mut figures = parse(&program, &network)?;
    figures.extend(checks(&program, &network, arguments)?);
    let missed = figures.iter().filter(|figure| figure.is_missed()).count();
    let failed = arguments.check && missed > 0;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Returns the file: virtual servers, and a virtual router if `speaks`.
fn configuration(servers: u32, weight: u32, speaks: bool) -> String {
    let mut text = String::new();
    if speaks {
        text += "vrrp_instance VI_1 {\n state MASTER\n interface eth1\n virtual_router_id 51\n \
            version 3\n priority 255\n advert_int 0.01\n virtual_ipaddress {\n 10.9.1.100/24\n }\n}\n";
    }
    for number in 0..servers {
        if number % EACH == 0 {
            let close = if number == 0 { "" } else { "}\n" };
            let (high, low) = (number / EACH / 250, number / EACH % 250);
            text += &format!(
                "{close}virtual_server 10.8.{high}.{low} 80 {{\n delay_loop 5\n lb_algo wrr\n \
                 lb_kind NAT\n protocol TCP\n"
            );
        }
        let address = network::server(number);
        text += &format!(
            " real_server {address} 80 {{\n weight {weight}\n TCP_CHECK {{\n connect_timeout 3\n \
             }}\n }}\n"
        );
    }
    text + "}\n"
}

fn written(network: &Network, name: &str, text: &str) -> Result<PathBuf> {
    let path = network.directory().join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Reads a large file, each time by a new process.
fn parse(program: &Path, network: &Network) -> Result<Vec<Figure>> {
    let file = written(network, "large.conf", &configuration(LARGE, 1, false))?;
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        interrupt::check()?;
        let (begin, before) = (Instant::now(), children()?);
        let status =
            Command::new(program).arg("check").arg(&file).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "rlvs check: {status}");
        wall.push(begin.elapsed().as_secs_f64());
        cpu.push((children()? - before).as_secs_f64());
    }
    Ok(vec![
        Figure::new("40,000 real servers read, cold: CPU", "s", &cpu, Some(0.4)),
        Figure::new("the same: wall", "s", &wall, None),
    ])
}

/// Returns the CPU time of processes of ours that have ended.
fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

/// Lets a daemon check many servers, and reload.
fn checks(program: &Path, network: &Network, arguments: &Arguments) -> Result<Vec<Figure>> {
    let servers = arguments.servers;
    let few = written(network, "few.conf", &configuration(1, 1, true))?;
    let mut base = 0;
    // The first attaches the data plane, which the others find there.
    for _ in 0..2 {
        let daemon = Daemon::start(program, network, &few)?;
        daemon.wait_said("change(s) of the table in force", 1)?;
        base = daemon.memory_bytes()?;
    }

    let floor = floor::connections(network, 20_000)?;
    let file = written(network, "many.conf", &configuration(servers, 1, true))?;
    let daemon = Daemon::start(program, network, &file)?;
    daemon.wait_said("change(s) of the table in force", 1)?;
    // The first rounds, which are not apart yet.
    network.wait_accepted(u64::from(servers) * 2)?;
    let mut figures = rounds(&daemon, network, arguments, floor)?;
    let memory = daemon.memory_bytes()?.saturating_sub(base) as f64 / f64::from(servers);
    figures.push(Figure::new("memory of a real server", "bytes", &[memory], Some(1024.0)));
    figures.extend(reloads(&daemon, network, servers, &file)?);
    network.wait_accepted(network.accepted() + u64::from(servers))?;
    let memory = daemon.memory_bytes()?.saturating_sub(base) as f64 / f64::from(servers);
    figures.push(Figure::new(
        "the same a round after the reloads",
        "bytes",
        &[memory],
        Some(1024.0),
    ));
    Ok(figures)
}

/// Measures rounds of checks by the CPU time of the daemon's threads.
fn rounds(
    daemon: &Daemon,
    network: &Network,
    arguments: &Arguments,
    floor: Duration,
) -> Result<Vec<Figure>> {
    let (mut share, mut each, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    // The virtual router advertises a hundred times a second, which is no check's doing.
    let of_checks = || daemon.cpu_of(|thread| thread != "vrrp");
    for _ in 0..arguments.rounds {
        let (accepted, all, before) = (network.accepted(), daemon.cpu()?, of_checks()?);
        let begin = Instant::now();
        network.wait_accepted(accepted + u64::from(arguments.servers))?;
        let used = of_checks()? - before;
        let router = (daemon.cpu()? - all).saturating_sub(used);
        beside.push(router.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0);
        let checks = (network.accepted() - accepted) as f64;
        let used = used.as_secs_f64() / checks;
        each.push(used * 1e6);
        share.push(used * f64::from(arguments.servers) / ROUND.as_secs_f64() * 100.0);
    }
    let title = format!("{} TCP checks every 5 s: share of a core", arguments.servers);
    let floor = floor.as_secs_f64() * 1e6;
    Ok(vec![
        Figure::new(&title, "%", &share, Some(10.0)),
        Figure::new("a check: CPU", "µs", &each, None),
        Figure::new("a virtual router of 10 ms beside them", "%", &beside, None),
        Figure::new("a connection opened and closed by hand: CPU", "µs", &[floor], None),
    ])
}

/// Changes every weight by SIGHUP, and looks at the advertisements meanwhile.
fn reloads(daemon: &Daemon, network: &Network, servers: u32, file: &Path) -> Result<Vec<Figure>> {
    let adverts = Adverts::start(network)?;
    let (mut wall, mut cpu, mut late) = (Vec::new(), Vec::new(), Vec::new());
    let calm = adverts.latest(Duration::from_secs(2))?;
    for time in 0..TIMES {
        fs::write(file, configuration(servers, 2 + time, true))?;
        let said = daemon.count_said("change(s) of the table in force");
        let used = daemon.cpu()?;
        adverts.forget();
        let begin = Instant::now();
        daemon.signal(Signal::SIGHUP)?;
        daemon.wait_said("change(s) of the table in force", said + 1)?;
        wall.push(begin.elapsed().as_secs_f64());
        cpu.push((daemon.cpu()? - used).as_secs_f64());
        late.push(adverts.latest(Duration::from_millis(100))?.as_secs_f64() * 1e3);
    }
    let calm = calm.as_secs_f64() * 1e3;
    Ok(vec![
        Figure::new("every weight changed by SIGHUP: wall", "s", &wall, Some(0.2)),
        Figure::new("the same: CPU", "s", &cpu, None),
        Figure::new("an advertisement of 10 ms meanwhile: later by", "ms", &late, Some(5.0)),
        Figure::new("the same in calm", "ms", &[calm], None),
    ])
}
