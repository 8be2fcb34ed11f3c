//! One scenario: commands and packets, and a text of what came of them.

use std::fmt::Write;
use std::net::SocketAddr;

use e2e::crossing::{Crossing, Side};
use e2e::network::{self, Network};
use e2e::packet::{Kind, Message, Packet};
use e2e::scene;

use crate::canonical::canonical;

/// Number of the client that most scenarios have.
const EVERYBODYS: u8 = 7;

/// The scenario's own ports, so that what earlier ones have left behind does not matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// Of the client; the following ones are its own too.
    pub(crate) client: u16,
    /// Of the service.
    pub(crate) service: u16,
    /// Of NAT destinations.
    pub(crate) real: u16,
}

/// A scenario that is being played.
pub(crate) struct Play<'a, 'n> {
    crossing: &'a mut Crossing<'n>,
    pub(crate) family: u8,
    pub(crate) ports: Ports,
    /// Number of the client's address.
    pub(crate) client: u8,
    number: u16,
    text: String,
}

impl<'a, 'n> Play<'a, 'n> {
    pub(crate) fn new(crossing: &'a mut Crossing<'n>, number: u16, family: u8) -> Self {
        let ports =
            Ports { client: 20_000 + 50 * number, service: 1000 + number, real: 8000 + number };
        Self { crossing, family, ports, client: EVERYBODYS, number, text: String::new() }
    }

    /// Ends the scenario; returns its text.
    pub(crate) fn end(self) -> String {
        let (status, _) = self.crossing.ipvsadm("-C");
        assert_eq!(status, 0);
        self.crossing.unmark();
        self.text
    }

