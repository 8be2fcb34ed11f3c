//! Endpoints: from an address and port to the service or NAT destination that it belongs to.

use crate::abi::Settings;
use crate::hash::{self, Places};
use crate::ip::{Ip, Slot};
use crate::tables::Tables;

/// The key of an endpoint: kind, protocol, address, port.
#[derive(Clone, Copy, Debug)]
pub struct Key<A> {
    address: A,
    /// The key's first word, as it stands in a slot.
    pub word: u64,
    /// Where it is kept.
    pub places: Places,
    /// Word and bit of the map `presence`, set if the endpoint, or another with the same bit, is kept
    /// anywhere. An address that is none, such as a reply's client, need not be looked for.
    pub presence: (u32, u64),
}

impl<A: Ip> Key<A> {
    /// Computes where the endpoint is kept; `kind` is an [`endpoint_kind`](crate::abi::endpoint_kind).
    #[inline(always)]
    pub fn new(settings: &Settings, kind: u64, address: A, port: u16, protocol: u8) -> Self {
        let more = (kind as u32) << 24 | u32::from(protocol) << 16 | u32::from(port);
        let hash = address.hash(&settings.keys, u64::from(more));
        let word = A::Slot::key_word(address.words().1, more);
        let places = hash::places(hash, A::ENDPOINT_MASK);
        Self { address, word, places, presence: hash::presence(hash) }
    }

    /// Searches a place without a branch for each slot.
    #[inline(always)]
    fn id_at<T: Tables>(&self, tables: &T, place: u32) -> u32 {
        let (high, low) = self.address.words();
        let Some(slots) = A::endpoints(tables, place) else { return 0 };
        let mut id = 0;
        for slot in slots {
            let difference =
                (tables.read(slot.key()) ^ self.word) | slot.address_difference(tables, high, low);
            let same = 1 ^ tables.is_set(difference);
            id |= tables.read(slot.value()) & same.wrapping_neg();
        }
        id as u32
    }

    /// Returns the id that the endpoint stands for.
    #[inline(always)]
    pub fn id<T: Tables>(&self, tables: &T) -> Option<u32> {
        let (word, bit) = self.presence;
        if tables.read(tables.presence(word)?) & bit == 0 {
            return None;
        }
        let id = match self.id_at(tables, self.places.first) {
            0 => self.id_at(tables, self.places.second),
            id => id,
        };
        if id == 0 { None } else { Some(id) }
    }
}
