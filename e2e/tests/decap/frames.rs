//! One frame at a time, under `BPF_PROG_TEST_RUN`.

use std::net::{IpAddr, SocketAddr};

use e2e::bpf::{Input, Ran, run_tc};
use e2e::network::{self, Network};
use e2e::packet::{Kind as Transport, Packet};
use rlvs_linux::decap::{Counters, Decapsulator, Encapsulation, Kind, Refusal};
use rlvs_wire::tcp::SYN;

use crate::wrap::{ETHERNET, GUE_PORT, Wrap, kinds, sum_header, transport};

const GO_ON: u32 = -1_i32 as u32;
const DROP: u32 = 2;
const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

fn address(is_v6: bool, last: u8) -> IpAddr {
    if is_v6 {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()])
    } else {
        IpAddr::from([192, 0, 2, last])
    }
}

const DIRECTOR: u8 = 1;
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
const VIP: u8 = 4;

/// Runs a test in a namespace: an interface is what makes a frame one for this host.
fn with_network(test: &str, work: impl FnOnce(&Fixture<'_>) + Send) {
    network::run(test, |network| {
        let addresses = [address(false, SERVER), address(true, SERVER)];
        work(&Fixture { network, decapsulator: Decapsulator::load(&addresses, GUE_PORT).unwrap() });
    });
}

struct Fixture<'a> {
    network: &'a Network,
    decapsulator: Decapsulator,
}

/// Returns what was counted since.
fn difference(mut after: Counters, before: &Counters) -> Counters {
    for (kind, count) in &mut after.taken_out {
        *count -= before.taken_out.get(kind).copied().unwrap_or(0);
    }
    for (refusal, count) in &mut after.refused {
        *count -= before.refused.get(refusal).copied().unwrap_or(0);
    }
    after.taken_out.retain(|_, count| *count > 0);
    after.refused.retain(|_, count| *count > 0);
    after
}

/// What came of a frame.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    ran: Ran,
    counters: Counters,
}

impl Outcome {
    fn untouched(frame: &[u8]) -> Self {
        let ran = Ran { code: GO_ON, bytes: frame.to_vec() };
        Self { ran, counters: Counters::default() }
    }

    fn taken_out(kind: Kind, frame: Vec<u8>) -> Self {
        let counters = Counters { taken_out: [(kind, 1)].into(), ..Counters::default() };
        Self { ran: Ran { code: GO_ON, bytes: frame }, counters }
    }

    fn refused(refusal: Refusal, frame: &[u8]) -> Self {
        let counters = Counters { refused: [(refusal, 1)].into(), ..Counters::default() };
        Self { ran: Ran { code: DROP, bytes: frame.to_vec() }, counters }
    }
}

impl Fixture<'_> {
    fn run_input(&self, input: &Input<'_>) -> Outcome {
        let before = self.decapsulator.counters().unwrap();
        let ran = run_tc(self.decapsulator.program().unwrap(), input).unwrap();
        Outcome { ran, counters: difference(self.decapsulator.counters().unwrap(), &before) }
    }

    fn run(&self, frame: &[u8]) -> Outcome {
        self.run_input(&self.input(frame))
    }

    fn input<'a>(&self, frame: &'a [u8]) -> Input<'a> {
        Input::new(frame, self.network.inside.index)
    }

    fn wrap(&self, encapsulation: Encapsulation, outer_v6: bool) -> Wrap {
        Wrap {
            encapsulation,
            from: DIRECTOR_MAC,
            to: self.network.inside.mac,
            source: address(outer_v6, DIRECTOR),
            target: address(outer_v6, SERVER),
        }
    }

    /// Returns a packet to the virtual address, in the frame that must come out.
    fn plain(&self, is_v6: bool, transport: Transport, bytes: usize) -> Vec<u8> {
        Packet {
            from: DIRECTOR_MAC,
            to: self.network.inside.mac,
            source: SocketAddr::new(address(is_v6, CLIENT), 40_000),
            target: SocketAddr::new(address(is_v6, VIP), 80),
            kind: transport,
            ttl: 63,
            payload: (0..bytes).map(|at| (at * 7 + 1) as u8).collect(),
        }
        .bytes()
    }
}

