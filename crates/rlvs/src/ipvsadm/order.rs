//! The order of a sorted list, which is not that of numbers.
//!
//! Upstream compares 32-bit words by the sign of their 32-bit difference. That is no total order
//! (1 < 0x7fffffff < 0xfffffffe < 1), so what comes out depends on the sorting method too: the
//! merge sort of glibc, done here in the same way.

use std::cmp::Ordering;
use std::net::IpAddr;

use rlvs_control::model::{DestinationEntry, ServiceEntry, ServiceId};

/// Sorts services by mark, family, protocol, address and port.
///
/// The sort starts from the order of the kernel, which has mark services in a table of their
/// own behind the others: a mark of 2^31 differs from none by the same sign both ways.
pub(crate) fn sort_services(entries: Vec<ServiceEntry>) -> Vec<ServiceEntry> {
    let by_address = |entry: &ServiceEntry| matches!(entry.service.id, ServiceId::Address { .. });
    let (mut entries, marks): (Vec<_>, Vec<_>) = entries.into_iter().partition(by_address);
    entries.extend(marks);
    sort(entries, &|one, other| services(one.service.id, other.service.id))
}

/// Sorts destinations by address and port.
pub(crate) fn sort_destinations(entries: Vec<DestinationEntry>) -> Vec<DestinationEntry> {
    sort(entries, &|one, other| {
        let (one, other) = (one.destination.id, other.destination.id);
        addresses(one.address, other.address).then(one.port.cmp(&other.port))
    })
}

fn services(one: ServiceId, other: ServiceId) -> Ordering {
    let key = |id: ServiceId| match id {
        ServiceId::Address { protocol, address, port } => (0, protocol.number(), address, port),
        ServiceId::Mark { mark, .. } => (mark, 0, [0; 4].into(), 0),
    };
    let (mark, protocol, address, port) = key(one);
    let (other_mark, other_protocol, other_address, other_port) = key(other);
    difference(mark, other_mark)
        .then(one.family().cmp(&other.family()))
        .then(protocol.cmp(&other_protocol))
        .then_with(|| addresses(address, other_address))
        .then(port.cmp(&other_port))
}

fn addresses(one: IpAddr, other: IpAddr) -> Ordering {
    let differences = words(one).into_iter().zip(words(other)).map(|(a, b)| difference(a, b));
    differences.fold(Ordering::Equal, Ordering::then)
}

/// Returns an address as four words. One of IPv4 fills the first.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [v4.into(), 0, 0, 0],
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            // Each cast keeps the lowest word on purpose.
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
        }
    }
}

fn difference(one: u32, other: u32) -> Ordering {
    one.wrapping_sub(other).cast_signed().cmp(&0)
}

/// Sorts by merging, so that any `compare` gives what it gives upstream.
fn sort<T>(mut items: Vec<T>, compare: &impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    if items.len() < 2 {
        return items;
    }
    let right = items.split_off(items.len() / 2);
    let sorted = items.len() + right.len();
    let mut left = sort(items, compare).into_iter().peekable();
    let mut right = sort(right, compare).into_iter().peekable();
    let mut merged = Vec::with_capacity(sorted);
    while let (Some(one), Some(other)) = (left.peek(), right.peek()) {
        let first = if compare(one, other).is_le() { left.next() } else { right.next() };
        merged.extend(first);
    }
    merged.extend(left);
    merged.extend(right);
    merged
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Observed with the real tool; the table has the newest first.
    #[test]
    fn ten_addresses_that_span_half_the_space() {
        let table = [10, 200, 100, 1, 172, 192, 223, 127, 130, 60];
        let sorted = sort(table.map(address).to_vec(), &|a, b| addresses(*a, *b));
        assert_eq!(sorted, [100, 172, 192, 200, 223, 1, 10, 60, 127, 130].map(address));
    }

    /// Observed too: any order of insertion gives the same.
    #[test]
    fn high_addresses_come_before_low_ones() {
        let expected = ["172.16.0.1", "192.168.0.1", "223.5.5.5", "1.1.1.1", "10.0.0.1"];
        let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
        for turn in 0..expected.len() {
            let mut items = expected.to_vec();
            items.rotate_left(turn);
            assert_eq!(sort(items, &|a, b| addresses(*a, *b)), expected);
        }
    }

    /// Observed, newest first in the table: ::1, 9000::2, 2001:db8::2, then three of IPv4.
    #[test]
    fn destinations_of_both_families_are_compared_by_words() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let table = ["::1", "9000::2", "2001:db8::2", "10.0.0.3", "100.0.0.2", "10.0.0.2"];
        let expected = ["::1", "10.0.0.2", "10.0.0.3", "2001:db8::2", "100.0.0.2", "9000::2"];
        let sorted = sort(table.map(parse).to_vec(), &|a, b| addresses(*a, *b));
        assert_eq!(sorted, expected.map(parse));
    }

    #[test]
    fn a_total_order_is_sorted_stably() {
        let items: Vec<_> = (0..50_u32).map(|i| (i * 7919 % 10, i)).collect();
        let mut expected = items.clone();
        expected.sort_by_key(|item| item.0);
        assert_eq!(sort(items, &|a, b| a.0.cmp(&b.0)), expected);
    }

    fn address(first: u8) -> IpAddr {
        Ipv4Addr::new(first, 0, 0, 1).into()
    }
}
