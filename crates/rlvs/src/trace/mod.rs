//! `rlvs trace`: what the balancer would do with a packet, and why; nothing is sent, nothing changes.
//!
//! The data plane itself answers, over a copy of the tables
//! ([`shadow`]); what was seen there is put into words by
//! [`explain`].

pub mod explain;
pub mod packet;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rlvs_control::model::Protocol;
use rlvs_linux::dataplane::Error;
use rlvs_linux::dataplane::look::Look;
use rlvs_linux::dataplane::shadow::{self, Question};
use rlvs_linux::route::{Link, Rtnetlink};

use crate::words;
use explain::Scene;
use packet::{Asked, Becomes};

/// Exit status if the packet would not be forwarded.
const NOT_FORWARDED: u8 = 3;

/// Arguments of `rlvs trace`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Protocol of the packet
    #[arg(long, value_enum, default_value = "tcp", alias = "protocol")]
    proto: Proto,
    /// Where it comes from: ADDRESS:PORT
    #[arg(value_parser = words::end)]
    client: SocketAddr,
    /// Where it goes: ADDRESS:PORT of a service
    #[arg(value_parser = words::end)]
    virtual_address: SocketAddr,
    /// Ask about a packet in the middle of a connection, not about one that begins one
    #[arg(long)]
    established: bool,
    /// Interface that it comes in by; the one towards the client if not given
    #[arg(long)]
    interface: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl From<Proto> for Protocol {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Self::Tcp,
            Proto::Udp => Self::Udp,
            Proto::Sctp => Self::Sctp,
        }
    }
}

/// Runs `rlvs trace`. The exit status is 3 if the packet would not be forwarded.
///
/// # Errors
/// Nothing is attached where the packet would come in, a missing capability, ends of two families.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let asked = Asked {
        protocol: arguments.proto.into(),
        client: arguments.client,
        target: arguments.virtual_address,
        established: arguments.established,
    };
    let scene = look(asked, arguments.interface.as_deref())?;
    let out = &mut io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", scene.json())?;
    } else {
        scene.write(out)?;
    }
    Ok(if scene.is_forwarded() { ExitCode::SUCCESS } else { ExitCode::from(NOT_FORWARDED) })
}

/// Finds out what would become of a packet that comes in by an interface, or else by the one towards
/// its client.
fn look(asked: Asked, interface: Option<&str>) -> Result<Scene> {
    let (client, target) = (asked.client.ip(), asked.target.ip());
    ensure!(client.is_ipv4() == target.is_ipv4(), "{client} and {target} are of two families");
    let attached = Look::open()?.ok_or(Error::NotAttached)?.attached()?;
    let mut net = Rtnetlink::open()?;
    let links = net.links()?;
    let link = match interface {
        Some(name) => links.iter().find(|link| link.name == name),
        None => by_route(&mut net, &links, client)?,
    };
    let link = link.with_context(|| match interface {
        Some(name) => format!("there is no interface {name}"),
        None => format!("there is no route to {client}; --interface says where packets come in"),
    })?;
    let is_attached = |link: &Link| attached.iter().any(|one| one.name == link.name);
    // A port of a bridge or bond, or what a VLAN sits on, may be what is attached.
    let below =
        |other: &&Link| other.controller == Some(link.index) || link.lower == Some(other.index);
    let entry = if is_attached(link) {
        Some(link)
    } else {
        links.iter().filter(below).find(|link| is_attached(link))
    };
    let Some(entry) = entry else {
        bail!(
            "packets from {client} come in by {0}, where nothing is attached: they are the stack's; \
             `rlvs attach {0}` attaches it, --interface names another",
            link.name
        );
    };
    let mac = entry.mac.with_context(|| format!("{} has no Ethernet address", entry.name))?;
    let answer = shadow::ask(&Question {
        frame: &asked.frame(mac)?,
        interface: entry.index,
        client: asked.client,
        target: asked.target,
        protocol: asked.protocol.number(),
    })?;
    let name = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    };
    let chosen = answer.chosen.as_ref();
    let server = chosen.and_then(|chosen| answer.servers.get(chosen.server));
    let method = server.map(|server| server.method);
    // The data plane leaves to the stack what is for this host, and what the host knows no way for.
    let no_way = match server {
        Some(server) => net.way(server.id.address)?.is_none(),
        None => false,
    };
    Ok(Scene {
        asked,
        interface: entry.name.clone(),
        way: chosen.and_then(|chosen| chosen.interface).map(name),
        becomes: Becomes::read(&answer.frame, method),
        no_way,
        answer,
    })
}

fn by_route<'a>(
    net: &mut Rtnetlink,
    links: &'a [Link],
    client: IpAddr,
) -> Result<Option<&'a Link>> {
    let Some(way) = net.way(client)? else { return Ok(None) };
    ensure!(
        !way.local,
        "{client} is an address of this host: trace asks about packets that come in by an interface"
    );
    Ok(way.hop.and_then(|(index, _)| links.iter().find(|link| link.index == index)))
}