#[test]
fn every_kind_is_taken_out_byte_for_byte_and_counted() {
    with_network("decap-kinds", |fixture| {
        for kind in kinds() {
            let wrap = fixture.wrap(kind.encapsulation, kind.outer_v6);
            for transport in [Transport::Tcp(SYN), Transport::Udp] {
                // Around the sizes at which sums are cut into chunks.
                for bytes in [0, 1, 2, 57, 58, 59, 100, 101, 127, 128, 129, 255, 1399, 1400] {
                    let plain = fixture.plain(kind.inner_v6, transport, bytes);
                    let frame = wrap.frame(&plain[ETHERNET..]);
                    let expected = Outcome::taken_out(kind, plain);
                    for summed in [false, true] {
                        let input = Input { summed, ..fixture.input(&frame) };
                        let outcome = fixture.run_input(&input);
                        assert_eq!(outcome, expected, "{transport:?}, {bytes} bytes, {summed}");
                    }
                }
            }
        }
    });
}

#[test]
fn padding_behind_the_outer_packet_does_not_matter_and_options_of_its_header_neither() {
    with_network("decap-padding", |fixture| {
        for encapsulation in Encapsulation::ALL {
            let plain = fixture.plain(false, Transport::Udp, 3);
            let frame = fixture.wrap(encapsulation, false).frame(&plain[ETHERNET..]);
            let kind = Kind { encapsulation, outer_v6: false, inner_v6: false };
            let padded = [&frame[..], &[0xa5; 9]].concat();
            let expected = Outcome::taken_out(kind, [&plain[..], &[0xa5; 9]].concat());
            assert_eq!(fixture.run(&padded), expected);
            // Four bytes of options that do nothing.
            let mut optional = [&frame[..34], &[1, 1, 1, 0], &frame[34..]].concat();
            optional[ETHERNET] = 0x46;
            let length = u16::from_be_bytes([frame[16], frame[17]]) + 4;
            optional[16..18].copy_from_slice(&length.to_be_bytes());
            sum_header(&mut optional);
            assert_eq!(fixture.run(&optional), Outcome::taken_out(kind, plain));
        }
    });
}

#[test]
fn what_is_not_a_tunnel_packet_to_this_host_passes_untouched() {
    with_network("decap-foreign", |fixture| {
        let mut frames = Vec::new();
        for is_v6 in [false, true] {
            for transport in [Transport::Tcp(SYN), Transport::Udp] {
                frames.push(fixture.plain(is_v6, transport, 100));
                // To the server itself, but no tunnel.
                let mut direct = fixture.plain(is_v6, transport, 100);
                let last = if is_v6 { 53 } else { 33 };
                direct[last] = SERVER;
                if !is_v6 {
                    sum_header(&mut direct);
                }
                frames.push(direct);
            }
        }
        for kind in kinds() {
            let inner = fixture.plain(kind.inner_v6, Transport::Udp, 100);
            let wrap = fixture.wrap(kind.encapsulation, kind.outer_v6);
            let inner = &inner[ETHERNET..];
            let target = address(kind.outer_v6, VIP);
            frames.push(Wrap { target, ..wrap }.frame(inner));
            frames.push(Wrap { to: [2, 0, 0, 0, 7, 7], ..wrap }.frame(inner));
            let frame = wrap.frame(inner);
            let udp = ETHERNET + if kind.outer_v6 { 40 } else { 20 };
            if frame[if kind.outer_v6 { 20 } else { 23 }] == 17 {
                let mut other_port = frame.clone();
                other_port[udp + 3] ^= 1;
                frames.push(other_port);
                frames.push(later_fragment(&frame));
            }
        }
        let mut arp = vec![0; 60];
        arp[..6].copy_from_slice(&fixture.network.inside.mac);
        arp[12..14].copy_from_slice(&[8, 6]);
        frames.push(arp);
        for frame in frames {
            assert_eq!(fixture.run(&frame), Outcome::untouched(&frame), "{frame:02x?}");
        }
    });
}

/// Makes the frame's outer packet a fragment that is not the first.
fn later_fragment(frame: &[u8]) -> Vec<u8> {
    fragment(frame, 8)
}

