//! Every reason is given by a packet that deserves it, and changes nothing besides.

use std::collections::BTreeSet;

use e2e::bpf::Input;
use e2e::guarded;
use e2e::host::HostTables;
use e2e::network::{self, Network, client, forbidden, server, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene::{self, TCP, UDP, destination, lines, reply, request, service};
use e2e::table::{Description, Virtual};
use e2e::unusual::{extended, fragments, optioned};
use e2e::world::{Outcome, World};
use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpDscp, IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, icmpv4,
    ip_number,
};
use rlvs_control::access::{Access, Limit, Prefix, Verdict as Says};
use rlvs_datapath::abi::{RingLine, destination_flag, method, service_flag, settings_flag};
use rlvs_datapath::connection::Value;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::refuse::ERRORS_A_UNIT;
use rlvs_datapath::state::State;
use rlvs_datapath::tables::Time;
use rlvs_wire::tcp::{ACK, FIN, RST, SYN};

/// Services: 1 TCP, direct, destination 1; 2 UDP, direct, 2; 3 on port 81, TCP, NAT, 3; 4 on port
/// 82, without destinations; 5 on an address that is not local, direct, 4; 6 on port 83 leads to
/// where no way leads, 5; 7 on port 84 to an unresolved neighbour, 6; 8 on another local address to
/// the same server as 3, 7; 9 on port 85 leads to the director itself, 8.
fn description(network: &Network, family: u8) -> Description {
    let direct =
        |protocol| service(family, protocol, vec![destination(family, 11, method::DIRECT)]);
    let nat = || service(family, TCP, vec![destination(family, 12, method::MASQUERADE)]);
    let at = |port, mut service: Virtual| {
        service.port = port;
        service
    };
    let to = |address, mut service: Virtual| {
        service.servers[0].address = address;
        service
    };
    let on = |number, mut service: Virtual| {
        service.address = vip(family, number);
        service
    };
    let services = vec![
        direct(TCP),
        direct(UDP),
        at(81, nat()),
        at(82, service(family, TCP, Vec::new())),
        on(200, direct(TCP)),
        at(83, to(forbidden(family), direct(TCP))),
        at(84, to(server(family, 99), direct(TCP))),
        on(101, nat()),
        at(85, to(vip(family, 102), direct(TCP))),
    ];
    scene::description(network, services)
}

struct Case<'a> {
    world: World<'a>,
    family: u8,
    produced: BTreeSet<Reason>,
}

impl Case<'_> {
    fn begin(&mut self) {
        self.world.reset(&description(self.world.network, self.family));
    }

    fn to_port(&self, port: u16, kind: Kind) -> Packet {
        let mut packet = request(self.world.network, self.family, kind);
        packet.target.set_port(port);
        packet
    }

    fn input<'b>(&self, frame: &'b [u8]) -> Input<'b> {
        Input::new(frame, self.world.network.inside.index)
    }

    /// Asserts that the reason is counted, and the other changes.
    #[track_caller]
    fn changed<const N: usize>(&mut self, outcome: &Outcome, reason: Reason, more: [String; N]) {
        let seen = outcome.changes.iter().filter(|line| !line.starts_with("occupied"));
        let mut expected = lines(more);
        expected.push(format!("reason {} = 1", reason.name()));
        expected.sort();
        assert_eq!(seen.cloned().collect::<Vec<_>>(), expected);
        self.produced.insert(reason);
    }

    /// A frame that passes, and leaves as it came.
    #[track_caller]
    fn passes<const N: usize>(&mut self, frame: &[u8], reason: Reason, more: [String; N]) {
        let outcome = self.world.step(frame).same();
        assert_eq!(outcome.verdict, Verdict::Pass(reason));
        assert_eq!(outcome.bytes, frame);
        self.changed(&outcome, reason, more);
    }

    #[track_caller]
    fn drops<const N: usize>(&mut self, frame: &[u8], reason: Reason, more: [String; N]) {
        let outcome = self.world.step(frame).same();
        assert_eq!(outcome.verdict, Verdict::Drop(reason));
        self.changed(&outcome, reason, more);
    }

    /// A packet that is answered with an ICMP error.
    #[track_caller]
    fn answers<const N: usize>(&mut self, packet: &Packet, reason: Reason, more: [String; N]) {
        let outcome = self.world.step(&packet.bytes()).same();
        let interface = self.world.network.inside.index;
        assert_eq!(outcome.verdict, Verdict::Transmit { interface });
        assert_eq!(outcome.bytes, complaint(packet, reason));
        self.changed(&outcome, reason, more);
    }
}

