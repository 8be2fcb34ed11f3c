use std::net::SocketAddr;

use rlvs_control::model::{DestinationId, ForwardingMethod, Protocol, Tunnel};
use rlvs_linux::route::Mac;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn end(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn server(text: &str, weight: u32) -> Server {
    let at = end(text);
    Server {
        id: DestinationId { address: at.ip(), port: at.port() },
        method: ForwardingMethod::Masquerade,
        weight,
        drained: false,
        listed: true,
        active: 3,
        inactive: 4,
        upper: 0,
        lower: 0,
        overloaded: false,
    }
}

/// A connection that is opened to the first of two servers.
fn scene() -> Scene {
    let (client, target) = (end("192.0.2.1:1234"), end("192.0.2.80:80"));
    let asked = Asked { protocol: Protocol::Tcp, client, target, established: false };
    let id = ServiceId::Address { protocol: Protocol::Tcp, address: target.ip(), port: 80 };
    let service =
        Service { id, scheduler: "wrr", persistent: false, one_packet: false, guarded: false };
    let frame = asked.frame(MAC).expect("a frame");
    Scene {
        asked,
        interface: "eth0".to_owned(),
        becomes: Becomes::read(&frame, None),
        answer: Answer {
            outcome: Outcome::Sent,
            frame,
            reasons: Vec::new(),
            service: Some(service),
            servers: vec![server("10.0.0.1:80", 1), server("10.0.0.2:80", 2)],
            chosen: Some(Chosen {
                server: 0,
                opened: true,
                template_made: false,
                interface: Some(3),
                unresolved: false,
            }),
            connection: None,
        },
        way: Some("eth1".to_owned()),
        no_way: false,
    }
}

fn written(scene: &Scene) -> String {
    let mut out = Vec::new();
    scene.write(&mut out).expect("memory");
    String::from_utf8(out).expect("text")
}

#[test]
fn a_new_connection_is_explained() {
    let scene = scene();
    assert_eq!(
        written(&scene),
        "packet   TCP SYN from 192.0.2.1:1234 to 192.0.2.80:80, by eth0\n\
         service  TCP 192.0.2.80:80, wrr\n\
         server   -> 10.0.0.1:80 masquerade, weight 1, 3 active, 4 inactive\n\
         server      10.0.0.2:80 masquerade, weight 2, 3 active, 4 inactive\n\
         why      wrr: it is its turn by weight, if no other connection comes before\n\
         why      2 of 2 servers take new connections\n\
         becomes  192.0.2.1:1234 to 192.0.2.80:80, TTL 64\n\
         way      by eth1 to 02:00:00:00:00:09\n\
         verdict  forwarded\n"
    );
    assert_eq!(scene.json()["chosen"]["address"], "10.0.0.1");
}

#[test]
fn servers_that_take_nothing_say_why() {
    let mut scene = scene();
    scene.answer.servers[0].drained = true;
    scene.answer.servers[0].weight = 0;
    let other = &mut scene.answer.servers[1];
    (other.upper, other.lower, other.overloaded) = (7, 2, true);
    let text = written(&scene);
    assert!(text.contains("weight 0, 3 active, 4 inactive: drained\n"), "{text}");
    assert!(text.contains(": overloaded, thresholds 7 and 2\n"), "{text}");
    assert!(text.contains("0 of 2 servers"), "{text}");
}

#[test]
fn persistence_comes_before_the_scheduler() {
    let mut scene = scene();
    if let Some(service) = &mut scene.answer.service {
        service.persistent = true;
    }
    assert_eq!(scene.why()[0], "the client's persistence template leads there");
    if let Some(chosen) = &mut scene.answer.chosen {
        chosen.template_made = true;
    }
    assert!(scene.why()[0].contains("one is made"), "{:?}", scene.why());
    assert!(scene.why()[1].starts_with("wrr: "), "{:?}", scene.why());
}

#[test]
fn every_way_to_end_has_a_verdict() {
    let with = |outcome, reasons: &[Reason]| {
        let mut scene = scene();
        scene.answer.outcome = outcome;
        scene.answer.reasons = reasons.to_vec();
        scene
    };
    let verdict = |scene: &Scene| (scene.verdict(), scene.is_forwarded());
    let sent = with(Outcome::Sent, &[Reason::Stateless]);
    assert_eq!(verdict(&sent), (Verdict::Forwarded, true));
    let local = with(Outcome::Passed, &[Reason::Local]);
    assert_eq!(verdict(&local), (Verdict::Local, true));
    let lost = Scene { no_way: true, ..local };
    assert_eq!(verdict(&lost), (Verdict::Dropped, false));
    assert!(lost.why().contains(&"there is no route to the server".to_owned()));
    assert_eq!(verdict(&with(Outcome::Passed, &[])), (Verdict::Passed, false));
    assert_eq!(verdict(&with(Outcome::Dropped, &[Reason::Denied])), (Verdict::Dropped, false));
    let mut answered = with(Outcome::Sent, &[Reason::NoDestination]);
    if let Some(becomes) = &mut answered.becomes {
        becomes.icmp = Some((3, 3));
    }
    assert_eq!(verdict(&answered), (Verdict::Answered, false));
}

#[test]
fn what_is_asked_is_read_back() {
    for (client, target) in
        [("192.0.2.1:1234", "192.0.2.80:80"), ("[2001:db8::1]:1234", "[2001:db8::80]:80")]
    {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            for established in [false, true] {
                let (client, target) = (end(client), end(target));
                let asked = Asked { protocol, client, target, established };
                let frame = asked.frame(MAC).expect("a frame");
                let read = Becomes::read(&frame, None).expect("what was written");
                assert_eq!((read.source, read.target), (client.ip(), target.ip()), "{asked:?}");
                assert_eq!((read.mac, read.ports), (MAC, Some((1234, 80))), "{asked:?}");
            }
        }
    }
}

