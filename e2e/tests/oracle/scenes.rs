//! The scenarios.

use e2e::crossing::Side;
use e2e::network::{GATEWAY_MAC, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet, set_udp_checksum, transport};
use e2e::unusual::{extended, fragments, optioned, resized};
use rlvs_wire::tcp::{ACK, FIN, RST, SYN};

use crate::apart;
use crate::play::Play;

pub(crate) type Scenario = Box<dyn Fn(&mut Play<'_, '_>)>;
/// A scenario of any way, and one of none.
pub(crate) type OfWay = fn(&mut Play<'_, '_>, Way);
type OfNone = fn(&mut Play<'_, '_>);

const PUSH: u8 = 8;

/// How a service reaches its real server, server 11: options of `ipvsadm -a`, the server's family if
/// it is another than the service's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    name: &'static str,
    pub(crate) options: &'static str,
    /// Family of the service, of the server.
    pub(crate) families: [u8; 2],
    /// Longest packet of the service's family that fits 1,500 bytes.
    longest: usize,
}

impl Way {
    fn title(self) -> String {
        match self.families {
            [family, outer] if family == outer => format!("{}{family}", self.name),
            [family, outer] => format!("{}{family}in{outer}", self.name),
        }
    }

    pub(crate) fn is_nat(self) -> bool {
        self.options == "-m"
    }

    pub(crate) fn is_tunnel(self) -> bool {
        self.options.starts_with("-i")
    }

    /// Adds service and server.
    pub(crate) fn serve(self, play: &mut Play<'_, '_>, protocol: &str) {
        let at = play.virtual_end();
        play.adm(&format!("-A {protocol} {at} -s rr"));
        self.add(play, protocol, 11, "");
    }

    fn add(self, play: &mut Play<'_, '_>, protocol: &str, number: u8, more: &str) {
        let at = play.virtual_end();
        let port = if self.is_nat() { play.ports.real } else { play.ports.service };
        let real = std::net::SocketAddr::new(server(self.families[1], number), port);
        play.adm(&format!("-a {protocol} {at} -r {real} {} {more}", self.options));
    }
}

fn ways() -> Vec<Way> {
    let way = |name, options, families, longest| Way { name, options, families, longest };
    let mut all = Vec::new();
    for family in [4, 6] {
        let ip = if family == 4 { 20 } else { 40 };
        all.push(way("nat", "-m", [family; 2], 1500));
        all.push(way("dr", "-g", [family; 2], 1500));
        for (name, options, extra) in [
            ("ipip", "-i", 0),
            ("gue", "-i --tun-type gue --tun-port 6080 --tun-nocsum", 12),
            ("gue+c", "-i --tun-type gue --tun-port 6080 --tun-csum", 12),
            ("gre", "-i --tun-type gre --tun-nocsum", 4),
            ("gre+c", "-i --tun-type gre --tun-csum", 8),
        ] {
            all.push(way(name, options, [family; 2], 1500 - ip - extra));
        }
    }
    for (families, longest) in [([4, 6], 1460), ([6, 4], 1480)] {
        all.push(way("ipip", "-i", families, longest));
        let gue = "-i --tun-type gue --tun-port 6080 --tun-csum";
        all.push(way("gue+c", gue, families, longest - 12));
        all.push(way("gre+c", "-i --tun-type gre --tun-csum", families, longest - 8));
    }
    all
}

