//! Names of ports and hosts: what stands in for numbers unless `-n` is given.
//!
//! Ports are looked up in `/etc/services` itself, without the name service switch; hosts through
//! the system's resolver.

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use rlvs_control::model::Protocol;

use super::address;

const SERVICES_FILE: &str = "/etc/services";

/// Where names come from.
pub struct Names {
    source: Source,
    ports: OnceCell<Vec<PortName>>,
}

enum Source {
    System,
    Fixed { services: String, hosts: Vec<(String, IpAddr)> },
}

struct PortName {
    protocol: String,
    port: u16,
    /// The official name, then aliases.
    names: Vec<String>,
}

impl Names {
    /// Returns the names of this system.
    pub fn system() -> Self {
        Self { source: Source::System, ports: OnceCell::new() }
    }

    /// Returns names that depend on no system: the text of a services file, and hosts.
    pub fn fixed(services: &str, hosts: &[(&str, IpAddr)]) -> Self {
        let services = services.to_owned();
        let hosts = hosts.iter().map(|&(name, address)| (name.to_owned(), address)).collect();
        Self { source: Source::Fixed { services, hosts }, ports: OnceCell::new() }
    }

    /// Returns the port of a name or alias.
    pub(crate) fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let of = |entry: &&PortName| {
            entry.protocol == protocol_name(protocol) && entry.names.iter().any(|one| one == name)
        };
        self.services().iter().find(of).map(|entry| entry.port)
    }

    /// Returns the IPv4 address of a host.
    pub(crate) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        match &self.source {
            Source::System => resolve(name),
            Source::Fixed { hosts, .. } => {
                hosts.iter().filter(|host| host.0 == name).find_map(|host| v4(host.1))
            }
        }
    }

    /// Returns an address and port as a table shows it: in numbers, or by name as far as known.
    ///
    /// A port without protocol, as mark services have it, has no name.
    pub(crate) fn endpoint(
        &self,
        of: SocketAddr,
        protocol: Option<Protocol>,
        numeric: bool,
    ) -> String {
        let mut text = String::new();
        self.push_endpoint(of, protocol, numeric, &mut text);
        text
    }

    /// Appends what [`Self::endpoint`] returns.
    pub(crate) fn push_endpoint(
        &self,
        of: SocketAddr,
        protocol: Option<Protocol>,
        numeric: bool,
        to: &mut String,
    ) {
        let host = if numeric { None } else { self.host_name(of.ip()) };
        let port = match protocol {
            Some(protocol) if !numeric => self.port_name(of.port(), protocol),
            _ => None,
        };
        if of.is_ipv6() {
            to.push('[');
        }
        match host {
            Some(host) => to.push_str(&host),
            None => address::push(to, of.ip()),
        }
        to.push_str(if of.is_ipv6() { "]:" } else { ":" });
        match port {
            Some(port) => to.push_str(port),
            None => address::push_number(to, of.port().into()),
        }
    }

    fn host_name(&self, address: IpAddr) -> Option<String> {
        match &self.source {
            Source::System => rlvs_linux::names::host_name(address),
            Source::Fixed { hosts, .. } => {
                hosts.iter().find(|host| host.1 == address).map(|host| host.0.clone())
            }
        }
    }

    fn port_name(&self, port: u16, protocol: Protocol) -> Option<&str> {
        let of =
            |entry: &&PortName| entry.port == port && entry.protocol == protocol_name(protocol);
        self.services().iter().find(of)?.names.first().map(String::as_str)
    }

    fn services(&self) -> &[PortName] {
        self.ports.get_or_init(|| match &self.source {
            // A system without the file has no names for ports, as with the C library.
            Source::System => port_names(&std::fs::read(SERVICES_FILE).unwrap_or_default()),
            Source::Fixed { services, .. } => port_names(services.as_bytes()),
        })
    }
}

fn port_names(file: &[u8]) -> Vec<PortName> {
    String::from_utf8_lossy(file).lines().filter_map(port_name).collect()
}

/// Reads a line of a services file: `name port/protocol alias... # remark`.
fn port_name(line: &str) -> Option<PortName> {
    let mut words = line.split('#').next()?.split_ascii_whitespace();
    let name = words.next()?;
    let (port, protocol) = words.next()?.split_once('/')?;
    let names = std::iter::once(name).chain(words).map(str::to_owned).collect();
    Some(PortName { protocol: protocol.to_owned(), port: port.parse().ok()?, names })
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        // Nothing in a services file is of this.
        Protocol::Other(_) => "",
    }
}

fn resolve(name: &str) -> Option<Ipv4Addr> {
    (name, 0).to_socket_addrs().ok()?.find_map(|socket| v4(socket.ip()))
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