/// Makes the frame's outer packet a fragment at an offset in bytes, with more to come.
fn fragment(frame: &[u8], offset: u16) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] {
        let mut fragment = frame.to_vec();
        fragment[20..22].copy_from_slice(&(0x2000 | (offset / 8)).to_be_bytes());
        sum_header(&mut fragment);
        return fragment;
    }
    let [high, low] = (offset | 1).to_be_bytes();
    let header = [frame[20], 0, high, low, 0, 0, 0, 1];
    let mut fragment = [&frame[..54], &header, &frame[54..]].concat();
    fragment[20] = 44;
    let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    fragment[18..20].copy_from_slice(&length.to_be_bytes());
    fragment
}

/// A change to a frame: place from the payload of the outer header on, and bytes.
type Change = (usize, &'static [u8]);

fn changed(frame: &[u8], outer_v6: bool, (at, bytes): Change) -> Vec<u8> {
    let at = at + ETHERNET + if outer_v6 { 40 } else { 20 };
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// What must be refused in a header that no checksum covers.
const LIES: &[(Encapsulation, Change, Refusal)] = &[
    // Key, sequence number, routing, version 1, reserved bits.
    (Encapsulation::Gre, (0, &[0x20]), Refusal::GreFlags),
    (Encapsulation::Gre, (0, &[0x10]), Refusal::GreFlags),
    (Encapsulation::Gre, (0, &[0x40]), Refusal::GreFlags),
    (Encapsulation::Gre, (1, &[0x01]), Refusal::GreFlags),
    (Encapsulation::Gre, (0, &[0x08]), Refusal::GreFlags),
    (Encapsulation::GreChecksum, (0, &[0xa0]), Refusal::GreFlags),
    // A checksum that is not there, or not the right one.
    (Encapsulation::Gre, (0, &[0x80]), Refusal::GreChecksum),
    (Encapsulation::GreChecksum, (4, &[0x12, 0x34]), Refusal::GreChecksum),
    (Encapsulation::GreChecksum, (60, &[0x12, 0x34]), Refusal::GreChecksum),
    (Encapsulation::Gre, (2, &[0x65, 0x58]), Refusal::Protocol),
    (Encapsulation::Gre, (2, &[0x08, 0x06]), Refusal::Protocol),
    // UDP: less than its own header and GUE's, more than there is, another checksum.
    (Encapsulation::Gue, (4, &[0, 0]), Refusal::Truncated),
    (Encapsulation::Gue, (4, &[0, 8]), Refusal::Truncated),
    (Encapsulation::Gue, (4, &[0, 11]), Refusal::Truncated),
    (Encapsulation::Gue, (4, &[0xff, 0xff]), Refusal::Truncated),
    (Encapsulation::Gue, (4, &[0, 40]), Refusal::Inner),
    (Encapsulation::GueRemote, (4, &[0, 19]), Refusal::Truncated),
    (Encapsulation::GueChecksum, (6, &[0x12, 0x34]), Refusal::UdpChecksum),
    (Encapsulation::GueChecksum, (0, &[0x12, 0x34]), Refusal::UdpChecksum),
    (Encapsulation::GueChecksum, (60, &[0x12, 0x34]), Refusal::UdpChecksum),
    (Encapsulation::GueRemoteChecksum, (60, &[0x12, 0x34]), Refusal::UdpChecksum),
    (Encapsulation::Gue, (6, &[0x12, 0x34]), Refusal::UdpChecksum),
    // GUE's version, control flag, flags, options, protocol.
    (Encapsulation::Gue, (8, &[0x40]), Refusal::GueVersion),
    (Encapsulation::Gue, (8, &[0x80]), Refusal::GueVersion),
    (Encapsulation::Gue, (8, &[0x20]), Refusal::GueControl),
    (Encapsulation::Gue, (8, &[0x01]), Refusal::GueFlags),
    (Encapsulation::Gue, (8, &[0x02]), Refusal::GueFlags),
    (Encapsulation::Gue, (10, &[0x80, 0]), Refusal::GueFlags),
    (Encapsulation::Gue, (11, &[0x01]), Refusal::GueFlags),
    (Encapsulation::GueRemote, (8, &[0x03]), Refusal::GueFlags),
    (Encapsulation::GueRemote, (8, &[0x00]), Refusal::GueFlags),
    (Encapsulation::GueRemote, (10, &[0, 3]), Refusal::GueFlags),
    (Encapsulation::GueRemote, (12, &[0, 0, 0, 0]), Refusal::GueFlags),
    (Encapsulation::GueRemote, (12, &[0xc0, 0, 0, 0]), Refusal::GueFlags),
    (Encapsulation::Gue, (9, &[59]), Refusal::Protocol),
    (Encapsulation::Gue, (9, &[17]), Refusal::Protocol),
    // Where the sum starts, where it goes.
    (Encapsulation::GueRemote, (16, &[0, 0]), Refusal::RemoteChecksum),
    (Encapsulation::GueRemote, (16, &[0xff, 0xff]), Refusal::RemoteChecksum),
    (Encapsulation::GueRemote, (18, &[0, 0]), Refusal::RemoteChecksum),
    (Encapsulation::GueRemote, (18, &[0xff, 0xff]), Refusal::RemoteChecksum),
];

#[test]
fn a_lie_in_a_tunnel_header_is_refused_for_what_it_is() {
    with_network("decap-lies", |fixture| {
        for outer_v6 in [false, true] {
            for &(encapsulation, change, refusal) in LIES {
                for inner_v6 in [false, true] {
                    let plain = fixture.plain(inner_v6, Transport::Udp, 100);
                    let frame = fixture.wrap(encapsulation, outer_v6).frame(&plain[ETHERNET..]);
                    let frame = changed(&frame, outer_v6, change);
                    let expected = Outcome::refused(refusal, &frame);
                    assert_eq!(fixture.run(&frame), expected, "{encapsulation:?} {change:02x?}");
                }
            }
        }
    });
}

#[test]
fn an_outer_packet_that_is_a_fragment_or_contradicts_itself_is_refused() {
    with_network("decap-outer", |fixture| {
        for kind in kinds() {
            let plain = fixture.plain(kind.inner_v6, Transport::Udp, 100);
            let wrap = fixture.wrap(kind.encapsulation, kind.outer_v6);
            let frame = wrap.frame(&plain[ETHERNET..]);
            let check = |frame: Vec<u8>, refusal| {
                let expected = Outcome::refused(refusal, &frame);
                assert_eq!(fixture.run(&frame), expected, "{kind:?}");
            };
            check(fragment(&frame, 0), Refusal::Fragment);
            let is_udp = frame[if kind.outer_v6 { 20 } else { 23 }] == 17;
            if !is_udp {
                check(later_fragment(&frame), Refusal::Fragment);
            }
            // One more than there is.
            let mut longer = frame.clone();
            longer[if kind.outer_v6 { 19 } else { 17 }] += 1;
            if kind.outer_v6 {
                check(longer, Refusal::Truncated);
                continue;
            }
            check(longer.clone(), Refusal::HeaderChecksum);
            sum_header(&mut longer);
            check(longer, Refusal::Truncated);
            let mut short = frame.clone();
            short[16..18].copy_from_slice(&[0, 19]);
            sum_header(&mut short);
            check(short, Refusal::Truncated);
        }
    });
}

#[test]
fn an_inner_packet_that_is_not_what_was_announced_is_refused() {
    with_network("decap-inner", |fixture| {
        for encapsulation in [Encapsulation::Ipip, Encapsulation::Gre, Encapsulation::Gue] {
            for inner_v6 in [false, true] {
                let plain = fixture.plain(inner_v6, Transport::Udp, 100);
                let inner = &plain[ETHERNET..];
                let wrap = fixture.wrap(encapsulation, false);
                let mut lies = Vec::new();
                // The other version, although the outer header says this one.
                let other = if inner_v6 { 0x45 } else { 0x60 };
                let mut frame = wrap.frame(inner);
                let at = frame.len() - inner.len();
                frame[at] = other;
                lies.push(frame);
                // A length one off in either direction, and headers that do not fit.
                let length = if inner_v6 { 5 } else { 3 };
                for by in [1, -1_i8] {
                    let mut inner = inner.to_vec();
                    inner[length] = inner[length].wrapping_add_signed(by);
                    lies.push(wrap.frame(&inner));
                }
                lies.push(wrap.frame(&inner[..19]));
                lies.push(wrap.frame(&inner[..1]));
                if !inner_v6 {
                    let mut short = inner.to_vec();
                    short[0] = 0x44;
                    lies.push(wrap.frame(&short));
                    let mut options = inner[..24].to_vec();
                    options[0] = 0x4f;
                    options[2..4].copy_from_slice(&[0, 24]);
                    lies.push(wrap.frame(&options));
                }
                for frame in lies {
                    let expected = Outcome::refused(Refusal::Inner, &frame);
                    assert_eq!(fixture.run(&frame), expected, "{encapsulation:?} {inner_v6}");
                }
            }
        }
    });
}

#[test]
fn a_remote_checksum_that_stands_on_something_else_than_the_pseudo_header_is_refused() {
    with_network("decap-remote", |fixture| {
        for kind in kinds() {
            if kind.encapsulation != Encapsulation::GueRemote {
                continue;
            }
            for protocol in [Transport::Tcp(SYN), Transport::Udp] {
                let plain = fixture.plain(kind.inner_v6, protocol, 100);
                let inner = &plain[ETHERNET..];
                let frame = fixture.wrap(kind.encapsulation, kind.outer_v6).frame(inner);
                let at = frame.len() - inner.len() + transport(inner).1;
                let mut complete = frame.clone();
                complete[at..at + 2].copy_from_slice(&inner[transport(inner).1..][..2]);
                let expected = Outcome::refused(Refusal::RemoteChecksum, &complete);
                assert_eq!(fixture.run(&complete), expected, "{kind:?} {protocol:?}");
            }
        }
    });
}

#[test]
fn what_the_kernel_cannot_take_headers_off_is_refused() {
    with_network("decap-room", |fixture| {
        let plain = fixture.plain(false, Transport::Udp, 100);
        let frame = fixture.wrap(Encapsulation::Ipip, false).frame(&plain[ETHERNET..]);
        // Datagrams still to be cut apart, which the kernel cannot shorten.
        let input = Input { segmented: true, ..fixture.input(&frame) };
        let outcome = fixture.run_input(&input);
        assert_eq!(outcome, Outcome::refused(Refusal::Room, &frame));
    });
}

#[test]
fn a_frame_cut_anywhere_is_refused_or_left_alone() {
    with_network("decap-cut", |fixture| {
        let program = fixture.decapsulator.program().unwrap();
        for kind in kinds() {
            let plain = fixture.plain(kind.inner_v6, Transport::Udp, 40);
            let wrap = fixture.wrap(kind.encapsulation, kind.outer_v6);
            let frame = wrap.frame(&plain[ETHERNET..]);
            let mut refused = 0;
            for length in ETHERNET + 1..frame.len() {
                let cut = &frame[..length];
                let Ok(ran) = run_tc(program, &fixture.input(cut)) else {
                    // The kernel runs nothing on less than an IP header.
                    assert!(length < ETHERNET + if kind.outer_v6 { 40 } else { 20 });
                    continue;
                };
                assert_eq!(ran.bytes, cut, "{kind:?} cut to {length}");
                refused += u64::from(ran.code == DROP);
                assert!([DROP, GO_ON].contains(&ran.code));
            }
            assert!(refused as usize >= plain.len() - ETHERNET, "{kind:?}: {refused}");
        }
        let counters = fixture.decapsulator.counters().unwrap();
        assert!(counters.taken_out.is_empty(), "{counters:?}");
        assert_eq!(counters.refused.keys().collect::<Vec<_>>(), [&Refusal::Truncated]);
    });
}

#[test]
fn no_single_wrong_bit_gets_past_the_checksums() {
    with_network("decap-bits", |fixture| {
        let program = fixture.decapsulator.program().unwrap();
        let checked = [
            Encapsulation::GreChecksum,
            Encapsulation::GueChecksum,
            Encapsulation::GueRemoteChecksum,
        ];
        for kind in kinds().filter(|kind| checked.contains(&kind.encapsulation)) {
            let plain = fixture.plain(kind.inner_v6, Transport::Tcp(SYN), 33);
            let wrap = fixture.wrap(kind.encapsulation, kind.outer_v6);
            let frame = wrap.frame(&plain[ETHERNET..]);
            for bit in 8 * ETHERNET..8 * frame.len() {
                let mut wrong = frame.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                let ran = run_tc(program, &fixture.input(&wrong)).unwrap();
                let is_right = match ran.code {
                    DROP => ran.bytes == wrong,
                    GO_ON => ran.bytes == wrong || ran.bytes == plain,
                    _ => false,
                };
                assert!(is_right, "{kind:?}, bit {bit}: {ran:02x?}");
                // Of an outer IPv4 packet, everything is covered.
                assert!(kind.outer_v6 || ran.bytes == wrong, "{kind:?}, bit {bit}");
            }
        }
    });
}