/// Returns all scenarios, each with its name and the family of its packets.
pub(crate) fn all() -> Vec<(String, u8, Scenario)> {
    let mut all = plain();
    let each: [(&str, OfWay); 10] = [
        ("tcp", tcp),
        ("reset", reset),
        ("udp", udp),
        ("type of service", type_of_service),
        ("last hop", last_hop),
        ("errors of clients", errors_of_clients),
        ("too long", too_long),
        ("fragments", in_fragments),
        ("headers", more_headers),
        ("removal", removal),
    ];
    for way in ways() {
        for (part, scenario) in each.into_iter().chain(apart::OF_WAYS) {
            // What a scenario is about does not depend on the tunnel's header.
            let varies =
                ["tcp", "udp", "type of service", "errors of clients", "too long", "fragments"];
            if way.is_tunnel() && way.name != "ipip" && !varies.contains(&part) {
                continue;
            }
            let scenario = Box::new(move |play: &mut Play<'_, '_>| scenario(play, way));
            all.push((format!("{} {part}", way.title()), way.families[0], scenario));
        }
    }
    // Behind all others, for the kernel believes what they say of ways.
    for way in ways() {
        let [family, outer] = way.families;
        let name = format!("{}{family}in{outer} errors of servers", way.name);
        all.push((name, family, Box::new(move |play| errors_of_servers(play, way))));
    }
    // As numbers give ports, what is new comes last.
    for family in [4, 6] {
        let last: [(&str, OfNone); 2] = [("calls", calls), ("secure", secure)];
        for (part, scenario) in last {
            all.push((format!("{part} {family}"), family, Box::new(scenario)));
        }
    }
    for family in [4, 6] {
        let scenario: OfNone = apart::here;
        all.push((format!("here {family}"), family, Box::new(scenario)));
    }
    for family in [4, 6] {
        let scenario: OfNone = apart::associations_of_every_port;
        all.push((format!("sctp of every port {family}"), family, Box::new(scenario)));
    }
    for family in [4, 6] {
        let scenario: OfNone = adopted;
        all.push((format!("adopted {family}"), family, Box::new(scenario)));
    }
    for family in [4, 6] {
        let scenario: OfNone = apart::here_at_any_port;
        all.push((format!("here at any port {family}"), family, Box::new(scenario)));
    }
    all
}

/// What does not depend on the way.
fn plain() -> Vec<(String, u8, Scenario)> {
    let mut all: Vec<(String, u8, Scenario)> = Vec::new();
    for family in [4, 6] {
        let plain: [(&str, OfNone); 6] = [
            ("nobody", nobody),
            ("nowhere", apart::nowhere),
            ("strangers", strangers),
            ("reuse", reuse),
            ("persistence", persistence),
            ("sloppy", sloppy),
        ];
        for (part, scenario) in plain {
            all.push((format!("{part} {family}"), family, Box::new(scenario)));
        }
    }
    all
}

/// Datagrams of calls, whole, cut and wrong, each scheduled by itself.
fn calls(play: &mut Play<'_, '_>) {
    let at = play.virtual_end();
    play.adm(&format!("-A -u {at} -s rr -p 100 -o --pe sip"));
    for number in [11, 12, 13] {
        let real = std::net::SocketAddr::new(server(play.family, number), at.port());
        play.adm(&format!("-a -u {at} -r {real} -g"));
    }
    let long = |length| format!("X\r\nCall-ID: {}\r\n", "x".repeat(length));
    for (step, text) in [
        ("one", "INVITE sip:b SIP/2.0\r\nVia: a\r\nCall-ID: one@a\r\nCSeq: 1\r\n\r\n".to_owned()),
        ("two", "INVITE sip:b SIP/2.0\r\nCALL-id:two@a\r\n".to_owned()),
        ("one again", "BYE sip:b SIP/2.0\r\ni : one@a\r\n".to_owned()),
        ("three", "BYE sip:b SIP/2.0\ni:\t three\n".to_owned()),
        ("one once more", "X\r\nCall-Id:  one@a\rX".to_owned()),
        ("another case", "X\r\nCall-ID: ONE@a\r\n".to_owned()),
        ("three again", "X\r\n\r\nCall-ID: three\r\n".to_owned()),
        ("longest", long(255)),
        ("too long", long(256)),
        ("no end", "X\r\nCall-ID: one@a".to_owned()),
        ("no value", "X\r\nCall-ID:\r\n\r\n".to_owned()),
        ("no host", "X\r\nCall-ID: one@\r\n".to_owned()),
        ("a blank", "X\r\nCall-ID: one a\r\n".to_owned()),
        ("at the begin", "Call-ID: one@a\r\n".to_owned()),
        ("further in", "X\r\n Call-ID: one@a\r\n".to_owned()),
        ("nothing", String::new()),
        ("two again", "X\r\nVia: a\r\nContent-Length: 0\r\nCall-ID: two@a\r\n\r\n".to_owned()),
    ] {
        play.ports.client += 1;
        let packet = Packet { payload: text.into_bytes(), ..play.request(Kind::Udp) };
        play.send(step, Side::Clients, &packet.bytes());
    }
}

