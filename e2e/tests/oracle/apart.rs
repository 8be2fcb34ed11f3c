//! Scenarios of what is neither TCP nor UDP, and of services that have no port of their own.

use std::net::{IpAddr, SocketAddr};

use e2e::association as chunk;
use e2e::crossing::Side;
use e2e::network::{client, forbidden, server};
use e2e::packet::{Kind, Packet, transport};
use e2e::unusual::{extended, fragments, optioned};
use rlvs_wire::ipsec;
use rlvs_wire::tcp::{ACK, SYN};

use crate::play::Play;
use crate::scenes::{OfWay, Way, kinds, marked, quote};

/// Scenarios of any way.
pub(crate) const OF_WAYS: [(&str, OfWay); 5] = [
    ("sctp", associations),
    ("sctp oddities", odd_associations),
    ("ipsec", key_exchange),
    ("mark", by_mark),
    ("any port", any_port),
];

const ABORT: u8 = 6;
const MARK: u32 = 77;

/// No way leads to the server: none at all, or one that says so.
pub(crate) fn nowhere(play: &mut Play<'_, '_>) {
    let no_route = if play.family == 4 { "198.18.0.1" } else { "2001:db8:ffff::1" };
    let no_route: IpAddr = no_route.parse().unwrap();
    for address in [forbidden(play.family), no_route] {
        for method in ["-g", "-m"] {
            for (protocol, kind) in [("-t", Kind::Tcp(SYN)), ("-u", Kind::Udp)] {
                let (at, real) = (play.virtual_end(), SocketAddr::new(address, play.ports.service));
                play.adm(&format!("-A {protocol} {at} -s rr"));
                play.adm(&format!("-a {protocol} {at} -r {real} {method}"));
                play.ports.client += 1;
                play.client_sends(&format!("{address} {method} {protocol}"), kind);
                play.client_sends(&format!("{address} {method} {protocol} again"), kind);
                play.adm(&format!("-D {protocol} {at}"));
            }
        }
    }
}

fn associations(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "--sctp-service");
    let says = |play: &mut Play<'_, '_>, from: Side, step: &str, kind: u8| match from {
        Side::Clients => play.client_sends(step, Kind::Sctp(kind, None)),
        Side::Servers if way.is_nat() => play.server_sends(step, Kind::Sctp(kind, None)),
        Side::Servers => {}
    };
    says(play, Side::Clients, "init", chunk::INIT);
    play.look();
    says(play, Side::Servers, "init ack", chunk::INIT_ACK);
    says(play, Side::Clients, "cookie echo", chunk::COOKIE_ECHO);
    says(play, Side::Servers, "cookie ack", chunk::COOKIE_ACK);
    play.look();
    says(play, Side::Clients, "data", chunk::DATA);
    says(play, Side::Servers, "sack", chunk::SACK);
    says(play, Side::Clients, "shutdown", chunk::SHUTDOWN);
    play.look();
    says(play, Side::Servers, "shutdown ack", chunk::SHUTDOWN_ACK);
    says(play, Side::Clients, "shutdown complete", chunk::SHUTDOWN_COMPLETE);
    play.look();
    play.ports.client += 1;
    says(play, Side::Clients, "another init", chunk::INIT);
    says(play, Side::Clients, "abort", ABORT);
    play.look();
}

/// What is not quite an association's packet.
fn odd_associations(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "--sctp-service");
    play.client_sends("astray", Kind::Sctp(chunk::DATA, None));
    play.client_sends("init", Kind::Sctp(chunk::INIT, None));
    let frame = play.request(Kind::Sctp(chunk::DATA, None)).bytes();
    for tos in [0x10, 0xb8, 0x03] {
        play.send(&format!("type of service {tos}"), Side::Clients, &marked(&frame, tos, true));
    }
    play.client_sends("two chunks", Kind::Sctp(chunk::COOKIE_ECHO, Some(ABORT)));
    play.look();
    let request = play.request(Kind::Sctp(chunk::DATA, None));
    play.send("last hop", Side::Clients, &Packet { ttl: 1, ..request.clone() }.bytes());
    let header = if play.family == 4 { 36 } else { 56 };
    for (step, unfragmented) in [("too long", true), ("too long, to be cut", false)] {
        if way.is_nat() || way.options == "-g" {
            break;
        }
        let packet = Packet { payload: vec![0x5a; 1500 - header], ..request.clone() };
        play.send(step, Side::Clients, &marked(&packet.bytes(), 0, unfragmented));
    }
    let mut wrong = frame;
    let last = wrong.len() - 1;
    wrong[last] ^= 0x55;
    play.send("wrong checksum", Side::Clients, &wrong);
    errors(play, way, Kind::Sctp(chunk::DATA, None));
    unusual(play, way, Kind::Sctp(chunk::DATA, None));
    play.look();
}

