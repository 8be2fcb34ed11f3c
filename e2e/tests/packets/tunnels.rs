//! Packets that leave inside others, byte for byte.

use std::net::IpAddr;

use e2e::bpf::Input;
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet, set_udp_checksum, transport};
use e2e::scene::{
    TCP, TUNNEL_PORT, UDP, description, destination, plain, request, service, tunnelled,
};
use e2e::table::Description;
use e2e::unusual::fragments;
use e2e::world::World;
use rlvs_datapath::abi::{
    Service, method, service_flag, settings_flag, tunnel_checksum, tunnel_form,
};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::stage::Stage;
use rlvs_wire::tcp::{ACK, SYN};

const ETHERNET: usize = 14;

/// A tunnel of the tests.
#[derive(Clone, Copy, Debug)]
struct Case {
    inner: u8,
    outer: u8,
    form: u8,
    checksum: u8,
}

impl Case {
    fn all() -> Vec<Self> {
        const FORMS: [(u8, u8); 6] = [
            (tunnel_form::IPIP, tunnel_checksum::NONE),
            (tunnel_form::GRE, tunnel_checksum::NONE),
            (tunnel_form::GRE, tunnel_checksum::OUTER),
            (tunnel_form::GUE, tunnel_checksum::NONE),
            (tunnel_form::GUE, tunnel_checksum::OUTER),
            (tunnel_form::GUE, tunnel_checksum::REMOTE),
        ];
        let mut all = Vec::new();
        for (inner, outer) in [(4, 4), (6, 6), (4, 6), (6, 4)] {
            all.extend(FORMS.map(|(form, checksum)| Self { inner, outer, form, checksum }));
        }
        all
    }

    fn description(self, network: &Network) -> Description {
        let to = |protocol| {
            let end = tunnelled(self.inner, self.outer, 11, self.form, self.checksum);
            service(self.inner, protocol, vec![end])
        };
        description(network, vec![to(TCP), to(UDP)])
    }

    /// Returns the outer packet, written down by plain rules. `port` is the source port of GUE,
    /// `summed` says whether the packet inside has a checksum.
    fn around(self, inner: &[u8], number: u16, port: u16, summed: bool) -> Vec<u8> {
        let carried = if self.inner == 4 { 4 } else { 41 };
        let kind: [u8; 2] = if self.inner == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let summed = summed && self.checksum != tunnel_checksum::NONE;
        match self.form {
            tunnel_form::IPIP => self.ip(carried, inner, inner, number),
            tunnel_form::GRE if summed => {
                let mut bytes = [&[0x80, 0], &kind[..], &[0; 4], inner].concat();
                let checksum = !sum(&bytes, 0);
                bytes[4..6].copy_from_slice(&checksum.to_be_bytes());
                self.ip(47, &bytes, inner, number)
            }
            tunnel_form::GRE => self.ip(47, &[&[0, 0], &kind[..], inner].concat(), inner, number),
            _ => {
                let length = (inner.len() as u16 + 12).to_be_bytes();
                let target = TUNNEL_PORT.to_be_bytes();
                let header = [&port.to_be_bytes()[..], &target, &length, &[0, 0]].concat();
                let mut bytes = [&header[..], &[0, carried, 0, 0], inner].concat();
                if summed {
                    let (source, target) = self.ends();
                    let ends = [octets(source), octets(target)].concat();
                    let before = u64::from(sum(&ends, 17)) + bytes.len() as u64;
                    let checksum = match !sum(&bytes, before) {
                        0 => 0xffff,
                        other => other,
                    };
                    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
                }
                self.ip(17, &bytes, inner, number)
            }
        }
    }

    fn ends(self) -> (IpAddr, IpAddr) {
        (server(self.outer, 1), server(self.outer, 11))
    }