/// The states of `secure_tcp`.
fn secure(play: &mut Play<'_, '_>) {
    play.set("secure_tcp", 3);
    let at = play.virtual_end();
    let real = play.real_end();
    play.adm(&format!("-A -t {at} -s rr"));
    play.adm(&format!("-a -t {at} -r {real} -m"));
    play.client_sends("syn", Kind::Tcp(SYN));
    play.look();
    play.client_sends("ack", Kind::Tcp(ACK));
    play.look();
    play.server_sends("syn ack", Kind::Tcp(SYN | ACK));
    play.look();
    play.client_sends("ack of it", Kind::Tcp(ACK));
    play.look();
    play.client_sends("fin", Kind::Tcp(FIN | ACK));
    play.look();
    play.server_sends("answer", Kind::Tcp(PUSH | ACK));
    play.look();
    play.client_sends("reset", Kind::Tcp(RST));
    play.look();
    play.adm(&format!("-d -t {at} -r {real}"));
    play.ports.client += 1;
    let direct = std::net::SocketAddr::new(real.ip(), at.port());
    play.adm(&format!("-a -t {at} -r {direct} -g"));
    play.client_sends("syn, direct", Kind::Tcp(SYN));
    play.look();
    play.client_sends("syn again", Kind::Tcp(SYN));
    play.look();
    play.client_sends("ack, direct", Kind::Tcp(ACK));
    play.look();
    play.set("secure_tcp", 0);
}

/// ICMP errors about no connection that open one.
fn adopted(play: &mut Play<'_, '_>) {
    for (protocol, kind) in [("-t", Kind::Tcp(ACK)), ("-u", Kind::Udp)] {
        for method in ["-m", "-g"] {
            // What the last round has left lives for seconds only, so it must not be in a listing.
            play.ports.service += 3000;
            let at = play.virtual_end();
            let port = if method == "-m" { play.ports.real } else { at.port() };
            let [real, other] =
                [11, 12].map(|n| std::net::SocketAddr::new(server(play.family, n), port));
            play.adm(&format!("-A {protocol} {at} -s rr"));
            let about = |play: &Play<'_, '_>, bytes| {
                let reply = Packet { source: at, ttl: 57, ..play.reply(kind) };
                let (kind, rest) = kinds(play.family)[0];
                play.error_to_virtual(kind, rest, &quote(&reply, bytes)).bytes()
            };
            let send = |play: &mut Play<'_, '_>, what: &str, bytes| {
                let frame = about(play, bytes);
                play.send(&format!("{protocol} {method} {what}"), Side::Clients, &frame);
            };
            play.set("schedule_icmp", 1);
            send(play, "nobody", 8);
            play.adm(&format!("-a {protocol} {at} -r {real} {method}"));
            play.adm(&format!("-a {protocol} {at} -r {other} {method}"));
            play.set("schedule_icmp", 0);
            send(play, "not asked for", 8);
            play.set("schedule_icmp", 1);
            send(play, "short", 8);
            play.look();
            send(play, "once more", 8);
            play.ports.client += 1;
            send(play, "long", 500);
            play.adm(&format!("-D {protocol} {at}"));
            play.ports.client += 1;
        }
    }
    play.set("schedule_icmp", 0);
}