/// Makes the ICMP error for a packet: the IP header and the transport header are quoted.
fn complaint(packet: &Packet, reason: Reason) -> Vec<u8> {
    let frame = packet.bytes();
    let transport_bytes = if packet.kind == Kind::Udp { 8 } else { 20 };
    let ethernet = PacketBuilder::ethernet2(packet.to, packet.from);
    let mut bytes = Vec::new();
    if let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) =
        (packet.target.ip(), packet.source.ip())
    {
        let mut header =
            Ipv4Header::new(0, 64, ip_number::ICMP, from.octets(), to.octets()).unwrap();
        header.dscp = IpDscp::try_new(48).unwrap();
        header.dont_fragment = false;
        let kind = match reason {
            Reason::Expired => {
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
            }
            Reason::TooBig => Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1500 },
            ),
            Reason::Unreachable => {
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host)
            }
            _ => Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
        };
        let quote = &frame[14..34 + transport_bytes];
        ethernet
            .ip(IpHeaders::Ipv4(header, Default::default()))
            .icmpv4(kind)
            .write(&mut bytes, quote)
    } else {
        let (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) =
            (packet.target.ip(), packet.source.ip())
        else {
            panic!("two families");
        };
        let header = Ipv6Header {
            source: from.octets(),
            destination: to.octets(),
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        let kind = match reason {
            Reason::Expired => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
            Reason::TooBig => Icmpv6Type::PacketTooBig { mtu: 1500 },
            Reason::Unreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address),
            _ => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        };
        let quote = &frame[14..54 + transport_bytes];
        ethernet
            .ip(IpHeaders::Ipv6(header, Default::default()))
            .icmpv6(kind)
            .write(&mut bytes, quote)
    }
    .unwrap();
    bytes
}

/// Fills every place of both tables with connections that last.
pub(crate) fn fill(tables: &mut HostTables) {
    let now = Time::now(tables, &tables.settings);
    let value = Value::new(now, State::UDP, 60, 50, false).0;
    let mut key = 0;
    let mut next = || {
        key += 0x1_0000;
        key
    };
    for slot in tables.connections4.iter().flat_map(|bucket| &bucket.slots) {
        slot.key.set(1 << 32 | next() | 50);
        slot.value.set(value);
    }
    for slot in tables.connections6.iter().flat_map(|bucket| &bucket.slots) {
        slot.key.set(1 << 32 | next() | 50);
        slot.value.set(value);
        slot.low.set(1);
    }
}

#[test]
fn every_reason_is_given_for_what_deserves_it_and_nothing_else_changes() {
    network::run("reasons", |network| {
        let world = World::new(network, &description(network, 4));
        let mut case = Case { world, family: 4, produced: BTreeSet::new() };
        for family in [4, 6] {
            case.family = family;
            passed(&mut case);
            answered(&mut case);
            dropped(&mut case);
            unwelcome(&mut case);
            without_port(&mut case);
            by_setting(&mut case);
        }
        let all: BTreeSet<Reason> = Reason::ALL.into_iter().collect();
        assert_eq!(case.produced, all);
    });
}

/// What only happens where it is asked for.
fn by_setting(case: &mut Case<'_>) {
    case.begin();
    case.world.edit(|tables| {
        let service = &mut tables.services[2];
        service.flags |= service_flag::SPECIAL | service_flag::SIP;
        service.persistence = 100;
    });
    case.drops(&case.to_port(80, Kind::Udp).bytes(), Reason::NoCallId, []);

    case.begin();
    case.world.edit(|tables| tables.settings.drop_rate = 1);
    let local = "s1 local = yes".to_owned();
    case.drops(&case.to_port(80, Kind::Tcp(SYN)).bytes(), Reason::Thinned, [local]);

    case.begin();
    case.world.edit(|tables| tables.settings.flags |= settings_flag::TELL_SERVERS);
    let mut packet = reply(case.world.network, case.family, Kind::Tcp(ACK));
    packet.source.set_ip(server(case.family, 12));
    let frame = packet.bytes();
    let input = Input::new(&frame, case.world.network.outside.index);
    let outcome = case.world.step_with(&input).same();
    let interface = case.world.network.outside.index;
    assert_eq!(outcome.verdict, Verdict::Transmit { interface });
    assert_eq!(outcome.bytes, complaint(&packet, Reason::UnknownReply));
    case.changed(&outcome, Reason::UnknownReply, []);
    // Not for a reset, nor for who is no server.
    for (kind, port) in [(Kind::Tcp(RST), packet.source.port()), (Kind::Tcp(ACK), 9)] {
        let mut packet = Packet { kind, ..packet.clone() };
        packet.source.set_port(port);
        let frame = packet.bytes();
        let outcome = case.world.step_with(&Input::new(&frame, interface)).same();
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoService));
    }
}