/// What IPsec carries follows the key exchange of the same ends.
fn key_exchange(play: &mut Play<'_, '_>, way: Way) {
    play.own_client();
    let exchange = ipsec::KEY_EXCHANGE;
    (play.ports.client, play.ports.service, play.ports.real) = (exchange, exchange, exchange);
    way.serve(play, "-u");
    // IPv6 has AH for an extension header.
    let protocols: &[u8] = if play.family == 4 { &[ipsec::ESP, ipsec::AH] } else { &[ipsec::ESP] };
    for protocol in protocols {
        play.client_sends(&format!("{protocol} before"), Kind::Other(*protocol));
    }
    play.client_sends("key exchange", Kind::Udp);
    if way.is_nat() {
        play.server_sends("key exchange back", Kind::Udp);
    }
    play.look();
    for protocol in protocols {
        play.client_sends(&format!("{protocol}"), Kind::Other(*protocol));
        if way.is_nat() {
            play.server_sends(&format!("{protocol} back"), Kind::Other(*protocol));
        }
        let request = play.request(Kind::Other(*protocol));
        let last = Packet { ttl: 1, ..request.clone() };
        play.send(&format!("{protocol} last hop"), Side::Clients, &last.bytes());
    }
    play.look();
}

/// A service of a mark, which has all packets with it.
fn by_mark(play: &mut Play<'_, '_>, way: Way) {
    let is_v6 = if play.family == 6 { "-6" } else { "" };
    play.mark(MARK);
    play.adm(&format!("-A -f {MARK} {is_v6} -s rr"));
    let real = SocketAddr::new(server(way.families[1], 11), 0);
    play.adm(&format!("-a -f {MARK} {is_v6} -r {real} {}", way.options));
    // Nothing changes the port.
    play.ports.real = play.ports.service;
    without_port(play, way);
}

/// A service of every port of its address.
fn any_port(play: &mut Play<'_, '_>, way: Way) {
    play.own_client();
    let service = play.ports.service;
    for protocol in ["-t", "-u"] {
        play.ports.service = 0;
        let at = play.virtual_end();
        play.adm(&format!("-A {protocol} {at} -s rr -p 300"));
        let real = SocketAddr::new(server(way.families[1], 11), 0);
        play.adm(&format!("-a {protocol} {at} -r {real} {}", way.options));
    }
    play.ports.service = service;
    play.ports.real = service;
    without_port(play, way);
}

/// An SCTP service of every port of its address.
pub(crate) fn associations_of_every_port(play: &mut Play<'_, '_>) {
    play.own_client();
    let service = play.ports.service;
    play.ports.service = 0;
    let at = play.virtual_end();
    play.adm(&format!("-A --sctp-service {at} -s rr -p 300"));
    let real = SocketAddr::new(server(play.family, 11), 0);
    play.adm(&format!("-a --sctp-service {at} -r {real} -m"));
    (play.ports.service, play.ports.real) = (service, service);
    let client = |play: &mut Play<'_, '_>, step, chunk| {
        play.client_sends(step, Kind::Sctp(chunk, None));
        play.look();
    };
    client(play, "astray", chunk::COOKIE_ECHO);
    client(play, "init", chunk::INIT);
    play.server_sends("init ack", Kind::Sctp(chunk::INIT_ACK, None));
    client(play, "cookie echo", chunk::COOKIE_ECHO);
    play.server_sends("cookie ack", Kind::Sctp(chunk::COOKIE_ACK, None));
    client(play, "data", chunk::DATA);
    play.ports.service += 1;
    client(play, "another port", chunk::INIT);
}

fn without_port(play: &mut Play<'_, '_>, way: Way) {
    play.client_sends("tcp", Kind::Tcp(SYN));
    if way.is_nat() {
        play.server_sends("tcp back", Kind::Tcp(SYN | ACK));
    }
    play.client_sends("tcp goes on", Kind::Tcp(ACK));
    play.client_sends("udp", Kind::Udp);
    if way.is_nat() {
        play.server_sends("udp back", Kind::Udp);
    }
    play.look();
    errors(play, way, Kind::Udp);
    unusual(play, way, Kind::Udp);
    play.client_sends("sctp", Kind::Sctp(chunk::INIT, None));
    if way.is_nat() {
        play.server_sends("sctp back", Kind::Sctp(chunk::INIT_ACK, None));
    }
    play.client_sends("sctp goes on", Kind::Sctp(chunk::COOKIE_ECHO, None));
    play.look();
}

