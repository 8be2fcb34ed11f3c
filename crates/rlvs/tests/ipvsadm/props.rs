//! What holds for any words, and for any table.

use std::net::IpAddr;

use proptest::prelude::*;
use rlvs_control::model::{
    Destination, DestinationId, Family, ForwardingMethod, Netmask, Persistence, Protocol, Service,
    ServiceId, Tunnel, TunnelChecksum,
};
use rlvs_control::table::Table;

use crate::machine::Machine;

/// Words that mean something, so that most lines get past the first.
const WORDS: &str = "\
-A -E -D -a -e -d -C -L -l -Z -S -R -h -v --set --start-daemon --stop-daemon --list --add-service
-t -u -f -6 -s -p -M -r -g -i -m -w -x -y -n -c -o -b -X --pe --sctp-service --timeout --daemon
--stats --rate --thresholds --persistent-conn --tun-info --nosort --sort --syncid --mcast-group
--tun-type --tun-port --tun-csum --tun-nocsum --tun-remcsum --scheduler=rr -t=1.2.3.4:80 -Ln -p5
1.2.3.4:80 [::1]:80 ::1 10.1 localhost:http master gue gre rr sh sh-port flag-1 sip , -b, -- - = 0
1 7 255 65536 2678400 4294967295 99999999999999999999 255.255.0.0 -1 ipvsadm \u{e9} [ ] : [: ]:";

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_words_end_with_a_status_of_ours(line in words(12), stdin in words(30)) {
        let machine = Machine::new();
        machine.ok("-A -t 1.2.3.4:80 -s rr");
        let outcome = machine.run_words(&line, &stdin.join(" "));
        prop_assert!([0, 1, 2, 255].contains(&outcome.status), "{outcome:?}");
        if !line.contains(&"-R".to_owned()) {
            prop_assert_eq!(outcome.status == 0, outcome.stderr.is_empty(), "{:?}", outcome);
        }
        let restored = machine.run_words(&["-R"], &line.join(" ").replace(" - ", "\n"));
        prop_assert!([0, 1, 2, 255].contains(&restored.status), "{restored:?}");
    }

    #[test]
    fn what_is_saved_is_what_is_restored(
        services in prop::collection::vec((service(), destinations()), 0..8),
        numeric in any::<bool>(),
    ) {
        let (machine, copy) = (Machine::new(), Machine::new());
        fill(&machine, services);
        let saved = machine.ok(if numeric { "-S -n" } else { "-S" });
        let outcome = copy.run_words(&["-R"], &saved);
        prop_assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{}", saved);
        prop_assert_eq!(contents(&copy), contents(&machine), "{}", saved);
    }
}

fn words(most: usize) -> impl Strategy<Value = Vec<String>> {
    let known: Vec<_> = WORDS.split_whitespace().map(str::to_owned).collect();
    let word = prop_oneof![20 => prop::sample::select(known), 1 => "\\PC{0,8}"];
    prop::collection::vec(word, 0..most)
}

fn service() -> impl Strategy<Value = Service> {
    let address = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u16; 8]>().prop_map(IpAddr::from)
    ];
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let family = prop::sample::select(vec![Family::V4, Family::V6]);
    let id = prop_oneof![
        3 => (protocol, address, port()).prop_map(|(protocol, address, port)| {
            ServiceId::Address { protocol, address, port }
        }),
        // A mark of 2^31 or more is saved in a way that cannot be restored.
        1 => (family, 1..=i32::MAX as u32).prop_map(|(family, mark)| ServiceId::Mark { family, mark }),
    ];
    let scheduler = prop::sample::select(vec!["rr", "wlc", "sh", "mh", "none"]);
    let persistence = prop::option::of((1_u32..=2_678_400, any::<[u8; 4]>(), 1_u8..=128));
    let engine = prop::option::of(Just("sip".to_owned()));
    (id, scheduler, 0_u8..8, any::<bool>(), persistence, engine).prop_map(
        |(id, scheduler, scheduler_flags, one_packet, persistence, persistence_engine)| {
            let udp_or_mark =
                !matches!(id, ServiceId::Address { protocol: Protocol::Tcp | Protocol::Sctp, .. });
            let any_port = matches!(id, ServiceId::Address { port: 0, .. });
            let persistence = persistence.or(any_port.then_some((360, [255; 4], 128)));
            Service {
                id,
                scheduler: scheduler.to_owned(),
                scheduler_flags,
                one_packet: one_packet && udp_or_mark,
                persistence: persistence.map(|(timeout_s, v4, v6)| Persistence {
                    timeout_s,
                    netmask: match id.family() {
                        Family::V4 => Netmask::V4(v4),
                        Family::V6 => Netmask::V6(v6),
                    },
                }),
                persistence_engine,
            }
        },
    )
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(53), Just(80), any::<u16>()]
}

/// Destinations as if for a mark service of any family; [`fill`] makes them fit.
fn destinations() -> impl Strategy<Value = Vec<Destination>> {
    let address = prop_oneof![
        (1_u8..224, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d])),
        any::<[u16; 7]>()
            .prop_map(|[b, c, d, e, f, g, h]| { IpAddr::from([0x2001, b, c, d, e, f, g, h]) }),
    ];
    let checksum = prop::sample::select(vec![
        TunnelChecksum::None,
        TunnelChecksum::Outer,
        TunnelChecksum::Remote,
    ]);
    let tunnel = prop_oneof![
        Just(Tunnel::Ipip),
        any::<bool>().prop_map(|checksum| Tunnel::Gre { checksum }),
        (1_u16.., checksum).prop_map(|(port, checksum)| Tunnel::Gue { port, checksum }),
    ];
    let method = prop_oneof![
        Just(ForwardingMethod::DirectRoute),
        Just(ForwardingMethod::Masquerade),
        tunnel.prop_map(ForwardingMethod::Tunnel),
    ];
    let one = (address, port(), method, 0..=i32::MAX as u32).prop_map(
        |(address, port, method, weight)| Destination {
            id: DestinationId { address, port },
            method,
            weight,
            // Thresholds are not saved.
            upper_threshold: 0,
            lower_threshold: 0,
        },
    );
    prop::collection::vec(one, 0..6)
}

/// Puts what the command line could have put into the table; the table refuses the rest.
fn fill(machine: &Machine, services: Vec<(Service, Vec<Destination>)>) {
    let mut table = machine.table.memory.borrow_mut();
    for (service, destinations) in services {
        if table.add_service(&service).is_err() {
            continue;
        }
        for mut to in destinations {
            if let ServiceId::Address { port, .. } = service.id
                && to.method != ForwardingMethod::Masquerade
            {
                to.id.port = port;
            }
            drop(table.add_destination(service.id, &to));
        }
    }
}

/// Returns services and destinations regardless of their order.
pub(crate) fn contents(machine: &Machine) -> Vec<String> {
    let entries = machine.table.memory.borrow_mut().services().unwrap();
    let mut contents: Vec<_> = entries
        .into_iter()
        .map(|mut entry| {
            entry.destinations.sort_by_key(|to| to.destination.id);
            format!("{entry:?}")
        })
        .collect();
    contents.sort();
    contents
}