#[test]
fn what_a_tunnel_carries_is_read() {
    let asked = scene().asked;
    let whole = asked.frame(MAC).expect("a frame");
    let inner = &whole[14..];
    let gue = Tunnel::Gue { port: 6080, checksum: rlvs_control::model::TunnelChecksum::None };
    for (tunnel, number, head) in [
        (Tunnel::Ipip, 4, &[][..]),
        (Tunnel::Gre { checksum: false }, 47, &[0, 0, 8, 0][..]),
        (Tunnel::Gre { checksum: true }, 47, &[0x80, 0, 8, 0, 1, 2, 0, 0][..]),
        (gue, 17, &[0, 4, 0, 0][..]),
    ] {
        let step = etherparse::PacketBuilder::ethernet2([1; 6], MAC.0).ipv4(
            [10, 0, 0, 1],
            [10, 0, 0, 2],
            64,
        );
        let mut frame = Vec::new();
        let body = [head, inner].concat();
        match number {
            17 => step.udp(5000, 6080).write(&mut frame, &body),
            _ => step.write(&mut frame, etherparse::IpNumber(number), &body),
        }
        .expect("a frame");
        let read = Becomes::read(&frame, Some(ForwardingMethod::Tunnel(tunnel))).expect("a packet");
        assert_eq!(read.ports, Some((1234, 80)), "{tunnel:?}");
        assert_eq!(read.target, asked.target.ip(), "{tunnel:?}");
        assert_eq!(read.outer, Some(([10, 0, 0, 1].into(), [10, 0, 0, 2].into())), "{tunnel:?}");
    }
}

#[test]
fn no_frame_makes_reading_panic() {
    let whole = scene().asked.frame(MAC).expect("a frame");
    for method in [None, Some(ForwardingMethod::Tunnel(Tunnel::Gre { checksum: true }))] {
        for length in 0..whole.len() {
            Becomes::read(&whole[..length], method);
        }
    }
}