fn tcp(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-t");
    play.client_sends("syn", Kind::Tcp(SYN));
    play.look();
    if way.is_nat() {
        play.server_sends("syn ack", Kind::Tcp(SYN | ACK));
    }
    play.client_sends("ack", Kind::Tcp(ACK));
    play.look();
    play.client_sends("data", Kind::Tcp(PUSH | ACK));
    if way.is_nat() {
        play.server_sends("answer", Kind::Tcp(PUSH | ACK));
    }
    play.client_sends("fin", Kind::Tcp(FIN | ACK));
    play.look();
    if way.is_nat() {
        play.server_sends("fin of the server", Kind::Tcp(FIN | ACK));
        play.look();
    }
    play.client_sends("last ack", Kind::Tcp(ACK));
    play.look();
}

fn reset(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-t");
    play.client_sends("syn", Kind::Tcp(SYN));
    if way.is_nat() {
        play.server_sends("refused", Kind::Tcp(RST | ACK));
        play.look();
    }
    play.ports.client += 1;
    play.client_sends("second syn", Kind::Tcp(SYN));
    play.client_sends("reset", Kind::Tcp(RST));
    play.look();
    play.client_sends("syn again", Kind::Tcp(SYN));
}

fn udp(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    play.client_sends("request", Kind::Udp);
    if way.is_nat() {
        play.server_sends("reply", Kind::Udp);
    }
    play.look();
    let mut odd = play.request(Kind::Udp);
    odd.payload.push(b'!');
    play.send("odd length", Side::Clients, &odd.bytes());
    let mut empty = odd.clone();
    empty.payload.clear();
    play.send("empty", Side::Clients, &empty.bytes());
    if play.family == 4 {
        let mut frame = odd.bytes();
        set_udp_checksum(&mut frame, 0);
        play.send("without checksum", Side::Clients, &frame);
        if way.is_nat() {
            let mut frame = play.reply(Kind::Udp).bytes();
            set_udp_checksum(&mut frame, 0);
            play.send("reply without checksum", Side::Servers, &frame);
        }
    }
    let mut frame = odd.bytes();
    let at = transport(&frame) + 6;
    frame[at] ^= 0x55;
    play.send("wrong checksum", Side::Clients, &frame);
    play.look();
}

/// Sets type of service and don't-fragment flag, or traffic class and flow label.
pub(crate) fn marked(frame: &[u8], tos: u8, unfragmented: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if transport(&frame) == 34 {
        frame[15] = tos;
        frame[18..20].copy_from_slice(&[0x12, 0x34]);
        frame[20] = if unfragmented { 0x40 } else { 0 };
    } else {
        frame[14] = 0x60 | tos >> 4;
        frame[15] = tos << 4 | 0x5;
        frame[16..18].copy_from_slice(&[0x67, 0x89]);
    }
    resized(&frame)
}

fn type_of_service(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    for tos in [0x00, 0x10, 0xb8, 0x01, 0x02, 0x03, 0xff] {
        for unfragmented in [false, true] {
            let frame = marked(&play.request(Kind::Udp).bytes(), tos, unfragmented);
            play.send(&format!("{tos:02x} {unfragmented}"), Side::Clients, &frame);
        }
    }
}

fn last_hop(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    for ttl in [1, 2, 255] {
        let packet = Packet { ttl, ..play.request(Kind::Udp) };
        play.send(&format!("ttl {ttl}"), Side::Clients, &packet.bytes());
        if way.is_nat() {
            let packet = Packet { ttl, ..play.reply(Kind::Udp) };
            play.send(&format!("ttl {ttl} back"), Side::Servers, &packet.bytes());
        }
    }
    play.look();
}

/// Errors: type and code, and the header's second half.
pub(crate) fn kinds(family: u8) -> Vec<([u8; 2], [u8; 4])> {
    let (none, mtu) = ([0; 4], [0, 0, 5, 0x14]);
    if family == 4 {
        vec![([3, 3], none), ([3, 1], none), ([3, 4], mtu), ([4, 0], none), ([11, 0], none)]
    } else {
        vec![([1, 4], none), ([1, 0], none), ([2, 0], mtu), ([3, 0], none), ([4, 1], none)]
    }
}

