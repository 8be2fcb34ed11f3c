//! The search trees of the data plane against lists that are looked through.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use rlvs_control::access::{Access, Limit, Prefix, Rules, Verdict, book, read, text};
use rlvs_control::model::{Family, Protocol, ServiceId};
use rlvs_datapath::abi::Line;
use rlvs_datapath::book::{self as record, way};
use rlvs_datapath::tables::Book;

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Allow), Just(Verdict::Deny)]
}

/// Addresses that lie close together, so that prefixes lie in each other and meet.
fn address() -> impl Strategy<Value = IpAddr> {
    let bits = || prop_oneof![Just(0), Just(u64::MAX), Just(1 << 63), Just(1), any::<u64>()];
    prop_oneof![
        (any::<u32>(), 0u32..32)
            .prop_map(|(bits, shift)| Ipv4Addr::from_bits(bits >> shift << shift).into()),
        prop_oneof![Just(0u32), Just(u32::MAX), 0u32..16]
            .prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        (bits(), bits()).prop_map(|(high, low)| {
            Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into()
        }),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), 0u8..=128).prop_map(|(address, length)| {
        let length = if address.is_ipv4() { length % 33 } else { length };
        Prefix::new(address, length)
    })
}

fn rules() -> impl Strategy<Value = Rules> {
    let limit =
        proptest::option::of((1u32..1000, 1u32..1000, 0u8..=32, 0u8..=128)).prop_map(|limit| {
            limit.map(|(rate, burst, length4, length6)| Limit {
                rate: Some(rate),
                burst,
                number: None,
                length4,
                length6,
            })
        });
    let prefixes = proptest::collection::btree_map(prefix(), verdict(), 0..200);
    (prefixes, limit, any::<bool>()).prop_map(|(prefixes, limit, reject)| Rules {
        prefixes,
        limit,
        reject,
    })
}

struct Pages<'a>(&'a [Line]);

impl Book for Pages<'_> {
    fn line(&self, index: u32) -> Option<&Line> {
        self.0.get(index as usize)
    }
}

/// Looks an address up in a book as the guard does.
fn found(lines: &[Line], address: IpAddr) -> u32 {
    let rules = record::Rules::of(&lines[0]);
    record::seek(&Pages(lines), &rules, address_words(address), |word| word)
}

fn address_words(address: IpAddr) -> (u8, u64, u64) {
    match address {
        IpAddr::V4(address) => (4, 0, address.to_bits().into()),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64, address.to_bits() as u64),
    }
}

/// Addresses at which something may change.
fn edges(rules: &Rules) -> Vec<IpAddr> {
    let mut all = vec!["0.0.0.0".parse().unwrap(), "255.255.255.255".parse().unwrap()];
    for prefix in rules.prefixes.keys() {
        match prefix.address() {
            IpAddr::V4(address) => {
                let first = address.to_bits();
                let last = first | u32::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
                for bits in [first, first.wrapping_sub(1), last, last.wrapping_add(1)] {
                    all.push(Ipv4Addr::from_bits(bits).into());
                }
            }
            IpAddr::V6(address) => {
                let first = address.to_bits();
                let last = first | u128::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
                for bits in [first, first.wrapping_sub(1), last, last.wrapping_add(1)] {
                    all.push(Ipv6Addr::from_bits(bits).into());
                }
            }
        }
    }
    all
}

/// Looks for addresses in a book and in the lists that it was made of.
fn agree(rules: Rules, others: Vec<IpAddr>) -> Result<(), TestCaseError> {
    let access = Access { all: rules, ..Access::default() };
    let lines = book(&access, &BTreeMap::new(), 256_000_000, "");
    for address in edges(&access.all).into_iter().chain(others) {
        let end = found(&lines, address);
        let expected = match access.all.longest(address) {
            None => way::END,
            Some((prefix, verdict)) => {
                let denied = if verdict == Verdict::Deny { way::DENIED } else { 0 };
                way::END | denied | (u32::from(prefix.length()) + 1)
            }
        };
        prop_assert_eq!(end, expected, "{}", address);
    }
    Ok(())
}

