//! One virtual router in the namespace that it is started in, for tests: says what happens, ends in
//! order at SIGTERM.
//!
//! Arguments are `key=value`: `interface`, `vrid`, `version`, `family`, `priority`, `interval_ms`,
//! `password`, `vip` (ADDRESS/BITS, repeatable), `excluded` (so too), `source`, `peer` (repeatable),
//! `virtual_mac` (an interface's name), `nopreempt`.

use std::net::IpAddr;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use rlvs_control::model::Family;
use rlvs_control::vrrp::config::{
    Config, Delivery, InstanceConfig, Peer, Preempt, Version, VirtualAddress,
};
use rlvs_linux::vrrp::{Told, Vrrp};

/// How often it is looked whether the end is wanted.
const PERIOD: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let config = configuration(std::env::args().skip(1))?;
    let (ender, end) = std::sync::mpsc::channel();
    ctrlc::set_handler(move || {
        let _heard = ender.send(()).is_ok();
    })?;
    let (vrrp, told) = Vrrp::start(config).map_err(|error| anyhow!("{error}: {error:?}"))?;
    let mut vrrp = Some(vrrp);
    loop {
        match told.recv_timeout(PERIOD) {
            Ok(Told::Ended) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(told) => say(&told),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if end.try_recv().is_ok()
            && let Some(vrrp) = vrrp.take()
        {
            say_status(&vrrp);
            let begun = Instant::now();
            vrrp.stop();
            println!("stopped in {:?}", begun.elapsed());
        }
    }
}

fn say(told: &Told) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    match told {
        Told::State { state, priority, .. } => println!("{time:.6} state {state} {priority}"),
        Told::Log { event, .. } => println!("{time:.6} log {event}"),
        Told::Failed { what } => println!("{time:.6} failed {what}"),
        Told::Without { what } => println!("{time:.6} without {what}"),
        Told::Ended => println!("{time:.6} ended"),
    }
}

fn say_status(vrrp: &Vrrp) {
    for status in vrrp.status() {
        println!("status {status:?}");
    }
}

fn configuration(arguments: impl Iterator<Item = String>) -> Result<Config> {
    let mut config = InstanceConfig::new("VI_1", "eth0", 51);
    let mut peers = Vec::new();
    for argument in arguments {
        let (key, value) = argument.split_once('=').unwrap_or((&argument, ""));
        set(&mut config, &mut peers, key, value).with_context(|| argument.clone())?;
    }
    if !peers.is_empty() {
        config.delivery = Delivery::Unicast { peers, hops: 255, only_peers: true };
    }
    Ok(Config { instances: vec![config], ..Config::default() })
}

fn set(config: &mut InstanceConfig, peers: &mut Vec<Peer>, key: &str, value: &str) -> Result<()> {
    match key {
        "interface" => config.interface = value.into(),
        "vrid" => config.vrid = value.parse()?,
        "priority" => config.priority = value.parse()?,
        "interval_ms" => config.interval = Duration::from_millis(value.parse()?),
        "version" => {
            config.version = if value == "2" { Version::V2 } else { Version::V3 };
        }
        "family" => config.family = if value == "4" { Family::V4 } else { Family::V6 },
        "password" => {
            let mut password = [0; 8];
            let room = password.get_mut(..value.len()).context("at most 8 bytes")?;
            room.copy_from_slice(value.as_bytes());
            config.password = Some(password);
        }
        "vip" => config.addresses.push(virtual_address(value)?),
        "excluded" => config.excluded.push(virtual_address(value)?),
        "source" => config.source = Some(value.parse()?),
        "peer" => peers.push(Peer { address: value.parse()?, hops: (0, 255) }),
        "virtual_mac" => config.virtual_mac = Some(value.into()),
        "nopreempt" => config.preempt = Preempt::Never,
        _ => bail!("no such key"),
    }
    Ok(())
}

fn virtual_address(text: &str) -> Result<VirtualAddress> {
    let (address, bits) = text.split_once('/').context("ADDRESS/BITS")?;
    let address: IpAddr = address.parse()?;
    Ok(VirtualAddress::new(address, bits.parse()?))
}