/// Quotes so many bytes from a packet's transport header on.
pub(crate) fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    let all = packet.bytes()[14..].to_vec();
    all[..all.len().min(header + bytes)].to_vec()
}

fn errors_of_clients(play: &mut Play<'_, '_>, way: Way) {
    for (protocol, kind) in [("-t", Kind::Tcp(SYN)), ("-u", Kind::Udp)] {
        way.serve(play, protocol);
        play.client_sends("opens", kind);
        let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(ACK) };
        let reply = Packet { source: play.virtual_end(), ttl: 57, ..play.reply(kind) };
        for (kind, rest) in kinds(play.family) {
            for bytes in [8, 20, 500] {
                let error = play.error_to_virtual(kind, rest, &quote(&reply, bytes));
                play.send(&format!("{protocol} {kind:?} {bytes}"), Side::Clients, &error.bytes());
            }
        }
        let last = play.error_to_virtual(kinds(play.family)[0].0, [0; 4], &quote(&reply, 8));
        play.send("last hop", Side::Clients, &Message { ttl: 1, ..last }.bytes());
        let stranger = Packet { target: (client(play.family, 7), 9).into(), ..reply };
        let stray = play.error_to_virtual(kinds(play.family)[0].0, [0; 4], &quote(&stranger, 8));
        play.send("of nothing", Side::Clients, &stray.bytes());
        play.look();
    }
}

fn errors_of_servers(play: &mut Play<'_, '_>, way: Way) {
    for (protocol, kind) in [("-t", Kind::Tcp(SYN)), ("-u", Kind::Udp)] {
        way.serve(play, protocol);
        let out = {
            let frame = play.request(kind).bytes();
            play.send("opens", Side::Clients, &frame)
        };
        if way.is_nat() {
            let request = Packet { target: play.real_end(), ttl: 63, ..play.request(kind) };
            for (kind, rest) in kinds(play.family) {
                for bytes in [8, 20, 500] {
                    let error = play.error_to_client(kind, rest, &quote(&request, bytes));
                    let step = format!("{protocol} {kind:?} {bytes}");
                    play.send(&step, Side::Servers, &error.bytes());
                }
            }
        }
        if way.is_tunnel() {
            let outer = way.families[1];
            let packet = &out[0].1[14..];
            let other = marked(&play.request(kind).bytes(), 0, false);
            let cuttable = play.send("goes on", Side::Clients, &other);
            let cuttable = &cuttable[0].1[14..];
            for (kind, rest, packet, may) in kinds(outer).into_iter().flat_map(|(kind, rest)| {
                [(kind, rest, packet, ""), (kind, rest, cuttable, " of what may be cut")]
            }) {
                let error = Message {
                    from: server_mac(12),
                    to: play.network().outside.mac,
                    source: server(outer, 12),
                    target: server(outer, 1),
                    ttl: 64,
                    kind,
                    rest,
                    payload: packet.to_vec(),
                };
                play.send(&format!("{protocol} {kind:?}{may}"), Side::Servers, &error.bytes());
            }
        }
        play.look();
    }
}

fn too_long(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    let header = if play.family == 4 { 28 } else { 48 };
    for length in [way.longest, way.longest + 1, 1500] {
        if length > 1500 {
            continue;
        }
        for unfragmented in [true, false] {
            let packet = Packet { payload: vec![0x5a; length - header], ..play.request(Kind::Udp) };
            let frame = marked(&packet.bytes(), 0, unfragmented);
            play.send(&format!("{length} {unfragmented}"), Side::Clients, &frame);
        }
    }
    play.look();
}

fn in_fragments(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    let packet = Packet { payload: vec![0x42; 1000], ..play.request(Kind::Udp) };
    let pieces = fragments(&packet.bytes(), 0x4242, 400);
    play.send_all("pieces", Side::Clients, &pieces);
    play.look();
    if way.is_nat() {
        let packet = Packet { payload: vec![0x24; 1000], ..play.reply(Kind::Udp) };
        let pieces = fragments(&packet.bytes(), 0x2424, 400);
        play.send_all("pieces back", Side::Servers, &pieces);
    }
    let turned: Vec<_> = fragments(&packet.bytes(), 0x4343, 400).into_iter().rev().collect();
    play.send_all("pieces, the last first", Side::Clients, &turned);
    play.look();
}