    fn ip(self, protocol: u8, payload: &[u8], inner: &[u8], number: u16) -> Vec<u8> {
        let (tos, ttl, unfragmented) = if self.inner == 4 {
            (inner[1], inner[8], inner[6] & 0x40)
        } else {
            (inner[0] << 4 | inner[1] >> 4, inner[7], 0)
        };
        let tos = if tos & 3 == 3 { tos & !3 | 2 } else { tos };
        let (source, target) = self.ends();
        let length = payload.len() as u16;
        let mut header = if self.outer == 4 {
            let number = if unfragmented == 0 { number } else { 0 }.to_be_bytes();
            let total = (length + 20).to_be_bytes();
            let rest = [unfragmented, 0, ttl, protocol, 0, 0];
            [&[0x45, tos], &total[..], &number, &rest].concat()
        } else {
            let first = [0x60 | tos >> 4, tos << 4, 0, 0];
            [&first[..], &length.to_be_bytes(), &[protocol, ttl]].concat()
        };
        header.extend_from_slice(&octets(source));
        header.extend_from_slice(&octets(target));
        if self.outer == 4 {
            let checksum = !sum(&header, 0);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        [&header[..], payload].concat()
    }

    fn ethernet(self, network: &Network) -> Vec<u8> {
        let kind: [u8; 2] = if self.outer == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&server_mac(11)[..], &network.outside.mac, &kind].concat()
    }

