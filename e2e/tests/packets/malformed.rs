//! What is cut short or contradicts itself passes as it came and changes no table.

use e2e::bpf::Input;
use e2e::network;
use e2e::packet::{Kind, transport};
use e2e::scene::{plain, request};
use e2e::world::World;
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::process::process;
use rlvs_datapath::reason::Reason;
use rlvs_wire::tcp::SYN;

/// Sums an IPv4 header anew.
fn sum_header(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Changes that make a frame lie: offset and value, from the IP header on.
fn lies(frame: &[u8]) -> Vec<Vec<u8>> {
    let transport = transport(frame);
    let is_tcp = frame[transport - if transport == 34 { 11 } else { 34 }] == 6;
    let mut changes: Vec<Vec<(usize, u8)>> = Vec::new();
    if transport == 34 {
        changes.extend([vec![(14, 0x44)], vec![(14, 0x65)], vec![(14, 0x40)], vec![(14, 0x05)]]);
        // Total lengths: nothing, less than the header, less than both headers, more than there is.
        changes.extend(
            [[0, 0], [0, 19], [0, 20], [0, 27], [2, 0], [0xff, 0xff]]
                .map(|[high, low]| vec![(16, high), (17, low)]),
        );
        changes.push(vec![(26, 0), (27, 0), (28, 0), (29, 0)]);
    } else {
        changes.extend([vec![(14, 0x40)], vec![(14, 0x70)]]);
        changes.extend(
            [[0, 0], [0, 7], [2, 0], [0xff, 0xff]].map(|[high, low]| vec![(18, high), (19, low)]),
        );
    }
    if is_tcp {
        changes.extend([0, 0x40, 0xf0].map(|offset| vec![(transport + 12, offset)]));
    } else {
        changes.extend(
            [[0, 0], [0, 7], [0, 200], [0xff, 0xff]]
                .map(|[high, low]| vec![(transport + 4, high), (transport + 5, low)]),
        );
    }
    let mut frames: Vec<Vec<u8>> = changes
        .into_iter()
        .map(|changes| {
            let mut frame = frame.to_vec();
            for (at, value) in changes {
                frame[at] = value;
            }
            if transport == 34 {
                sum_header(&mut frame);
            }
            frame
        })
        .collect();
    if transport == 34 {
        let mut wrong = frame.to_vec();
        wrong[25] ^= 1;
        frames.push(wrong);
    }
    frames
}

#[test]
fn frames_cut_short_or_lying_pass_and_leave_the_tables_alone() {
    network::run("malformed", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for method in [method::DIRECT, method::MASQUERADE] {
            for (family, kind) in
                [4, 6].into_iter().flat_map(|f| [(f, Kind::Tcp(SYN)), (f, Kind::Udp)])
            {
                world.reset(&plain(network, family, method));
                let whole = request(network, family, kind).bytes();
                // The kernel runs no TC program on less than an IP header, no XDP program on less
                // than an Ethernet header.
                let least = transport(&whole);
                let cut = (least..whole.len()).map(|length| whole[..length].to_vec());
                let frames: Vec<Vec<u8>> = cut.chain(lies(&whole)).collect();
                let before = world.snapshot();
                for frame in &frames {
                    let input = Input::new(frame, network.inside.index);
                    let step = world.step_quietly(&input, true);
                    for outcome in [step.xdp, step.tc] {
                        assert_eq!(outcome.verdict, Verdict::Pass(Reason::Malformed), "{frame:?}");
                        assert_eq!(&outcome.bytes, frame);
                    }
                }
                let changes = e2e::snapshot::changes(&before, &world.snapshot());
                assert_eq!(changes, [format!("reason malformed = {}", frames.len())]);
                world.reset(&plain(network, family, method));
                for length in 14..least {
                    let input = Input::new(&whole[..length], network.inside.index);
                    let outcome = world.step_xdp(&input);
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::Malformed), "{length}");
                    assert_eq!(outcome.changes.len(), 1);
                }
                for length in 0..least {
                    let input = Input::new(&whole[..length], network.inside.index);
                    let outcome = world.step_on_host(&input);
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::Malformed), "{length}");
                    assert_eq!(outcome.changes.len(), 1, "{outcome:?}");
                }
            }
        }
    });
}

/// Not even settings: the programs are attached before the control plane has written them.
#[test]
fn empty_tables_pass_everything() {
    network::run("empty", |network| {
        let mut description = plain(network, 4, method::DIRECT);
        let world = World::new(network, &description);
        description.interfaces.clear();
        let tables = description.build();
        let frame = request(network, 4, Kind::Tcp(SYN)).bytes();
        let mut host = e2e::host::HostFrame::<false>::new(&frame, 1, &network.routes);
        assert!(matches!(process(&mut host, &tables), Verdict::Pass(_)));
        let ran = world.run_with_zeroed_maps(&Input::new(&frame, network.inside.index));
        assert_eq!(ran, frame);
    });
}