fn more_headers(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    let (request, reply) = (play.request(Kind::Udp).bytes(), play.reply(Kind::Udp).bytes());
    let change = |frame: &[u8]| -> Vec<(&'static str, Vec<u8>)> {
        if transport(frame) == 34 {
            vec![
                ("nothing", optioned(frame, &[1, 1, 1, 1])),
                ("router alert", optioned(frame, &[148, 4, 0, 0])),
            ]
        } else {
            vec![
                ("destination options", extended(frame, &[(60, &[1, 4, 0, 0, 0, 0])])),
                ("hop by hop", extended(frame, &[(0, &[1, 4, 0, 0, 0, 0])])),
            ]
        }
    };
    for (name, frame) in change(&request) {
        play.send(name, Side::Clients, &frame);
    }
    if way.is_nat() {
        for (name, frame) in change(&reply) {
            play.send(&format!("{name} back"), Side::Servers, &frame);
        }
    }
    play.look();
}

fn removal(play: &mut Play<'_, '_>, way: Way) {
    way.serve(play, "-u");
    play.client_sends("request", Kind::Udp);
    let at = play.virtual_end();
    let port = if way.is_nat() { play.ports.real } else { play.ports.service };
    let real = std::net::SocketAddr::new(server(way.families[1], 11), port);
    play.adm(&format!("-d -u {at} -r {real}"));
    play.client_sends("removed", Kind::Udp);
    if way.is_nat() {
        play.server_sends("removed, back", Kind::Udp);
    }
    play.look();
    way.add(play, "-u", 12, "");
    play.client_sends("another is there", Kind::Udp);
    way.add(play, "-u", 11, "");
    play.client_sends("returned", Kind::Udp);
    play.look();
}

/// Nobody takes the connection.
fn nobody(play: &mut Play<'_, '_>) {
    for (protocol, kind) in [("-t", Kind::Tcp(SYN)), ("-u", Kind::Udp)] {
        let at = play.virtual_end();
        play.adm(&format!("-A {protocol} {at} -s wlc"));
        play.client_sends("no server", kind);
        let real = std::net::SocketAddr::new(server(play.family, 11), play.ports.service);
        play.adm(&format!("-a {protocol} {at} -r {real} -g -w 0"));
        play.client_sends("weight 0", kind);
        let frame = marked(&play.request(kind).bytes(), 0xb8, true);
        play.send("type of service", Side::Clients, &frame);
        let packet = Packet { payload: vec![7; 1200], ..play.request(kind) };
        play.send("long", Side::Clients, &packet.bytes());
        play.adm(&format!("-e {protocol} {at} -r {real} -g -w 1"));
        play.client_sends("weight 1", kind);
        play.adm(&format!("-e {protocol} {at} -r {real} -g -w 0"));
        play.client_sends("quiesced", if kind == Kind::Udp { kind } else { Kind::Tcp(ACK) });
        play.look();
    }
}

