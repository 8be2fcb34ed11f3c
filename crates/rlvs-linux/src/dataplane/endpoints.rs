//! The endpoint maps: which address and port belong to which service or NAT destination.
//!
//! Each endpoint is in one of two buckets. Where both are full, one that is there is moved to its
//! other bucket: it is in both for as long as a program may still be looking.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use rlvs_control::table::Error as TableError;
use rlvs_datapath::abi::{Bucket, IDS, SLOTS6, Settings};
use rlvs_datapath::endpoint::Key;
use rlvs_datapath::ip::{Ip, Slot, V4, V6};

use super::maps::{Mapped, Maps};
use super::records::{v4, v6};
use super::sys::{self, Element};

/// What an endpoint is: its address and port, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    /// An [`endpoint_kind`](rlvs_datapath::abi::endpoint_kind).
    pub(super) kind: u64,
    pub(super) protocol: u8,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

type Slots<S> = Bucket<S, SLOTS6>;

/// A word of a slot.
type Field<S> = fn(&S) -> &Cell<u64>;

/// A slot that can be copied.
trait Copied: Slot + Clone + Default + 'static {
    /// The words that hold the address beside the key, upper half first.
    const ADDRESS: &'static [Field<Self>];
    fn is_free(&self) -> bool {
        self.key().get() == 0
    }
    fn is(&self, key: u64, high: u64, low: u64) -> bool;
    fn filled(key: u64, high: u64, low: u64, value: u64) -> Self;
    /// Returns the words of the address.
    fn words(&self) -> (u64, u64);
    /// Returns the two places of what is in the slot.
    fn places(&self, settings: &Settings) -> [u32; 2];
}

impl Copied for rlvs_datapath::abi::Slot4 {
    const ADDRESS: &'static [Field<Self>] = &[];
    fn is(&self, key: u64, _: u64, _: u64) -> bool {
        self.key.get() == key
    }
    fn filled(key: u64, _: u64, _: u64, value: u64) -> Self {
        let slot = Self::default();
        slot.key.set(key);
        slot.value.set(value);
        slot
    }
    fn words(&self) -> (u64, u64) {
        (0, self.key.get() >> 32)
    }
    fn places(&self, settings: &Settings) -> [u32; 2] {
        let key = self.key.get();
        places_of(settings, V4((key >> 32) as u32), key)
    }
}

impl Copied for rlvs_datapath::abi::Slot6 {
    const ADDRESS: &'static [Field<Self>] = &[|slot| &slot.high, |slot| &slot.low];
    fn is(&self, key: u64, high: u64, low: u64) -> bool {
        self.key.get() == key && self.high.get() == high && self.low.get() == low
    }
    fn filled(key: u64, high: u64, low: u64, value: u64) -> Self {
        let slot = Self::default();
        slot.key.set(key);
        slot.value.set(value);
        slot.high.set(high);
        slot.low.set(low);
        slot
    }
    fn words(&self) -> (u64, u64) {
        (self.high.get(), self.low.get())
    }
    fn places(&self, settings: &Settings) -> [u32; 2] {
        places_of(settings, V6(self.high.get(), self.low.get()), self.key.get())
    }
}

fn places_of<A: Ip>(settings: &Settings, address: A, word: u64) -> [u32; 2] {
    let (kind, protocol, port) = (word >> 24 & 0xff, (word >> 16) as u8, word as u16);
    let key = Key::new(settings, kind, address, port, protocol);
    [key.places.first, key.places.second]
}

/// Enters an endpoint, or gives one that is there another id.
///
/// # Errors
/// No room can be made.
pub(super) fn insert(maps: &Maps, endpoint: &Endpoint, id: u32) -> Result<(), TableError> {
    let settings = maps.settings();
    let Endpoint { kind, protocol, address, port } = *endpoint;
    match address {
        IpAddr::V4(address) => {
            let key = Key::new(&settings, kind, v4(address), port, protocol);
            insert_in(&maps.endpoints4, &maps.presence, &settings, &key, v4(address).words(), id)
        }
        IpAddr::V6(address) => {
            let key = Key::new(&settings, kind, v6(address), port, protocol);
            insert_in(&maps.endpoints6, &maps.presence, &settings, &key, v6(address).words(), id)
        }
    }
}

