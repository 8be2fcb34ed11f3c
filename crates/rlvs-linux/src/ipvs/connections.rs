//! The lines of `/proc/net/ip_vs_conn`, the only place where the kernel shows connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rlvs_control::model::{Connection, ConnectionLine, EngineData, Protocol};

use super::message::Malformed;

/// The names that IPVS has for states of connections.
const STATES: [&str; 25] = [
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
    "UDP",
    "ASSURED",
    "INIT1",
    "INIT",
    "COOKIE_SENT",
    "COOKIE_REPLIED",
    "COOKIE_WAIT",
    "COOKIE",
    "COOKIE_ECHOED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECEIVED",
    "SHUTDOWN_ACK_SENT",
    "REJECTED",
    "CLOSED",
];

/// Reads the whole file.
///
/// # Errors
/// [`Malformed::Line`] for the first line that is none of a connection.
pub fn lines(text: &str) -> Result<Vec<ConnectionLine>, Malformed> {
    let body = text.lines().skip(1).filter(|line| !line.is_empty());
    body.map(|text| line(text).ok_or_else(|| Malformed::Line(text.to_owned()))).collect()
}

/// Reads a line: protocol, client, virtual address and destination each with its port, state,
/// seconds left, and what a persistence engine keeps, if there is one.
fn line(text: &str) -> Option<ConnectionLine> {
    let mut words = text.split_ascii_whitespace();
    let protocol = words.next()?.to_owned();
    let client = endpoint(words.next()?, words.next()?)?;
    let virtual_address = endpoint(words.next()?, words.next()?)?;
    let destination = endpoint(words.next()?, words.next()?)?;
    let state = words.next()?.to_owned();
    let expires_s = words.next()?.parse().ok()?;
    let engine = words.next().map(|name| EngineData {
        engine: name.to_owned(),
        data: words.next().unwrap_or_default().to_owned(),
    });
    Some(ConnectionLine {
        protocol: protocol.into(),
        state: state.into(),
        expires_s,
        client,
        virtual_address,
        destination,
        engine,
        is_learnt: None,
    })
}

/// An IPv4 address is eight hexadecimal digits, one of IPv6 has colons; a port is four digits.
fn endpoint(address: &str, port: &str) -> Option<SocketAddr> {
    let address: IpAddr = match address.contains(':') {
        true => address.parse().ok()?,
        false => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// Returns a connection by its types, unless it is a template of a mark service, which has no
/// protocol.
pub fn typed(line: &ConnectionLine) -> Option<Connection> {
    let protocol = match &*line.protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let state = STATES.into_iter().find(|&name| name == line.state).unwrap_or("NONE");
    Some(Connection {
        protocol,
        state,
        expires_s: line.expires_s,
        client: line.client,
        virtual_address: line.virtual_address,
        destination: line.destination,
        engine: line.engine.clone(),
        is_learnt: false,
    })
}