/// Makes lists of these prefixes, by turns allowed and denied.
fn lists(prefixes: impl Iterator<Item = Prefix>) -> Rules {
    let verdicts = [Verdict::Allow, Verdict::Deny].into_iter().cycle();
    Rules { prefixes: prefixes.zip(verdicts).collect(), ..Rules::default() }
}

/// Lists as they come: evenly, close together, nested, single hosts and networks of /64. None takes more lines than
/// it has prefixes and a few, or more of them to find an address than two heads, two parts and a short tree.
#[test]
fn lists_of_every_shape_are_searched_in_few_lines() {
    let mut random = 1_u64;
    let mut draw = move || {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        random >> 16
    };
    let v6 =
        |high: u64, length| Prefix::new(Ipv6Addr::from_bits(u128::from(high) << 64).into(), length);
    let host6 = |low: u64| {
        let bits = 0x2001_0db8_u128 << 96 | u128::from(low);
        Prefix::new(Ipv6Addr::from_bits(bits).into(), 128)
    };
    let v4 = |bits: u64, length| Prefix::new(Ipv4Addr::from_bits(bits as u32).into(), length);
    let shapes: [(&str, usize, Vec<Prefix>); 7] = [
        ("even", 4, (0..1000).map(|_| v4(draw(), 12 + (draw() % 21) as u8)).collect()),
        ("one network", 4, (0..1000).map(|_| v4(0x0a00_0000 | draw() & 0xffff, 32)).collect()),
        (
            "registries",
            7,
            (0..1000).map(|_| v6(0x2a00 << 48 | (draw() & 0xfff) << 36, 32)).collect(),
        ),
        ("/64", 7, (0..1000).map(|_| v6(0x2000 << 48 | draw() << 13, 64)).collect()),
        ("hosts of one /64", 7, (0..1000).map(|_| host6(draw())).collect()),
        (
            "nested",
            8,
            (0..=128)
                .map(|length| Prefix::new(Ipv6Addr::from_bits(u128::MAX / 3).into(), length))
                .collect(),
        ),
        ("powers of two", 7, (0..64).map(|bit| host6(1 << bit)).collect()),
    ];
    for (name, most, prefixes) in shapes {
        let rules = lists(prefixes.into_iter());
        let edges = edges(&rules);
        let access = Access { all: rules.clone(), ..Access::default() };
        let lines = book(&access, &BTreeMap::new(), 256_000_000, "");
        assert!(lines.len() <= 40 + rules.prefixes.len(), "{name}: {} lines", lines.len());
        for address in edges {
            let book = Counted(Pages(&lines), Cell::new(0));
            record::seek(&book, &record::Rules::of(&lines[0]), address_words(address), |word| word);
            assert!(book.1.get() <= most, "{name}, {address}: {} lines", book.1.get());
        }
        agree(rules, Vec::new()).unwrap();
    }
}

/// A book that counts which lines are looked at.
struct Counted<'a>(Pages<'a>, Cell<usize>);

impl Book for Counted<'_> {
    fn line(&self, index: u32) -> Option<&Line> {
        self.1.set(self.1.get() + 1);
        self.0.line(index)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_longest_prefix_is_found(rules in rules(), others in proptest::collection::vec(address(), 50)) {
        agree(rules, others)?;
    }

    #[test]
    fn rules_are_read_as_they_were_written(all in rules(), own in rules(), marked in rules()) {
        let address = ServiceId::Address { protocol: Protocol::Tcp, address: "::1".parse().unwrap(), port: 80 };
        let mark = ServiceId::Mark { family: Family::V6, mark: 7 };
        let numbers = BTreeMap::from([(address, 3), (mark, 1)]);
        let services = BTreeMap::from([(address, own), (mark, marked)]);
        let access = Access { all, services };
        let (mut again, known) = read(&text(&access, &numbers)).unwrap();
        for id in numbers.keys() {
            again.rules_mut(Some(*id));
        }
        prop_assert_eq!((again, known), (access, numbers));
    }
}