fn insert_in<A: Ip, S: Copied>(
    map: &Mapped<Slots<S>>,
    presence: &Mapped<Cell<u64>>,
    settings: &Settings,
    key: &Key<A>,
    (high, low): (u64, u64),
    id: u32,
) -> Result<(), TableError>
where
    Slots<S>: Element,
{
    let slot = S::filled(key.word, high, low, u64::from(id));
    announce(presence, key.presence);
    let places = [key.places.first, key.places.second];
    for place in places {
        if replace(map, place, |old| old.is(key.word, high, low), &slot) {
            return Ok(());
        }
    }
    for place in places {
        if replace(map, place, S::is_free, &slot) {
            return Ok(());
        }
    }
    for place in places {
        if make_room(map, settings, place) && replace(map, place, S::is_free, &slot) {
            return Ok(());
        }
    }
    Err(TableError::Full { what: "virtual services and NAT destinations", limit: IDS as usize })
}

/// Sets the bit without which programs do not look for an endpoint. It stays when the endpoint goes:
/// others may share it, and all that it costs is a look.
fn announce(presence: &Mapped<Cell<u64>>, (word, bit): (u32, u64)) {
    if let Some(word) = presence.word(word, |word| word) {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

/// Moves one endpoint of a full bucket to its other bucket.
fn make_room<S: Copied>(map: &Mapped<Slots<S>>, settings: &Settings, place: u32) -> bool
where
    Slots<S>: Element,
{
    let bucket = map.read(place).unwrap_or_default();
    for slot in &bucket.slots {
        let [first, second] = slot.places(settings);
        let elsewhere = if first == place { second } else { first };
        if replace(map, elsewhere, S::is_free, slot) {
            sys::wait_for_programs();
            let (high, low) = slot.words();
            let same = |old: &S| old.is(slot.key().get(), high, low);
            return replace(map, place, same, &S::default());
        }
    }
    false
}

/// Writes a slot of a bucket in place of the first that `which` accepts. Returns whether there was
/// one.
fn replace<S: Copied>(
    map: &Mapped<Slots<S>>,
    place: u32,
    which: impl Fn(&S) -> bool,
    new: &S,
) -> bool
where
    Slots<S>: Element,
{
    let bucket = map.read(place).unwrap_or_default();
    let Some(index) = bucket.slots.iter().position(which) else { return false };
    let store = |field: &dyn Fn(&S) -> &Cell<u64>, value: u64| {
        if let Some(word) = map.word(place, |bucket| field(&bucket.slots[index])) {
            word.store(value, Ordering::SeqCst);
        }
    };
    // Whatever instant this is interrupted at, and whoever looks meanwhile: a slot without a key is
    // free, and one with a key is whole.
    let key = new.key().get();
    if bucket.slots[index].key().get() != key {
        store(&S::key, 0);
        for (field, value) in S::ADDRESS.iter().zip([new.words().0, new.words().1]) {
            store(field, value);
        }
    }
    store(&S::value, new.value().get());
    store(&S::key, key);
    true
}

/// Removes an endpoint, if it is there.
pub(super) fn remove(maps: &Maps, endpoint: &Endpoint) {
    let settings = maps.settings();
    let Endpoint { kind, protocol, address, port } = *endpoint;
    match address {
        IpAddr::V4(address) => {
            let key = Key::new(&settings, kind, v4(address), port, protocol);
            remove_from(&maps.endpoints4, &key, v4(address).words())
        }
        IpAddr::V6(address) => {
            let key = Key::new(&settings, kind, v6(address), port, protocol);
            remove_from(&maps.endpoints6, &key, v6(address).words())
        }
    }
}

fn remove_from<A: Ip, S: Copied>(map: &Mapped<Slots<S>>, key: &Key<A>, (high, low): (u64, u64))
where
    Slots<S>: Element,
{
    for place in [key.places.first, key.places.second] {
        replace(map, place, |old| old.is(key.word, high, low), &S::default());
    }
}