/// What is not balanced.
fn strangers(play: &mut Play<'_, '_>) {
    let at = play.virtual_end();
    play.adm(&format!("-A -t {at} -s rr"));
    let real = std::net::SocketAddr::new(server(play.family, 11), play.ports.service);
    play.adm(&format!("-a -t {at} -r {real} -g"));
    for (name, flags) in [
        ("ack", ACK),
        ("fin", FIN | ACK),
        ("reset", RST),
        ("syn ack", SYN | ACK),
        ("syn reset", SYN | RST),
        ("nothing", 0),
        ("syn fin", SYN | FIN),
    ] {
        play.ports.client += 1;
        play.client_sends(name, Kind::Tcp(flags));
    }
    play.client_sends("udp", Kind::Udp);
    let mut packet = play.request(Kind::Tcp(SYN));
    packet.target.set_port(9);
    play.send("another port", Side::Clients, &packet.bytes());
    packet.target.set_ip(vip(play.family, 101));
    play.send("another address", Side::Clients, &packet.bytes());
    let echo = Message {
        from: GATEWAY_MAC,
        to: play.network().inside.mac,
        source: client(play.family, 7),
        target: vip(play.family, 100),
        ttl: 64,
        kind: [if play.family == 4 { 8 } else { 128 }, 0],
        rest: [1, 2, 3, 4],
        payload: b"echo".to_vec(),
    };
    play.send("echo", Side::Clients, &echo.bytes());
    play.look();
    let mut packet = play.request(Kind::Tcp(SYN));
    packet.source.set_port(20);
    play.send("from port 20", Side::Clients, &packet.bytes());
}

/// The same ends again, after the end.
fn reuse(play: &mut Play<'_, '_>) {
    let at = play.virtual_end();
    play.adm(&format!("-A -t {at} -s rr"));
    for number in [11, 12] {
        let real = std::net::SocketAddr::new(server(play.family, number), play.ports.real);
        play.adm(&format!("-a -t {at} -r {real} -m"));
    }
    for mode in [1, 0] {
        play.set("conn_reuse_mode", mode);
        play.ports.client += 1;
        play.client_sends("syn", Kind::Tcp(SYN));
        play.client_sends("ack", Kind::Tcp(ACK));
        play.client_sends("syn in the middle", Kind::Tcp(SYN));
        play.client_sends("reset", Kind::Tcp(RST));
        // Until a timer frees it the kernel counts the old one too.
        if mode == 1 {
            play.look();
        }
        play.client_sends("syn after the end", Kind::Tcp(SYN));
    }
    play.set("conn_reuse_mode", 1);
}

/// Connections that began elsewhere.
fn sloppy(play: &mut Play<'_, '_>) {
    let at = play.virtual_end();
    play.adm(&format!("-A -t {at} -s rr"));
    for number in [11, 12] {
        let real = std::net::SocketAddr::new(server(play.family, number), play.ports.real);
        play.adm(&format!("-a -t {at} -r {real} -m"));
    }
    play.set("sloppy_tcp", 1);
    for (name, flags) in [
        ("ack", ACK),
        ("data", PUSH | ACK),
        ("fin", FIN | ACK),
        ("reset", RST),
        ("reset ack", RST | ACK),
        ("syn ack", SYN | ACK),
        ("nothing", 0),
    ] {
        play.ports.client += 1;
        play.client_sends(name, Kind::Tcp(flags));
    }
    play.look();
    play.set("sloppy_tcp", 0);
    play.ports.client += 1;
    play.client_sends("ack, not sloppy", Kind::Tcp(ACK));
    play.look();
}

fn persistence(play: &mut Play<'_, '_>) {
    let at = play.virtual_end();
    let mask = if play.family == 4 { "255.255.255.0" } else { "64" };
    play.adm(&format!("-A -t {at} -s rr -p 300 -M {mask}"));
    for number in [11, 12] {
        let real = std::net::SocketAddr::new(server(play.family, number), play.ports.service);
        play.adm(&format!("-a -t {at} -r {real} -g"));
    }
    for number in 0..3 {
        play.ports.client += 1;
        play.client_sends(&format!("client 7, {number}"), Kind::Tcp(SYN));
        play.client_sends(&format!("client 7, {number}, ack"), Kind::Tcp(ACK));
    }
    let mut neighbour = play.request(Kind::Tcp(SYN));
    neighbour.source.set_ip(client(play.family, 8));
    play.send("client 8", Side::Clients, &neighbour.bytes());
    play.look();
    let real = std::net::SocketAddr::new(server(play.family, 12), play.ports.service);
    play.adm(&format!("-e -t {at} -r {real} -g -w 0"));
    play.ports.client += 1;
    play.client_sends("quiesced", Kind::Tcp(SYN));
    play.look();
}
