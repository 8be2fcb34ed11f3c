//! Who may open connections to which service: what the administrator says, as a value.
//!
//! [`book`] makes of it what the data plane reads, [`text`] and [`read`] are the form in which it is
//! kept.

mod book;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use book::{BYTES_WORD, TEXT_WORD, book};
pub use text::{numbers, read, text};

use crate::model::ServiceId;

/// Prefixes in all lists together.
pub const PREFIXES_MAX: usize = 1_000_000;
/// Connections a second, at once, and in number, that a limit may say: what its counters hold.
pub const LIMIT_MAX: u32 = 1_000_000;

/// A network: an address whose bits beyond the length are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Why words are no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPrefix {
    /// Not an address.
    #[error("`{0}` is neither an address nor a network such as 10.0.0.0/8 or 2001:db8::/32")]
    Address(String),
    /// Not a length of that family.
    #[error("the length in `{0}` is not in 0 to {1}")]
    Length(String, u8),
    /// Bits beyond the length.
    #[error("`{0}` has bits beyond its length; its network is {1}")]
    Bits(String, Prefix),
}

impl Prefix {
    /// Returns the network of an address.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Self {
        let length = length.min(width(address));
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Self { address, length }
    }

    /// Returns its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns its length.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Returns whether an address is in the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.length) == *self
    }
}

/// Returns the bits of an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = NoPrefix;

    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NoPrefix::Address(text.to_owned()))?;
        let longest = width(address);
        let digits = |length: &str| length.bytes().all(|byte| byte.is_ascii_digit());
        let length = match length {
            None => longest,
            Some(length) => match length.parse() {
                Ok(number) if number <= longest && digits(length) => number,
                _ => return Err(NoPrefix::Length(text.to_owned(), longest)),
            },
        };
        let prefix = Self::new(address, length);
        if prefix.address != address {
            return Err(NoPrefix::Bits(text.to_owned(), prefix));
        }
        Ok(prefix)
    }
}

/// What a list says of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may open connections, and who is in no list that says so may not.
    Allow,
    /// It may not.
    Deny,
}

/// What each network of clients may do to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Connections a second, 1 to [`LIMIT_MAX`].
    pub rate: Option<u32>,
    /// Connections at once that the rate allows, 1 to [`LIMIT_MAX`].
    pub burst: u32,
    /// Connections there may be, 1 to [`LIMIT_MAX`].
    pub number: Option<u32>,
    /// Prefix length of a network of IPv4.
    pub length4: u8,
    /// Prefix length of a network of IPv6.
    pub length6: u8,
}

impl Default for Limit {
    /// No limit, for each address of IPv4 and each /64 of IPv6: what one customer has.
    fn default() -> Self {
        Self { rate: None, burst: 1, number: None, length4: 32, length6: 64 }
    }
}

/// The rules of a service, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The lists: a network is in one of them.
    pub prefixes: BTreeMap<Prefix, Verdict>,
    /// Limits.
    pub limit: Option<Limit>,
    /// Whether who is refused is told, by ICMP.
    pub reject: bool,
}

impl Rules {
    /// Returns whether they say nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether networks are allowed, and so all others not.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.prefixes.values().any(|verdict| *verdict == Verdict::Allow)
    }

    /// Returns the longest prefix with an address, by looking at all: what the search tree is held
    /// against.
    #[must_use]
    pub fn longest(&self, address: IpAddr) -> Option<(Prefix, Verdict)> {
        let fits = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(address));
        fits.max_by_key(|(prefix, _)| prefix.length).map(|(prefix, verdict)| (*prefix, *verdict))
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Those of all services.
    pub all: Rules,
    /// Those that services have besides.
    pub services: BTreeMap<ServiceId, Rules>,
}

impl Access {
    /// Returns the rules of a service, or of all.
    pub fn rules_mut(&mut self, of: Option<ServiceId>) -> &mut Rules {
        match of {
            None => &mut self.all,
            Some(id) => self.services.entry(id).or_default(),
        }
    }

    /// Forgets services without rules.
    pub fn tidy(&mut self) {
        self.services.retain(|_, rules| !rules.is_empty());
    }

    /// Returns whether a service is guarded.
    #[must_use]
    pub fn guards(&self, id: ServiceId) -> bool {
        !self.all.is_empty() || self.services.get(&id).is_some_and(|rules| !rules.is_empty())
    }

    /// Returns whether connections are limited in number anywhere.
    #[must_use]
    pub fn is_numbered(&self) -> bool {
        let numbered = |rules: &Rules| rules.limit.is_some_and(|limit| limit.number.is_some());
        numbered(&self.all) || self.services.values().any(numbered)
    }

    /// Returns the number of prefixes.
    #[must_use]
    pub fn prefixes(&self) -> usize {
        let own: usize = self.services.values().map(|rules| rules.prefixes.len()).sum();
        self.all.prefixes.len() + own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_strictly() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32", "192.0.2.1/32"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.1".parse::<Prefix>().unwrap().to_string(), "192.0.2.1/32");
        let refused = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
        assert_eq!(
            refused("10.0.0.1/8"),
            "`10.0.0.1/8` has bits beyond its length; its network is 10.0.0.0/8"
        );
        assert_eq!(refused("10.0.0.0/33"), "the length in `10.0.0.0/33` is not in 0 to 32");
        assert_eq!(refused("::/+1"), "the length in `::/+1` is not in 0 to 128");
        assert!(refused("ten").contains("neither an address nor a network"));
    }
}