    /// Returns the length of the outer headers.
    fn overhead(self) -> usize {
        let ip = if self.outer == 4 { 20 } else { 40 };
        ip + match (self.form, self.checksum) {
            (tunnel_form::IPIP, _) => 0,
            (tunnel_form::GRE, tunnel_checksum::NONE) => 4,
            (tunnel_form::GRE, _) => 8,
            _ => 12,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns the one's complement sum of bytes and what was summed before.
fn sum(bytes: &[u8], before: u64) -> u16 {
    let word = |word: &[u8]| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| low.into());
    let mut sum = before + bytes.chunks(2).map(word).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sets type of service and don't-fragment flag, or the traffic class.
fn mark(frame: &mut [u8], tos: u8, unfragmented: bool) {
    if frame[12..14] == [0x08, 0x00] {
        frame[15] = tos;
        frame[18..22].copy_from_slice(&[0x12, 0x34, if unfragmented { 0x40 } else { 0 }, 0]);
        frame[24..26].fill(0);
        let checksum = !sum(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    } else {
        frame[14..16].copy_from_slice(&[0x60 | tos >> 4, tos << 4 | 0x0a]);
    }
}

/// Returns the source port of an outer GUE header, which is the flow's.
fn port_of(case: Case, frame: &[u8]) -> u16 {
    let at = ETHERNET + if case.outer == 4 { 20 } else { 40 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn lowered(packet: &Packet, tos: u8, unfragmented: bool) -> Vec<u8> {
    let mut frame = Packet { ttl: packet.ttl - 1, ..packet.clone() }.bytes();
    mark(&mut frame, tos, unfragmented);
    frame[ETHERNET..].to_vec()
}

#[test]
fn every_tunnel_has_the_headers_that_ipvs_gives_it() {
    network::run("tunnels", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        let out = Verdict::Transmit { interface: network.outside.index };
        for case in Case::all() {
            world.reset(&case.description(network));
            for (kind, id) in [(Kind::Tcp(SYN), 1), (Kind::Udp, 2)] {
                let mut packet = request(network, case.inner, kind);
                let mut ports = Vec::new();
                for (number, (tos, unfragmented, odd)) in
                    [(0xb9, true, false), (0, false, true), (0x03, true, true)]
                        .into_iter()
                        .enumerate()
                {
                    if number > 0 && kind != Kind::Udp {
                        packet.kind = Kind::Tcp(ACK);
                    }
                    packet.payload = vec![0x5a; if odd { 77 } else { 0 }];
                    let mut frame = packet.bytes();
                    mark(&mut frame, tos, unfragmented);
                    let step = world.step(&frame).same();
                    assert_eq!(step.verdict, out, "{case:?} {kind:?}");
                    let inner = lowered(&packet, tos, unfragmented);
                    let port = port_of(case, &step.bytes);
                    let outer = case.around(&inner, number as u16, port, true);
                    let expected = [case.ethernet(network), outer].concat();
                    assert_eq!(step.bytes, expected, "{case:?} {kind:?} {number}");
                    assert_eq!(step.bytes.len(), frame.len() + case.overhead());
                    ports.push(port);
                    let packets = format!("d{id} packets in = {}", number + 1);
                    assert!(step.changes.contains(&packets), "{:?}", step.changes);
                }
                if case.form == tunnel_form::GUE {
                    ports.dedup();
                    assert_eq!(ports.len(), 1, "{case:?}");
                    assert!((32_768..61_000).contains(&ports[0]), "{ports:?}");
                }
            }
            // A client's port is what tells its flows apart.
            if case.form == tunnel_form::GUE {
                let ports: std::collections::BTreeSet<u16> = (0..16)
                    .map(|number| {
                        let mut packet = request(network, case.inner, Kind::Udp);
                        packet.source.set_port(5000 + number);
                        port_of(case, &world.step(&packet.bytes()).same().bytes)
                    })
                    .collect();
                assert!(ports.len() > 12, "{ports:?}");
            }
        }
    });
}

/// A direct-routing connection's life: only the client is seen.
#[test]
fn tunnelled_connections_live_as_those_of_direct_routing() {
    network::run("tun-states", |network| {
        let case = Case::all()[0];
        let world = World::new(network, &case.description(network));
        let client = network::client(4, 7);
        let mut seen = Vec::new();
        for flags in [SYN, ACK, rlvs_wire::tcp::FIN | ACK] {
            let step = world.step(&request(network, 4, Kind::Tcp(flags)).bytes()).same();
            let prefix = format!("{client}:4242 s1 = ");
            seen.extend(
                step.changes
                    .iter()
                    .filter_map(|line| line.strip_prefix(&prefix))
                    .map(str::to_owned),
            );
        }
        assert_eq!(seen, ["SYN_RECV d1", "ESTABLISHED d1", "FIN_WAIT d1"]);
    });
}

#[test]
fn a_datagram_without_checksum_gets_no_outer_one() {
    network::run("tun-no-sum", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        for case in Case::all().into_iter().filter(|case| case.checksum != 0) {
            world.reset(&case.description(network));
            let packet = request(network, case.inner, Kind::Udp);
            let mut frame = packet.bytes();
            set_udp_checksum(&mut frame, 0);
            mark(&mut frame, 0, true);
            let step = world.step(&frame).same();
            let mut inner = Packet { ttl: 63, ..packet.clone() }.bytes();
            mark(&mut inner, 0, true);
            let at = transport(&inner) + 6;
            inner[at..at + 2].fill(0);
            let outer = case.around(&inner[ETHERNET..], 0, port_of(case, &step.bytes), false);
            assert_eq!(step.bytes, [case.ethernet(network), outer].concat(), "{case:?}");
        }
    });
}

#[test]
fn outer_checksums_are_right_for_every_value_tried() {
    network::run("tun-sums", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        for case in Case::all().into_iter().filter(|case| case.checksum != 0) {
            world.reset(&case.description(network));
            for (number, value) in (0..).zip((0..=u16::MAX).step_by(1021)) {
                let mut packet = request(network, case.inner, Kind::Udp);
                packet.source.set_port(value.max(1));
                packet.payload = value.to_be_bytes().to_vec();
                let mut frame = packet.bytes();
                mark(&mut frame, 0, true);
                let step =
                    world.step_quietly(&Input::new(&frame, network.inside.index), false).same();
                let inner = lowered(&packet, 0, true);
                let outer = case.around(&inner, number, port_of(case, &step.bytes), true);
                assert_eq!(step.bytes[ETHERNET..], outer, "{case:?} {value}");
            }
        }
    });
}

/// A flow label that is the checksum of the packet without it makes the sum nothing: GRE has 0 then,
/// and UDP, for which that means that there is none, the other nothing.
#[test]
fn an_outer_checksum_of_0_is_one() {
    network::run("tun-zero", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        let of_v6 = |case: &Case| case.checksum != 0 && case.inner == 6;
        for case in Case::all().into_iter().filter(of_v6) {
            world.reset(&case.description(network));
            let packet = request(network, 6, Kind::Udp);
            let mut frame = packet.bytes();
            let is_gre = case.form == tunnel_form::GRE;
            let at = ETHERNET + if case.outer == 4 { 20 } else { 40 } + if is_gre { 4 } else { 6 };
            let first = world.step(&frame).same().bytes;
            frame[16..18].copy_from_slice(&first[at..at + 2]);
            let second = world.step(&frame).same().bytes;
            assert_eq!(second[at..at + 2], if is_gre { [0, 0] } else { [0xff, 0xff] }, "{case:?}");
            let mut inner = Packet { ttl: 63, ..packet.clone() }.bytes();
            inner[16..18].copy_from_slice(&first[at..at + 2]);
            let outer = case.around(&inner[ETHERNET..], 1, port_of(case, &second), true);
            assert_eq!(second[ETHERNET..], outer, "{case:?}");
        }
    });
}

#[test]
fn what_hardware_has_summed_stays_true_in_a_tunnel() {
    network::run("tun-summed", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        for case in Case::all() {
            world.reset(&case.description(network));
            let packet = request(network, case.inner, Kind::Tcp(SYN));
            let ran = world.run_summed(&packet.bytes());
            let ran = ran.unwrap_or_else(|error| panic!("{case:?}: {error}"));
            assert_eq!(ran.bytes.len(), packet.bytes().len() + case.overhead(), "{case:?}");
        }
    });
}

#[test]
fn outer_headers_count_for_what_the_next_hop_takes() {
    network::run("tun-mtu", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        for case in Case::all() {
            world.reset(&case.description(network));
            let packet = request(network, case.inner, Kind::Udp);
            let of = |length: usize| {
                let payload = length - (packet.length() - packet.payload.len());
                Packet { payload: vec![1; payload], ..packet.clone() }.bytes()
            };
            let fits = 1500 - case.overhead();
            // The first goes by the stage that opens, the others by the steady path and its rest.
            for (length, goes) in [(fits, true), (fits, true), (fits + 1, false)] {
                let step = world.step(&of(length)).same();
                let said = format!("{case:?} {length}");
                if goes {
                    let interface = network.outside.index;
                    assert_eq!(step.verdict, Verdict::Transmit { interface }, "{said}");
                } else {
                    let interface = network.inside.index;
                    assert_eq!(step.verdict, Verdict::Transmit { interface }, "{said}");
                    let (at, kind) = if case.inner == 4 { (34, [3, 4]) } else { (54, [2, 0]) };
                    assert_eq!(step.bytes[at..at + 2], kind, "{said}");
                    let mtu = step.bytes[at + 4..at + 8].try_into().unwrap();
                    assert_eq!(u32::from_be_bytes(mtu) as usize, fits, "{said}");
                }
            }
        }
    });
}

