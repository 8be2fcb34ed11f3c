//! Requests are read back as they were meant, and no answer, however broken, makes a panic.

use std::net::IpAddr;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rlvs_control::model::{
    Destination, DestinationId, Family, ForwardingMethod, Netmask, Persistence, Protocol, Service,
    ServiceId, SyncDaemon, SyncRole, Timeouts, Traffic, Tunnel, TunnelChecksum,
};

use super::decode::{self, Figures};
use super::message::{Attributes, Malformed, Message, Writer};
use super::uapi::{Attribute, destination as dest, info, service as svc, stats, top};
use super::{connections, encode};

const TOTALS: Traffic =
    Traffic { connections: 1, in_packets: 2, out_packets: 3, in_bytes: 4, out_bytes: 1 << 40 };
const RATES: Traffic =
    Traffic { connections: 6, in_packets: 7, out_packets: 8, in_bytes: 9, out_bytes: 10 };

fn figures() -> Writer {
    let numbers = |traffic: Traffic| {
        let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = traffic;
        [connections, in_packets, out_packets, in_bytes, out_bytes]
    };
    let totals = stats::TOTALS.into_iter().zip(numbers(TOTALS));
    let rates = stats::RATES.into_iter().zip(numbers(RATES));
    totals.chain(rates).fold(Writer::default(), |writer, (attribute, number)| {
        writer.bytes(attribute, &number.to_ne_bytes())
    })
}

/// Returns a request made into an answer: with more attributes in the nest.
fn answer(request: &[u8], nest: Attribute, more: Writer) -> Vec<u8> {
    let inner = Attributes::parse(request).unwrap().get(nest).unwrap();
    let both = [inner.to_vec(), more.finish()].concat();
    Writer::default().bytes(nest, &both).finish()
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn service_id() -> impl Strategy<Value = ServiceId> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let at = (any::<u8>(), address(), any::<u16>()).prop_map(|(number, address, port)| {
        ServiceId::Address { protocol: Protocol::from_number(number), address, port }
    });
    let mark = (family, 1..=u32::MAX).prop_map(|(family, mark)| ServiceId::Mark { family, mark });
    prop_oneof![at, mark]
}

fn service() -> impl Strategy<Value = Service> {
    let persistence = option::of((1..=2_678_400_u32, any::<[u8; 4]>(), 1..=128_u8));
    let engine = option::of("[a-z]{1,15}");
    (service_id(), "[a-z]{1,15}", 0..8_u8, any::<bool>(), persistence, engine).prop_map(
        |(id, scheduler, scheduler_flags, one_packet, persistence, persistence_engine)| Service {
            id,
            scheduler,
            scheduler_flags,
            one_packet,
            persistence: persistence.map(|(timeout_s, mask, length)| Persistence {
                timeout_s,
                netmask: match id.family() {
                    Family::V4 => Netmask::V4(mask),
                    Family::V6 => Netmask::V6(length),
                },
            }),
            persistence_engine,
        },
    )
}

fn method() -> impl Strategy<Value = ForwardingMethod> {
    let checksum = prop_oneof![
        Just(TunnelChecksum::None),
        Just(TunnelChecksum::Outer),
        Just(TunnelChecksum::Remote)
    ];
    prop_oneof![
        Just(ForwardingMethod::Masquerade),
        Just(ForwardingMethod::DirectRoute),
        Just(ForwardingMethod::Tunnel(Tunnel::Ipip)),
        any::<bool>().prop_map(|checksum| ForwardingMethod::Tunnel(Tunnel::Gre { checksum })),
        (any::<u16>(), checksum).prop_map(|(port, checksum)| {
            ForwardingMethod::Tunnel(Tunnel::Gue { port, checksum })
        }),
    ]
}

fn destination() -> impl Strategy<Value = Destination> {
    (address(), any::<u16>(), method(), any::<[u32; 3]>()).prop_map(
        |(address, port, method, [weight, upper_threshold, lower_threshold])| Destination {
            id: DestinationId { address, port },
            method,
            weight,
            upper_threshold,
            lower_threshold,
        },
    )
}