/// There is no pool.
fn without_port(case: &mut Case<'_>) {
    case.begin();
    case.world.edit(|tables| {
        tables.services[3].flags |= service_flag::SPECIAL | service_flag::FULL;
        tables.destinations[3].flags |= destination_flag::FULL;
    });
    let packet = case.to_port(81, Kind::Tcp(SYN));
    let changes = ["s3 local = yes".to_owned(), "s3 position = 1".to_owned()];
    case.answers(&packet, Reason::NoPort, changes);
}

fn passed(case: &mut Case<'_>) {
    let family = case.family;
    let syn = case.to_port(80, Kind::Tcp(SYN));
    let frame = syn.bytes();
    let with = |changes: &[(usize, u8)]| {
        let mut frame = frame.clone();
        for &(at, value) in changes {
            frame[at] = value;
        }
        frame
    };
    let four = family == 4;
    let local = |id| format!("s{id} local = yes");

    case.begin();
    case.passes(&with(&[(12, 0x08), (13, 0x06)]), Reason::OtherProtocol, []);
    case.begin();
    let routed = if four {
        optioned(&frame, &[131, 3, 4, 0])
    } else {
        extended(&frame, &[(43, &[0, 1, 0, 0, 0, 0])])
    };
    case.passes(&routed, Reason::Options, []);
    case.begin();
    case.passes(&with(if four { &[(16, 0xff)] } else { &[(18, 0xff)] }), Reason::Malformed, []);
    case.begin();
    let [_, later, ..] = &fragments(&frame, 1, 24)[..] else { panic!("one fragment") };
    case.passes(later, Reason::Fragment, []);
    case.begin();
    case.passes(&with(&[(5, 0x77)]), Reason::OtherHost, []);
    case.begin();
    case.passes(&case.to_port(79, Kind::Tcp(SYN)).bytes(), Reason::NoService, []);
    for flags in [ACK, FIN | ACK, RST, SYN | RST, 0] {
        case.begin();
        case.passes(&case.to_port(80, Kind::Tcp(flags)).bytes(), Reason::NoConnection, []);
    }
    case.begin();
    let elsewhere = Packet { target: (vip(family, 200), 80).into(), ..syn.clone() };
    case.passes(&elsewhere.bytes(), Reason::NotLocal, ["s5 local = no".to_owned()]);
    case.begin();
    case.world.edit(|tables| tables.services[1].flags &= !service_flag::LIVE);
    case.passes(&frame, Reason::NoService, []);

    // From a server to a client without a connection.
    case.begin();
    let network = case.world.network;
    let mut from_server = reply(network, family, Kind::Tcp(ACK));
    from_server.source.set_ip(server(family, 12));
    let bytes = from_server.bytes();
    let outcome = case.world.step_with(&Input::new(&bytes, network.outside.index)).same();
    assert_eq!(
        (outcome.verdict, outcome.bytes.clone()),
        (Verdict::Pass(Reason::NoConnection), bytes)
    );
    case.changed(&outcome, Reason::NoConnection, []);

    // XDP leaves it to TC, with the connection opened; see `paths` for what TC does.
    case.begin();
    let frame = case.to_port(84, Kind::Tcp(SYN)).bytes();
    let outcome = case.world.step_xdp(&case.input(&frame));
    assert_eq!((outcome.verdict, &outcome.bytes), (Verdict::Pass(Reason::Unresolved), &frame));
    let opened = [
        format!("{}:4242 s7 = SYN_RECV d6", client(family, 7)),
        "d6 active = 1".to_owned(),
        "d6 connections = 1".to_owned(),
        "s7 position = 1".to_owned(),
        local(7),
    ];
    case.changed(&outcome, Reason::Unresolved, opened);

    // And what is for a real server on the director.
    case.begin();
    let frame = case.to_port(85, Kind::Tcp(SYN)).bytes();
    let outcome = case.world.step_xdp(&case.input(&frame));
    assert_eq!((outcome.verdict, &outcome.bytes), (Verdict::Pass(Reason::Local), &frame));
    let opened = [
        format!("{}:4242 s9 = SYN_RECV d8", client(family, 7)),
        "d8 active = 1".to_owned(),
        "d8 connections = 1".to_owned(),
        "s9 position = 1".to_owned(),
        local(9),
    ];
    case.changed(&outcome, Reason::Local, opened);

    // A real server that is a director has chosen this one.
    case.begin();
    case.world.edit(|tables| {
        tables.services[1].flags |= service_flag::PEERED;
        tables.services[1].head = 1;
        tables.destinations[1].flags |= destination_flag::PEER;
    });
    let sent_on = Packet { from: network::server_mac(11), ..syn };
    case.passes(&sent_on.bytes(), Reason::FromPeer, ["d1 way = .. 0b".to_owned()]);
}