/// XDP leaves it to TC, which gives it to the stack with its outer headers; over IPv6, where the stack
/// would not cut it either, its sender is told.
#[test]
fn what_may_be_cut_is_left_to_the_stack_in_its_tunnel() {
    network::run("tun-cut", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        for case in Case::all().into_iter().filter(|case| case.inner == 4) {
            world.reset(&case.description(network));
            let packet = Packet { payload: vec![1; 1472], ..request(network, 4, Kind::Udp) };
            let mut frame = packet.bytes();
            mark(&mut frame, 0, false);
            let step = world.step(&frame);
            assert_eq!(step.xdp.verdict, Verdict::Next(Stage::Cut4), "{case:?}");
            assert_eq!(step.xdp.bytes, frame, "{case:?}");
            if case.outer == 6 {
                let step = step.tc;
                let interface = network.inside.index;
                assert_eq!(step.verdict, Verdict::Transmit { interface }, "{case:?}");
                let mtu = (1500 - case.overhead() as u16).to_be_bytes();
                assert_eq!(step.bytes[34..36], [3, 4], "{case:?}");
                assert_eq!(step.bytes[40..42], mtu, "{case:?}");
                continue;
            }
            assert_eq!(step.tc.verdict, Verdict::Arrive, "{case:?}");
            let inner = lowered(&packet, 0, false);
            let mut outer = case.around(&inner, 0, port_of(case, &step.tc.bytes), true);
            // The stack takes one off again.
            outer[8] += 1;
            outer[10..12].fill(0);
            let checksum = !sum(&outer[..20], 0);
            outer[10..12].copy_from_slice(&checksum.to_be_bytes());
            let ethernet = [&[0; 12][..], &[8, 0]].concat();
            assert_eq!(step.tc.bytes, [ethernet, outer].concat(), "{case:?}");
        }
    });
}

