//! What is heard, and what is not.

use super::*;

#[test]
fn nonsense_moves_nothing_and_is_counted_by_kind() {
    let good = |config: &InstanceConfig| advert(config, 1, 254);
    let mut v2 = instance(Version::V2, 100);
    v2.password = Some(*b"1234\0\0\0\0");
    let v3 = instance(Version::V3, 100);
    let check = |config: &InstanceConfig, kind, spoil: &dyn Fn(&mut Received)| {
        for master in [false, true] {
            let mut bench = Bench::one(config.clone(), 2);
            if master {
                bench.until(State::Master, SECOND * 4);
            }
            let mut packet = good(config);
            spoil(&mut packet);
            let before = (bench.state(), bench.router.poll_timeout());
            bench.input(Input::Packet(packet));
            assert_eq!((bench.state(), bench.router.poll_timeout()), before, "{kind:?}");
            let rejected = bench.counters().rejected;
            assert_eq!(rejected, BTreeMap::from([(kind, 1)]), "master: {master}");
        }
    };
    // The checksum is made right again, so that only what is meant is wrong.
    let set = |at: usize, value: u8| {
        move |packet: &mut Received| {
            packet.payload[at] = value;
            repair(packet);
        }
    };
    check(&v2, Rejection::Hops, &|packet| packet.hops = 254);
    check(&v2, Rejection::Checksum, &|packet| packet.payload[6] ^= 1);
    check(&v3, Rejection::Checksum, &|packet| packet.payload[6] ^= 1);
    check(&v2, Rejection::Type, &set(0, 0x22));
    check(&v2, Rejection::Version, &set(0, 0x11));
    check(&v2, Rejection::Version, &|packet| *packet = advert(&instance(Version::V3, 1), 1, 254));
    check(&v2, Rejection::Length, &set(3, 2));
    check(&v2, Rejection::Length, &set(3, 0));
    check(&v2, Rejection::Length, &|packet| packet.payload.truncate(5));
    check(&v3, Rejection::Length, &|packet| packet.payload.extend([0; 28]));
    check(&v2, Rejection::AuthenticationType, &set(4, 0));
    check(&v2, Rejection::Password, &set(12, b'x'));
    check(&v2, Rejection::Interval, &set(5, 2));
    check(&v2, Rejection::Interval, &set(5, 0));
    check(&v3, Rejection::Interval, &|packet| {
        packet.payload[4..6].fill(0);
        repair(packet);
    });
    check(&v3, Rejection::Own, &|packet| *packet = advert(&instance(Version::V3, 1), 2, 254));
    check(&v3, Rejection::Destination, &|packet| packet.destination = address("10.9.0.2"));
    check(&v3, Rejection::Destination, &|packet| packet.destination = address("fe80::1"));
}

#[test]
fn a_foreign_number_is_nobodys() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    let mut other = instance(Version::V2, 254);
    other.vrid = 52;
    bench.input(Input::Packet(advert(&other, 1, 254)));
    assert_eq!(bench.router.strangers(), 1);
    assert_eq!(bench.counters(), Counters::default());
}

#[test]
fn a_resignation_counts_only_from_the_master() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    bench.hear(1, 200);
    let before = bench.router.poll_timeout();
    bench.hear(3, 0);
    assert_eq!(bench.router.poll_timeout(), before);
    assert_eq!(bench.counters().rejected, BTreeMap::from([(Rejection::Resignation, 1)]));
    bench.hear(1, 0);
    assert_ne!(bench.router.poll_timeout(), before);
}

#[test]
fn another_list_of_addresses_is_taken_and_told_once() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    let mut other = instance(Version::V2, 200);
    other.addresses.push(vip("10.9.0.101", 24));
    bench.out.clear();
    for _ in 0..3 {
        bench.run(SECOND);
        bench.input(Input::Packet(advert(&other, 1, 200)));
    }
    assert_eq!(bench.state(), State::Backup);
    let event = Event::AddressesDiffer { from: address("10.9.0.1") };
    assert_eq!(bench.out, [Output::Log { about: "VI_1".into(), event }]);
    assert_eq!((bench.counters().received, bench.counters().addresses_differ), (3, 3));
}

/// Makes the checksum right.
fn repair(packet: &mut Received) {
    packet.payload[6..8].fill(0);
    let mut sum: u32 = packet
        .payload
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).expect("folded");
    packet.payload[6..8].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn the_last_word_of_a_master_that_is_being_replaced_teaches_nothing() {
    let mut bench = Bench::one(instance(Version::V3, 100), 2);
    bench.hear(1, 200);
    let before = bench.router.poll_timeout();
    let mut other = instance(Version::V3, 150);
    other.interval = 100 * MS;
    bench.input(Input::Packet(advert(&other, 3, 150)));
    assert_eq!(bench.router.poll_timeout(), before);
    // Once the better one is silent for longer than its interval, the other is the master.
    bench.run(SECOND);
    bench.input(Input::Packet(advert(&other, 3, 150)));
    let waited = bench.until(State::Master, SECOND);
    assert_eq!(waited.as_millis(), 360);
}