/// A real server that is the director itself, where nobody listens: its stack refuses.
pub(crate) fn here(play: &mut Play<'_, '_>) {
    for method in ["-m", "-g"] {
        let own = if method == "-m" { play.ports.real } else { play.ports.service };
        let own = SocketAddr::new(server(play.family, 1), own);
        let association = Kind::Sctp(chunk::INIT, None);
        for (protocol, kind) in
            [("-t", Kind::Tcp(SYN)), ("-u", Kind::Udp), ("--sctp-service", association)]
        {
            let at = play.virtual_end();
            play.adm(&format!("-A {protocol} {at} -s rr"));
            play.adm(&format!("-a {protocol} {at} -r {own} {method}"));
            ask_here(play, &format!("{method} {protocol}"), kind);
            let last = Packet { ttl: 1, ..play.request(kind) };
            play.send(&format!("{method} {protocol} last hop"), Side::Clients, &last.bytes());
            play.adm(&format!("-D {protocol} {at}"));
        }
    }
}

/// The same with NAT of services of every port, and of a mark.
pub(crate) fn here_at_any_port(play: &mut Play<'_, '_>) {
    play.own_client();
    let own = SocketAddr::new(server(play.family, 1), 0);
    let any = SocketAddr::new(play.virtual_end().ip(), 0);
    for protocol in ["-t", "-u"] {
        play.adm(&format!("-A {protocol} {any} -s rr -p 300"));
        play.adm(&format!("-a {protocol} {any} -r {own} -m"));
    }
    let kinds = [("tcp", Kind::Tcp(SYN)), ("udp", Kind::Udp)];
    for (name, kind) in kinds {
        ask_here(play, &format!("any port {name}"), kind);
    }
    for protocol in ["-t", "-u"] {
        play.adm(&format!("-D {protocol} {any}"));
    }
    let is_v6 = if play.family == 6 { "-6" } else { "" };
    play.mark(MARK);
    play.adm(&format!("-A -f {MARK} {is_v6} -s rr"));
    play.adm(&format!("-a -f {MARK} {is_v6} -r {own} -m"));
    for (name, kind) in kinds {
        ask_here(play, &format!("mark {name}"), kind);
    }
}

/// Sends packets of a new client's port to a service whose real server is the director.
fn ask_here(play: &mut Play<'_, '_>, name: &str, kind: Kind) {
    play.ports.client += 1;
    play.client_sends(&format!("{name} whole"), kind);
    play.client_sends(&format!("{name} again"), kind);
    let request = play.request(kind);
    play.send(&format!("{name} options"), Side::Clients, &more_headers(&request.bytes()));
    let long = Packet { payload: vec![0x42; 1000], ..request };
    let pieces = fragments(&long.bytes(), 0x7171, 400);
    play.send_all(&format!("{name} pieces"), Side::Clients, &pieces);
}

fn more_headers(frame: &[u8]) -> Vec<u8> {
    match transport(frame) {
        34 => optioned(frame, &[1, 1, 1, 1]),
        _ => extended(frame, &[(60, &[1, 4, 0, 0, 0, 0])]),
    }
}

/// Errors about a connection, from both sides.
fn errors(play: &mut Play<'_, '_>, way: Way, kind: Kind) {
    let reply = Packet { source: play.virtual_end(), ttl: 57, ..play.reply(kind) };
    for (error, rest) in kinds(play.family) {
        let error_of_client = play.error_to_virtual(error, rest, &quote(&reply, 20));
        play.send(&format!("error {error:?}"), Side::Clients, &error_of_client.bytes());
        if way.is_nat() {
            let request = Packet { target: play.real_end(), ttl: 63, ..play.request(kind) };
            let error_of_server = play.error_to_client(error, rest, &quote(&request, 20));
            play.send(&format!("error back {error:?}"), Side::Servers, &error_of_server.bytes());
        }
    }
    let stranger = Packet { target: (client(play.family, 3), 9).into(), ..reply };
    let stray = play.error_to_virtual(kinds(play.family)[0].0, [0; 4], &quote(&stranger, 8));
    play.send("error of nothing", Side::Clients, &stray.bytes());
}

/// Options, extension headers, fragments.
fn unusual(play: &mut Play<'_, '_>, way: Way, kind: Kind) {
    let (request, reply) = (play.request(kind), play.reply(kind));
    play.send("options", Side::Clients, &more_headers(&request.bytes()));
    let long = Packet { payload: vec![0x42; 1000], ..request };
    play.send_all("pieces", Side::Clients, &fragments(&long.bytes(), 0x5151, 400));
    if way.is_nat() {
        play.send("options back", Side::Servers, &more_headers(&reply.bytes()));
        let long = Packet { payload: vec![0x24; 1000], ..reply };
        play.send_all("pieces back", Side::Servers, &fragments(&long.bytes(), 0x6161, 400));
    }
}
