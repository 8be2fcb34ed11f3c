//! The search trees of the data plane against lists that are looked through.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use rlvs_control::access::{Access, Limit, Prefix, Rules, Verdict, book, read, text};
use rlvs_control::model::{Family, Protocol, ServiceId};
use rlvs_datapath::abi::Line;
use rlvs_datapath::guard::{self, way};
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
    let rules = guard::Rules::of(&lines[0]);
    guard::seek(&Pages(lines), &rules, address_words(address), |word| word)
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_tree_finds_the_longest_prefix(rules in rules(), others in proptest::collection::vec(address(), 50)) {
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