proptest! {
    #[test]
    fn services_come_back(service in service()) {
        let more = Writer::default().nest(svc::STATS64, figures());
        let bytes = answer(&encode::service(&service), top::SERVICE, more);
        let read = decode::service(&bytes, Figures::Totals);
        prop_assert_eq!(read, Ok((service.clone(), TOTALS)));
        prop_assert_eq!(decode::service(&bytes, Figures::Rates), Ok((service, RATES)));
    }

    #[test]
    fn destinations_come_back(of in service_id(), to in destination(), counts: [u32; 3]) {
        let [active, inactive, persistent] = counts;
        let more = Writer::default()
            .u32(dest::ACTIVE_CONNS, active)
            .u32(dest::INACT_CONNS, inactive)
            .u32(dest::PERSIST_CONNS, persistent)
            .nest(dest::STATS64, figures());
        let bytes = answer(&encode::destination(of, &to), top::DEST, more);
        let read = decode::destination(&bytes, of.family(), Figures::Totals).unwrap();
        prop_assert_eq!(read.destination, to);
        prop_assert_eq!([read.active, read.inactive, read.persistent], counts);
        prop_assert_eq!(read.traffic, TOTALS);
    }

    #[test]
    fn daemons_come_back(
        master: bool,
        interface in "[a-z0-9]{1,15}",
        sync_id in 0..256_u32,
        group in option::of(address()),
        message_bytes_max in option::of(1..=u16::MAX),
        port in option::of(1..=u16::MAX),
        ttl in option::of(1..=u8::MAX),
    ) {
        let role = if master { SyncRole::Master } else { SyncRole::Backup };
        let daemon =
            SyncDaemon { role, interface, sync_id, message_bytes_max, group, port, ttl };
        prop_assert_eq!(decode::sync_daemon(&encode::sync_daemon(&daemon)), Ok(daemon));
    }

    #[test]
    fn timeouts_and_messages_come_back(numbers: [u32; 3], family: u16, command: u8) {
        let [tcp_s, tcp_fin_s, udp_s] = numbers;
        let timeouts = Timeouts { tcp_s, tcp_fin_s, udp_s };
        let attributes = encode::timeouts(timeouts);
        prop_assert_eq!(decode::timeouts(&attributes), Ok(timeouts));
        let message = Message { family, version: 1, command, attributes };
        let mut bytes = vec![0xa5; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut header = NetlinkHeader::default();
        header.message_type = message.message_type();
        prop_assert_eq!(Message::deserialize(&header, &bytes), Ok(message));
    }

    #[test]
    fn garbage_is_no_panic(bytes in vec(any::<u8>(), 0..200), text in "\\PC{0,200}") {
        read_all(&bytes);
        drop(connections::lines(&text));
        drop(connections::lines(&format!("title\n{text}")));
        drop(connections::lines(&String::from_utf8_lossy(&bytes)));
    }

    #[test]
    fn an_answer_with_wrong_bytes_is_no_panic(
        service in service(),
        to in destination(),
        wrong in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
    ) {
        let with_stats = Writer::default().nest(svc::STATS64, figures());
        for mut bytes in [
            answer(&encode::service(&service), top::SERVICE, with_stats),
            encode::destination(service.id, &to),
        ] {
            for (index, byte) in &wrong {
                *index.get_mut(&mut bytes) = *byte;
            }
            read_all(&bytes);
            bytes.truncate(end.index(bytes.len()));
            read_all(&bytes);
        }
    }
}

fn read_all(bytes: &[u8]) {
    for figures in [Figures::Totals, Figures::Rates] {
        drop(decode::service(bytes, figures));
        for family in [Family::V4, Family::V6] {
            drop(decode::destination(bytes, family, figures));
        }
    }
    drop(decode::sync_daemon(bytes));
    drop(decode::timeouts(bytes));
    drop(decode::info(bytes));
    drop(decode::family_id(bytes));
    drop(Message::deserialize(&NetlinkHeader::default(), bytes));
}

/// The bytes are those that `linux/netlink.h` and `linux/ip_vs.h` prescribe, on a machine whose
/// numbers have the lowest byte first.
#[cfg(target_endian = "little")]
#[test]
fn a_request_in_bytes() {
    let id =
        ServiceId::Address { protocol: Protocol::Tcp, address: [10, 0, 0, 1].into(), port: 80 };
    let expected: [&[u8]; 9] = [
        &[48, 0, 1, 0x80],
        &[6, 0, 1, 0],
        &[2, 0, 0, 0],
        &[6, 0, 2, 0],
        &[6, 0, 0, 0],
        &[20, 0, 3, 0],
        &[10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 4, 0],
        &[0, 80, 0, 0],
    ];
    assert_eq!(encode::service_id(id), expected.concat());
}

#[test]
fn old_kernels_have_figures_of_32_bits() {
    let narrow = stats::TOTALS.into_iter().zip([1_u32, 2, 3]);
    let nest =
        narrow.fold(Writer::default(), |writer, (attribute, number)| writer.u32(attribute, number));
    let [_, _, _, in_bytes, out_bytes] = stats::TOTALS;
    let nest =
        nest.bytes(in_bytes, &4_u64.to_ne_bytes()).bytes(out_bytes, &(1_u64 << 40).to_ne_bytes());
    let id = ServiceId::Mark { family: Family::V4, mark: 7 };
    let service = Service {
        id,
        scheduler: "rr".to_owned(),
        scheduler_flags: 0,
        one_packet: false,
        persistence: None,
        persistence_engine: None,
    };
    let more = Writer::default().nest(svc::STATS, nest);
    let bytes = answer(&encode::service(&service), top::SERVICE, more);
    assert_eq!(decode::service(&bytes, Figures::Totals), Ok((service, TOTALS)));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let version = Writer::default().u32(info::VERSION, 0x01_02_01);
    let error = decode::info(&version.clone().finish());
    assert_eq!(error, Err(Malformed::Missing("IPVS_INFO_ATTR_CONN_TAB_SIZE")));
    let read = decode::info(&version.u32(info::CONN_TAB_SIZE, 4096).finish()).unwrap();
    assert_eq!((read.version.to_string().as_str(), read.connection_table_size), ("1.2.1", 4096));
    let short = Writer::default().u16(info::VERSION, 1).finish();
    let expected = Malformed::Length { name: "IPVS_INFO_ATTR_VERSION", bytes: 2 };
    assert_eq!(decode::info(&short), Err(expected));
    assert_eq!(decode::info(&[8, 0, 1, 0]), Err(Malformed::Truncated));
}

#[test]
fn connections_are_read_from_their_lines() {
    let text = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A090002 1771 0A090064 03E9 0A01000B 0050 ESTABLISHED     899
UDP fd09:0000:0000:0000:0000:0000:0000:0002 13C4 fd09::100 13C4 0A01000B 13C4 UDP 60 sip 4711@phone
IP  0A090002 0000 0000004D 0000 0A01000D 0000 ASSURED          59
";
    let lines = connections::lines(text).unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0].client, "10.9.0.2:6001".parse().unwrap());
    assert_eq!(lines[0].destination, "10.1.0.11:80".parse().unwrap());
    assert_eq!((lines[0].expires_s, lines[0].engine.as_ref()), (899, None));
    assert_eq!(lines[1].client, "[fd09::2]:5060".parse().unwrap());
    assert_eq!(lines[1].destination, "10.1.0.11:5060".parse().unwrap());
    assert_eq!(lines[1].engine.as_ref().unwrap().data, "4711@phone");
    assert_eq!(lines[2].virtual_address, "0.0.0.77:0".parse().unwrap());
    let typed: Vec<_> = lines.iter().filter_map(connections::typed).collect();
    assert_eq!(typed.iter().map(|one| one.state).collect::<Vec<_>>(), ["ESTABLISHED", "UDP"]);
    let broken = "title\nTCP 0A090002 1771 zz";
    assert!(matches!(connections::lines(broken), Err(Malformed::Line(_))));
}
