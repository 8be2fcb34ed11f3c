//! What a packet costs that comes in by a wire and goes out by one, beside what it costs in the
//! kernel's own balancing or forwarding.
//!
//! A row is measured in three networks of the same shape, which differ in their director: one
//! that drops, which is what sending and counting cost; ours; and the kernel's. They take turns.

mod generator;
mod paths;
mod report;
#[allow(unreachable_pub, reason = "shared with the programs at the ends, which need it")]
#[path = "../../../../../crates/rlvs-ebpf/src/wire.rs"]
mod wire;
mod world;

use anyhow::{Context, Result, ensure};
use rlvs_wire::tcp;

use self::generator::{Generator, Shot};
pub(crate) use self::paths::Path;
use self::paths::Traffic;
pub(crate) use self::report::{Row, missed, print};
use self::world::{Director, World};
use crate::course;
use crate::interrupt;
use crate::measure::Effort;
use crate::report::Spread;

/// One packet of so many may get lost; more, and what was measured is not forwarding.
const LOST_OF: u64 = 1_000;

/// Measures the paths. One that cannot be measured has a reason in place of figures.
///
/// # Errors
/// Ctrl-C.
pub(crate) fn measure_all(paths: &[Path], effort: Effort, cpu: u32) -> Result<Vec<Row>> {
    world::sweep()?;
    let mut generator = Generator::new(cpu)?;
    let mut rows = Vec::new();
    for path in paths {
        eprintln!("{}", path.name());
        let measured = measure(&mut generator, path, effort);
        interrupt::check()?;
        rows.push(Row::new(path, measured));
    }
    Ok(rows)
}

/// Nanoseconds of CPU time for a packet, and what they make.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Figures {
    /// With a director that drops.
    pub(crate) dropping_ns: Spread,
    /// With ours.
    pub(crate) ours_ns: Spread,
    /// With the kernel's.
    pub(crate) kernel_ns: Spread,
    /// The kernel's by ours, all included.
    pub(crate) ratio: Spread,
    /// The kernel's by ours, both without what sending and counting cost.
    pub(crate) net: Spread,
}

fn measure(generator: &mut Generator, path: &Path, effort: Effort) -> Result<Figures> {
    let kernel =
        if path.traffic == Traffic::Direct { Director::Router } else { Director::Nftables };
    let build = |director| {
        World::build(director, path, generator.sink())
            .with_context(|| format!("a network whose director is {director:?}"))
    };
    let worlds = [build(Director::Dropping)?, build(Director::Ours)?, build(kernel)?];
    for world in &worlds {
        open(generator, world, path).with_context(|| format!("director {:?}", world.director))?;
    }
    let mut repeats = [0; 3];
    for (repeat, world) in repeats.iter_mut().zip(&worlds) {
        *repeat = calibrate(generator, world, path, effort)?;
    }
    let (mut ns, mut ratio, mut net) = ([const { Vec::new() }; 3], Vec::new(), Vec::new());
    // The first round only warms up.
    for round in 0..=effort.rounds {
        let mut of_round = [0.0; 3];
        for ((ns, world), repeat) in of_round.iter_mut().zip(&worlds).zip(repeats) {
            interrupt::check()?;
            *ns = send(generator, world, path, repeat)?;
        }
        if round > 0 {
            let [dropping, ours, kernel] = of_round;
            ratio.push(kernel / ours);
            net.push((kernel - dropping) / (ours - dropping));
            ns.iter_mut().zip(of_round).for_each(|(all, one)| all.push(one));
        }
    }
    let [dropping_ns, ours_ns, kernel_ns] = ns.map(Spread::of);
    let (ratio, net) = (Spread::of(ratio), Spread::of(net));
    Ok(Figures { dropping_ns, ours_ns, kernel_ns, ratio, net })
}

/// Opens the connections of a path, as clients and servers do.
fn open(generator: &mut Generator, world: &World, path: &Path) -> Result<()> {
    let handshake = [(false, tcp::SYN), (true, tcp::SYN | tcp::ACK), (false, tcp::ACK)];
    for (reply, flags) in handshake {
        let passes = !reply || path.traffic != Traffic::Direct;
        if world.director.balances() && passes {
            let shot = Shot { flows: path.flows, order: course::SEQUENTIAL, reply, flags };
            fire(generator, world, shot, path.flows)
                .with_context(|| format!("opening {} connections", path.flows))?;
        }
    }
    Ok(())
}

fn calibrate(generator: &mut Generator, world: &World, path: &Path, effort: Effort) -> Result<u32> {
    let mut repeat = 10_000;
    let mut taken_ns = 0.0;
    while taken_ns < effort.round_ns as f64 / 8.0 {
        interrupt::check()?;
        repeat *= 2;
        taken_ns = send(generator, world, path, repeat)? * f64::from(repeat);
    }
    Ok((f64::from(repeat) * effort.round_ns as f64 / taken_ns) as u32)
}

/// Sends packets of established connections, and returns the CPU time of each in nanoseconds.
fn send(generator: &mut Generator, world: &World, path: &Path, packets: u32) -> Result<f64> {
    let reply = path.traffic == Traffic::Reply;
    let shot = Shot { flows: path.flows, order: course::RANDOM, reply, flags: tcp::ACK };
    let ns = fire(generator, world, shot, packets)
        .with_context(|| format!("director {:?}", world.director))?;
    Ok(ns as f64 / f64::from(packets))
}

fn fire(generator: &mut Generator, world: &World, shot: Shot, packets: u32) -> Result<u64> {
    let sent = generator.fire(world, shot, packets)?;
    let lost = u64::from(packets).saturating_sub(sent.right);
    ensure!(
        lost * LOST_OF <= u64::from(packets) && sent.wrong == 0,
        "{packets} packets sent, {} came out as they should and {} otherwise{}",
        sent.right,
        sent.wrong,
        world.why()
    );
    Ok(sent.cpu_ns)
}