fn answered(case: &mut Case<'_>) {
    let family = case.family;
    let client = client(family, 7);
    let local = |id| format!("s{id} local = yes");
    let position = |id, position| format!("s{id} position = {position}");

    case.begin();
    case.answers(&case.to_port(82, Kind::Tcp(SYN)), Reason::NoDestination, [local(4)]);
    // A destination that is quiesced is still in the ring in force for a moment.
    case.begin();
    case.world.edit(|tables| tables.destinations[2].weight = 0);
    let changes = [local(2), position(2, 3)];
    case.answers(&case.to_port(80, Kind::Udp), Reason::NoDestination, changes);
    for (kind, service) in [(Kind::Tcp(SYN), 1), (Kind::Udp, 2)] {
        case.begin();
        let packet = Packet { ttl: 1, ..case.to_port(80, kind) };
        case.answers(&packet, Reason::Expired, [local(service)]);
    }

    // NAT needs a place for each half.
    case.begin();
    case.world.edit(fill);
    let changes = [local(3), position(3, 1)];
    case.answers(&case.to_port(81, Kind::Tcp(SYN)), Reason::TableFull, changes);

    // Direct routing does without, and other packets of the flow follow it.
    for kind in [Kind::Tcp(SYN), Kind::Tcp(ACK), Kind::Udp] {
        case.begin();
        case.world.edit(fill);
        let packet = case.to_port(80, kind);
        let id = if kind == Kind::Udp { 2 } else { 1 };
        let outcome = case.world.step(&packet.bytes()).same();
        let (network, opening) = (case.world.network, kind != Kind::Tcp(ACK));
        assert_eq!(outcome.verdict, Verdict::Transmit { interface: network.outside.index });
        let (from, to) = (network.outside.mac, network::server_mac(11));
        assert_eq!(outcome.bytes, Packet { from, to, ttl: 63, ..packet.clone() }.bytes());
        let changes = [
            format!("d{id} packets in = 1"),
            format!("d{id} bytes in = {}", packet.length()),
            format!("d{id} way = .. 0b"),
            if opening { local(id) } else { String::new() },
            if opening { position(id, 1) } else { String::new() },
        ];
        case.changed(&outcome, Reason::Stateless, changes);
    }

    // The server has one connection from this port already, by another service.
    case.begin();
    let first = case.to_port(81, Kind::Tcp(SYN));
    assert_eq!(
        case.world.step(&first.bytes()).same().verdict,
        Verdict::Transmit { interface: case.world.network.outside.index }
    );
    let second = Packet { target: (vip(family, 101), 80).into(), ..first };
    case.answers(&second, Reason::ReplyTaken, [local(8), position(8, 3)]);
    let kept = e2e::snapshot::connections(case.world.tables());
    assert_eq!(kept.get(&format!("{client}:4242 r1")).unwrap(), "SYN_RECV d3 paired reply");
}