/// One that is scheduled alone too, with the destination that XDP has picked: no other is picked for it.
#[test]
fn a_single_datagram_that_may_be_cut_is_left_to_the_stack() {
    network::run("tun-cut-once", |network| {
        let case = Case::all().into_iter().find(|case| (case.inner, case.outer) == (4, 4)).unwrap();
        let mut world = World::new(network, &case.description(network));
        let of = |length| Packet { payload: vec![1; length], ..request(network, 4, Kind::Udp) };
        let mut whole = of(1472).bytes();
        mark(&mut whole, 0, false);
        for frames in [vec![whole], fragments(&of(4000).bytes(), 0x4321, 1480)] {
            let mut description = case.description(network);
            description.flags |= settings_flag::WIDE;
            world.reset(&description);
            world.edit(|tables| {
                let udp = |service: &&mut Service| service.protocol == UDP;
                for service in tables.services.iter_mut().filter(udp) {
                    service.flags |= service_flag::SPECIAL | service_flag::ONE_PACKET;
                }
            });
            let counted = |changes: &[String]| {
                changes.iter().filter(|line| line.contains(" connections = ")).count()
            };
            for (index, frame) in frames.iter().take(2).enumerate() {
                let input = Input::new(frame, network.inside.index);
                let left = world.step_xdp(&input);
                assert_eq!(left.verdict, Verdict::Next(Stage::Cut4));
                assert_eq!(left.bytes, *frame);
                assert_eq!(counted(&left.changes), usize::from(index == 0), "{left:?}");
                world.hand_to_tc();
                let cut = world.step_tc(&input);
                assert_eq!(cut.verdict, Verdict::Arrive, "{cut:?}");
                assert_eq!(counted(&cut.changes), 0, "{cut:?}");
                assert!(cut.changes.iter().any(|line| line.contains(" packets in = ")));
                world.leave_to_tc();
            }
            // What was handed on once is taken: the same by TC alone is chosen for.
            let again = world.step_tc(&Input::new(&frames[0], network.inside.index));
            assert_eq!((again.verdict, counted(&again.changes)), (Verdict::Arrive, 1));
        }
    });
}

/// A datagram scheduled alone for a neighbour that is not resolved, or for this host: XDP, which leaves it to TC,
/// has picked its server.
#[test]
fn a_single_datagram_that_is_left_to_tc_is_picked_once() {
    network::run("once-left", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        for (family, number) in [(4, 99), (6, 99), (4, 1), (6, 1)] {
            let one = destination(family, number, method::DIRECT);
            let mut description = description(network, vec![service(family, UDP, vec![one])]);
            description.flags |= settings_flag::WIDE;
            world.reset(&description);
            world.edit(|tables| {
                tables.services[1].flags |= service_flag::SPECIAL | service_flag::ONE_PACKET;
            });
            let plain = request(network, family, Kind::Udp);
            let first = fragments(&Packet { payload: vec![1; 99], ..plain.clone() }.bytes(), 7, 48);
            for frame in [plain.bytes(), first[0].clone()] {
                let counted = |changes: &[String]| {
                    changes.iter().filter(|line| line.contains(" connections = ")).count()
                };
                let input = Input::new(&frame, network.inside.index);
                let left = world.step_xdp(&input);
                let reason = if number == 99 { Reason::Unresolved } else { Reason::Local };
                assert_eq!(left.verdict, Verdict::Pass(reason));
                assert_eq!(counted(&left.changes), 1, "{left:?}");
                world.hand_to_tc();
                let taken = world.step_tc(&input);
                assert_eq!(counted(&taken.changes), 0, "IPv{family}, {number}: {taken:?}");
                let has_got = |line: &String| line.contains(" packets in = ");
                assert!(taken.changes.iter().any(has_got), "{taken:?}");
                // What was handed on once is taken: the same by TC alone is chosen for.
                let again = world.step_tc(&input);
                assert_eq!(counted(&again.changes), 1, "{again:?}");
                world.leave_to_tc();
            }
        }
    });
}