    pub(crate) fn network(&self) -> &'n Network {
        self.crossing.network
    }

    /// The service's address and port, as a command has them.
    pub(crate) fn virtual_end(&self) -> SocketAddr {
        (network::vip(self.family, 100), self.ports.service).into()
    }

    pub(crate) fn client_end(&self) -> SocketAddr {
        (network::client(self.family, self.client), self.ports.client).into()
    }

    /// Has a client that no other scenario has, for services without a port of their own.
    pub(crate) fn own_client(&mut self) {
        self.client = 20 + (self.number % 200) as u8;
    }

    /// Where server 11 of a NAT destination listens.
    pub(crate) fn real_end(&self) -> SocketAddr {
        (network::server(self.family, 11), self.ports.real).into()
    }

    /// Runs a command that must succeed.
    pub(crate) fn adm(&mut self, line: &str) {
        let (status, _) = self.crossing.ipvsadm(line);
        assert_eq!(status, 0, "{line}");
        writeln!(self.text, "$ ipvsadm {line}").unwrap();
    }

    /// Has packets to the virtual address marked.
    pub(crate) fn mark(&mut self, mark: u32) {
        let at = self.virtual_end().ip();
        self.crossing.mark(at, mark);
        writeln!(self.text, "$ mark {mark} to {at}").unwrap();
    }

    pub(crate) fn set(&mut self, name: &str, value: u32) {
        self.crossing.set(name, value);
        writeln!(self.text, "$ {name} = {value}").unwrap();
    }

    /// Sends a frame and notes what comes out.
    pub(crate) fn send(&mut self, step: &str, from: Side, frame: &[u8]) -> Vec<(Side, Vec<u8>)> {
        self.send_all(step, from, &[frame.to_vec()])
    }

    /// Sends frames one after another and notes what comes out for all of them.
    pub(crate) fn send_all(
        &mut self,
        step: &str,
        from: Side,
        frames: &[Vec<u8>],
    ) -> Vec<(Side, Vec<u8>)> {
        let frame = &frames[0];
        let out: Vec<_> = frames.iter().flat_map(|frame| self.crossing.step(from, frame)).collect();
        writeln!(self.text, "> {step}").unwrap();
        for (side, bytes) in &out {
            let side = if *side == Side::Clients { "c" } else { "s" };
            writeln!(self.text, "{side} {}", hexadecimal(&canonical(frame, bytes))).unwrap();
        }
        out
    }

    /// A packet from the client to the service.
    pub(crate) fn request(&self, kind: Kind) -> Packet {
        Packet {
            source: self.client_end(),
            target: self.virtual_end(),
            ..scene::request(self.network(), self.family, kind)
        }
    }

    /// A packet from server 11 to the client.
    pub(crate) fn reply(&self, kind: Kind) -> Packet {
        Packet {
            source: self.real_end(),
            target: self.client_end(),
            ..scene::reply(self.network(), self.family, kind)
        }
    }

    pub(crate) fn client_sends(&mut self, step: &str, kind: Kind) {
        let frame = self.request(kind).bytes();
        self.send(step, Side::Clients, &frame);
    }

    pub(crate) fn server_sends(&mut self, step: &str, kind: Kind) {
        let frame = self.reply(kind).bytes();
        self.send(step, Side::Servers, &frame);
    }

    /// An ICMP error from a router among the clients to the virtual address.
    pub(crate) fn error_to_virtual(&self, kind: [u8; 2], rest: [u8; 4], quoted: &[u8]) -> Message {
        Message {
            from: network::GATEWAY_MAC,
            to: self.network().inside.mac,
            source: network::client(self.family, 9),
            target: network::vip(self.family, 100),
            ttl: 61,
            kind,
            rest,
            payload: quoted.to_vec(),
        }
    }

    /// An ICMP error from a server to the client.
    pub(crate) fn error_to_client(&self, kind: [u8; 2], rest: [u8; 4], quoted: &[u8]) -> Message {
        Message {
            from: network::server_mac(12),
            to: self.network().outside.mac,
            source: network::server(self.family, 12),
            target: network::client(self.family, self.client),
            ttl: 64,
            kind,
            rest,
            payload: quoted.to_vec(),
        }
    }

    /// Notes the service's connections, with the time-out that is running, and the listing.
    pub(crate) fn look(&mut self) {
        writeln!(self.text, "> look").unwrap();
        let own = match self.client {
            EVERYBODYS => format!(":{} ", self.ports.service),
            _ => SocketAddr::new(self.client_end().ip(), 0)
                .to_string()
                .trim_end_matches('0')
                .to_owned(),
        };
        let (_, all) = self.crossing.ipvsadm("-L -n -c");
        let mut lines: Vec<String> =
            all.lines().filter(|line| line.contains(&own) && !is_over(line)).map(coarse).collect();
        lines.sort();
        let (_, listing) = self.crossing.ipvsadm("-L -n");
        lines.extend(listing.lines().skip(3).map(|line| line.trim_end().to_owned()));
        for line in lines {
            writeln!(self.text, "= {line}").unwrap();
        }
    }
}

/// Writes bytes with two digits each, many equal ones as one and their number.
fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for run in bytes.chunk_by(|one, other| one == other) {
        match run.len() {
            1..10 => run.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap()),
            many => write!(text, "({:02x}*{many})", run[0]).unwrap(),
        }
    }
    text
}

/// Tells whether a line of `-L -c` is about a connection that is no more: the kernel's is listed until a
/// timer frees it.
fn is_over(line: &str) -> bool {
    line.contains(" 00:00 ")
}

/// Every time-out that a scenario's connections have, in seconds.
const TIME_OUTS: [u32; 7] = [3, 10, 30, 60, 120, 300, 900];

/// Returns a line of `-L -c` with the time-out that is running, not what is left of it: a machine that had
/// other things to do changes nothing. Both tables say a second more or less.
fn coarse(line: &str) -> String {
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (minutes, seconds) = words[1].split_once(':').unwrap();
    let left = minutes.parse::<u32>().unwrap() * 60 + seconds.parse::<u32>().unwrap();
    let timeout = TIME_OUTS.into_iter().find(|timeout| left <= timeout + 1);
    words[1] = timeout.expect("one of the scenarios' time-outs").to_string();
    words.join(" ")
}