fn dropped(case: &mut Case<'_>) {
    let (family, network) = (case.family, case.world.network);
    let client = client(family, 7);
    let syn = case.to_port(80, Kind::Tcp(SYN)).bytes();
    let ack = case.to_port(80, Kind::Tcp(ACK));
    let opened = |service: u32, destination: u32| {
        [
            format!("{client}:4242 s{service} = SYN_RECV d{destination}"),
            format!("d{destination} active = 1"),
            format!("d{destination} connections = 1"),
            format!("s{service} position = 1"),
            format!("s{service} local = yes"),
        ]
    };

    // The connection of a destination that was removed keeps its state and its time.
    case.begin();
    let _: Outcome = case.world.step(&syn).same();
    case.world.edit(|tables| tables.destinations[1].flags &= !destination_flag::AVAILABLE);
    case.world.advance(3);
    case.drops(&ack.bytes(), Reason::Removed, []);

    case.begin();
    case.answers(&case.to_port(83, Kind::Tcp(SYN)), Reason::Unreachable, opened(6, 5));

    case.begin();
    let _: Outcome = case.world.step(&syn).same();
    let big = Packet { payload: vec![7; 1500], ..ack };
    let established = format!("{client}:4242 s1 = ESTABLISHED d1");
    case.answers(&big, Reason::TooBig, [established]);

    case.begin();
    case.world.edit(|tables| tables.locks.iter().for_each(|lock| lock.set(1)));
    case.drops(&syn, Reason::Busy, ["s1 local = yes".to_owned()]);

    // The ring names a destination that there is not.
    case.begin();
    case.world
        .edit(|tables| tables.rings.fill(RingLine { elements: [u64::from(e2e::host::IDS); 16] }));
    let changes = ["s1 local = yes".to_owned(), "s1 position = 1".to_owned()];
    case.drops(&syn, Reason::Inconsistent, changes);

    // One error more than a CPU sends at a time.
    case.begin();
    let exhausted = u64::from(Time::now(case.world.tables(), &case.world.tables().settings).0)
        << 32
        | u64::from(ERRORS_A_UNIT);
    case.world.edit(|tables| tables.limits[network.cpu as usize].errors.set(exhausted));
    let packet = Packet { ttl: 1, ..case.to_port(80, Kind::Tcp(SYN)) };
    case.drops(&packet.bytes(), Reason::IcmpLimited, ["s1 local = yes".to_owned()]);

    // An answer needs room before the frame. TC cannot be brought to lack it in a test run, so its
    // part is played by the host.
    case.begin();
    let frame = Packet { ttl: 1, ..case.to_port(80, Kind::Tcp(SYN)) }.bytes();
    let input = Input { cramped: true, ..Input::new(&frame, network.inside.index) };
    for outcome in [case.world.step_xdp(&input), case.world.step_on_host(&input)] {
        assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoRoom));
        case.changed(&outcome, Reason::NoRoom, ["s1 local = yes".to_owned()]);
    }
}

/// Packets of clients that may not open a connection, or not now.
fn unwelcome(case: &mut Case<'_>) {
    let family = case.family;
    let syn = case.to_port(80, Kind::Tcp(SYN)).bytes();
    let local = "s1 local = yes".to_owned();
    let alone = |address| Prefix::new(address, 128);
    let (own, other) = (alone(client(family, 7)), alone(server(family, 7)));
    let limit = |rate, number| Some(Limit { rate, number, ..Limit::default() });
    let (deny, allow) = ((own, Says::Deny), (other, Says::Allow));
    for (lists, limit, reason) in [
        (vec![deny, allow], None, Reason::Denied),
        (vec![allow], None, Reason::NotAllowed),
        (vec![], limit(Some(1), None), Reason::TooFast),
        (vec![], limit(None, Some(1)), Reason::TooMany),
    ] {
        case.begin();
        let mut access = Access::default();
        access.all.prefixes.extend(lists);
        access.all.limit = limit;
        case.world.edit(|tables| guarded::put(tables, &access));
        let mut changes = vec![local.clone()];
        if limit.is_some() {
            let first = Packet {
                source: (client(family, 7), 1).into(),
                ..case.to_port(80, Kind::Tcp(SYN))
            };
            let _: Outcome = case.world.step(&first.bytes()).same();
            changes.clear();
        }
        let outcome = case.world.step(&syn).same();
        assert_eq!(outcome.verdict, Verdict::Drop(reason));
        let expected = changes.into_iter().chain([format!("reason {} = 1", reason.name())]);
        let mut expected: Vec<_> = expected.collect();
        expected.sort();
        assert_eq!(outcome.changes, expected);
        case.produced.insert(reason);
    }
}

/// A packet for a service that is not served here is none of ours, whatever its hop limit: a backup
/// director must not answer.
#[test]
fn a_used_up_hop_limit_is_not_answered_where_nothing_is_served() {
    network::run("backup", |network| {
        let world = World::new(network, &description(network, 4));
        let syn = request(network, 4, Kind::Tcp(SYN));
        let packet = Packet { ttl: 1, target: (vip(4, 200), 80).into(), ..syn };
        let outcome = world.step(&packet.bytes()).same();
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::NotLocal));
    });
}

/// A server is told that its packet's hop limit is used up by the director; the error must not say
/// that it came from the client.
#[test]
fn a_server_is_not_answered_in_the_clients_name() {
    network::run("in-name", |network| {
        let world = World::new(network, &description(network, 4));
        let mut packet = request(network, 4, Kind::Tcp(SYN));
        packet.target.set_port(81);
        let _: Outcome = world.step(&packet.bytes()).same();
        let mut packet = reply(network, 4, Kind::Tcp(SYN | ACK));
        packet.source.set_ip(server(4, 12));
        packet.ttl = 1;
        let bytes = packet.bytes();
        let outcome = world.step_with(&Input::new(&bytes, network.outside.index)).same();
        let client = [198, 51, 100, 7];
        assert_ne!(outcome.bytes[26..30], client, "{outcome:?}");
    });
}