/// Pieces of a long datagram are as long as the sender's link takes, and nobody asks for them to be whole.
#[test]
fn pieces_too_long_for_a_tunnel_are_left_to_the_stack() {
    network::run("tun-pieces", |network| {
        let world = World::new(network, &Case::all()[0].description(network));
        let packet = Packet { payload: vec![7; 4000], ..request(network, 4, Kind::Udp) };
        let pieces = fragments(&packet.bytes(), 0x4321, 1480);
        let verdicts = pieces.iter().map(|piece| world.step(piece).tc.verdict);
        let out = Verdict::Transmit { interface: network.outside.index };
        assert_eq!(verdicts.collect::<Vec<_>>(), [Verdict::Arrive, Verdict::Arrive, out]);
    });
}

#[test]
fn a_tunnel_without_source_or_room_takes_nothing() {
    network::run("tun-none", |network| {
        let case = Case::all()[0];
        let mut world = World::new(network, &case.description(network));
        world.edit(|tables| tables.tunnels[1].family = 0);
        let frame = request(network, 4, Kind::Tcp(SYN)).bytes();
        let step = world.step(&frame).same();
        assert_eq!(step.verdict, Verdict::Drop(Reason::Unreachable));

        world.reset(&case.description(network));
        let input = Input { cramped: true, ..Input::new(&frame, network.inside.index) };
        for outcome in [world.step_xdp(&input), world.step_on_host(&input)] {
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoRoom));
            assert!(outcome.changes.contains(&"reason no_room = 1".to_owned()));
        }
    });
}

/// XDP leaves the packet as it is to TC, which wraps it and has the kernel find the neighbour.
#[test]
fn tc_wraps_what_goes_to_an_unresolved_neighbour() {
    network::run("tun-unresolved", |network| {
        let case = Case::all()[0];
        let mut description = case.description(network);
        for service in &mut description.services {
            service.servers = vec![tunnelled(4, 4, 99, case.form, case.checksum)];
        }
        let world = World::new(network, &description);
        let frame = request(network, 4, Kind::Tcp(SYN)).bytes();
        let step = world.step(&frame);
        assert_eq!(step.xdp.verdict, Verdict::Pass(Reason::Unresolved));
        assert_eq!(step.xdp.bytes, frame);
        assert_eq!(step.tc.verdict, Verdict::Resolve { interface: network.outside.index });
        assert_eq!(step.tc.bytes.len(), frame.len() + 20);
        assert_eq!(step.tc.bytes[30..34], [10, 0, 0, 99]);
    });
}

/// A full table leaves packets to the hash, tunnels as direct routing.
#[test]
fn a_full_table_tunnels_by_the_hash_alone() {
    network::run("tun-stateless", |network| {
        let case = Case::all()[0];
        let mut description = case.description(network);
        description.buckets = 1;
        let world = World::new(network, &description);
        let mut last = Vec::new();
        for port in 0..64 {
            let mut packet = request(network, 4, Kind::Tcp(SYN));
            packet.source.set_port(2000 + port);
            let step = world.step(&packet.bytes()).same();
            assert!(matches!(step.verdict, Verdict::Transmit { .. }), "{:?}", step.verdict);
            last = step.changes;
        }
        assert!(last.iter().any(|line| line.starts_with("reason stateless = ")), "{last:?}");
    });
}

/// An error from a router on the tunnel's way, about an outer packet of which that many bytes are
/// quoted.
fn error(case: Case, network: &Network, outer: &[u8], kind: [u8; 2], mtu: u16) -> Message {
    let [high, low] = mtu.to_be_bytes();
    Message {
        from: server_mac(12),
        to: network.outside.mac,
        source: server(case.outer, 99),
        target: case.ends().0,
        ttl: 60,
        kind,
        rest: [0, 0, high, low],
        payload: outer.to_vec(),
    }
}

/// What the client is told.
fn told(case: Case, network: &Network, inner: &[u8], kind: [u8; 2], mtu: usize) -> Vec<u8> {
    let [high, low] = (mtu as u16).to_be_bytes();
    let message = Message {
        from: network.inside.mac,
        to: GATEWAY_MAC,
        source: vip(case.inner, 100),
        target: client(case.inner, 7),
        ttl: 64,
        kind,
        rest: [0, 0, high, low],
        payload: inner[..if case.inner == 4 { 28 } else { 48 }].to_vec(),
    };
    let mut bytes = message.bytes();
    if case.inner == 4 {
        mark(&mut bytes, 0xc0, false);
        bytes[18..20].fill(0);
        bytes[24..26].fill(0);
        let checksum = !sum(&bytes[14..34], 0);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

#[test]
fn clients_are_told_of_errors_about_a_tunnel() {
    network::run("tun-errors", |network| {
        let mut world = World::new(network, &Case::all()[0].description(network));
        let back = Verdict::Transmit { interface: network.inside.index };
        let kinds = |family| if family == 4 { [[3, 4], [3, 1]] } else { [[2, 0], [1, 3]] };
        for case in Case::all() {
            let ([too_big, unreachable], told_as) = (kinds(case.outer), kinds(case.inner));
            for kind in [Kind::Tcp(SYN), Kind::Udp] {
                world.reset(&case.description(network));
                let packet = Packet { payload: vec![9; 600], ..request(network, case.inner, kind) };
                let mut frame = packet.bytes();
                mark(&mut frame, 0, true);
                let sent = world.step(&frame).same().bytes[ETHERNET..].to_vec();
                let inner = lowered(&packet, 0, true);
                let from = |message: &Message| message.bytes();
                let said_and_told = [
                    (too_big, 1400, told_as[0], 1400 - case.overhead()),
                    (unreachable, 0, told_as[1], 0),
                ];
                for (said, mtu, told_as, left) in said_and_told {
                    for quoted in [case.overhead() + 48, sent.len()] {
                        let message = error(case, network, &sent[..quoted], said, mtu);
                        let input = from(&message);
                        let step =
                            world.step_with(&Input::new(&input, network.outside.index)).same();
                        assert_eq!(step.verdict, back, "{case:?} {kind:?} {said:?}");
                        assert_eq!(
                            step.bytes,
                            told(case, network, &inner, told_as, left),
                            "{case:?}"
                        );
                    }
                }
                // Of another tunnel, of a connection that is not there, cut short: not ours.
                let mut other = sent.clone();
                let at = if case.outer == 4 { 19 } else { 39 };
                other[at] ^= 1;
                let mut stranger = sent.clone();
                let at = case.overhead() + if case.inner == 4 { 15 } else { 23 };
                stranger[at] ^= 1;
                for quote in [&other, &stranger, &sent[..case.overhead() + 20].to_vec()] {
                    let input = from(&error(case, network, quote, too_big, 1400));
                    let step = world.step_with(&Input::new(&input, network.outside.index)).same();
                    assert!(
                        matches!(step.verdict, Verdict::Pass(_)),
                        "{case:?} {:?}",
                        step.verdict
                    );
                    assert_eq!(step.bytes, input);
                }
            }
        }
    });
}
