//! Messages of generic netlink: a command, and attributes that may hold attributes.
//!
//! Reading never panics, whatever the bytes; writing makes only what can be read.

use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};

use super::uapi::Attribute;

/// Length of `struct genlmsghdr`: command, version, two bytes of nothing.
const HEADER_BYTES: usize = 4;
/// Length of `struct nlattr`: length and kind of an attribute.
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// `NLA_F_NESTED`: the value is attributes.
const NESTED: u16 = 0x8000;

/// Why an answer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Bytes are missing.
    #[error("it ends in the middle")]
    Truncated,
    /// An attribute is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// An attribute is too short for what it stands for.
    #[error("{bytes} bytes of {name}")]
    Length {
        /// Which attribute.
        name: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// An attribute has a value that means nothing.
    #[error("{name} is {value}")]
    Value {
        /// Which attribute.
        name: &'static str,
        /// Its value.
        value: u32,
    },
    /// A line of text is not of the form that it has to have.
    #[error("the line {0:?}")]
    Line(String),
}

/// A message of any family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Number of the family.
    pub family: u16,
    /// Version of the family's interface.
    pub version: u8,
    /// What is asked for or answered.
    pub command: u8,
    /// Attributes as they are sent.
    pub attributes: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = [self.command, self.version, 0, 0].into_iter().chain(self.attributes.clone());
        buffer.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Malformed;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Malformed> {
        let Some((&[command, version, ..], attributes)) =
            payload.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(Malformed::Truncated);
        };
        let family = header.message_type;
        Ok(Self { family, version, command, attributes: attributes.to_vec() })
    }
}

/// Attributes that are being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Returns what was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Writes a value of bytes.
    pub fn bytes(mut self, attribute: Attribute, value: &[u8]) -> Self {
        self.put(attribute.number, value);
        self
    }

    /// Writes a number of 8 bits.
    pub fn u8(self, attribute: Attribute, value: u8) -> Self {
        self.bytes(attribute, &[value])
    }

    /// Writes a number of 16 bits in the order of the host.
    pub fn u16(self, attribute: Attribute, value: u16) -> Self {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// Writes a number of 32 bits in the order of the host.
    pub fn u32(self, attribute: Attribute, value: u32) -> Self {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// Writes a port, which is in network order.
    pub fn port(self, attribute: Attribute, value: u16) -> Self {
        self.bytes(attribute, &value.to_be_bytes())
    }

    /// Writes text with the NUL that ends it. A NUL within it ends it too.
    pub fn text(self, attribute: Attribute, value: &str) -> Self {
        let mut bytes: Vec<u8> = value.bytes().take_while(|&byte| byte != 0).collect();
        bytes.push(0);
        self.bytes(attribute, &bytes)
    }

    /// Writes attributes within an attribute.
    pub fn nest(mut self, attribute: Attribute, inner: Self) -> Self {
        self.put(attribute.number | NESTED, &inner.0);
        self
    }

    /// An attribute has at most 65,535 bytes; what we write stays far below.
    fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len());
        self.0.extend(length.unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Attributes that were read. Where a kind stands twice, the last counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Takes bytes apart.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut list = Vec::new();
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute.map_err(|_| Malformed::Truncated)?;
            let length = usize::from(attribute.length());
            let whole = attribute.into_inner().get(ATTRIBUTE_HEADER_BYTES..length);
            list.push((attribute.kind(), whole.ok_or(Malformed::Truncated)?));
        }
        Ok(Self(list))
    }

    /// Returns the value of an attribute, if it is there.
    pub fn get(&self, attribute: Attribute) -> Option<&'a [u8]> {
        self.0.iter().rev().find(|(kind, _)| *kind == attribute.number).map(|(_, value)| *value)
    }

    /// Returns the first `N` bytes of an attribute.
    ///
    /// # Errors
    /// [`Malformed::Missing`] and [`Malformed::Length`].
    pub fn array<const N: usize>(&self, attribute: Attribute) -> Result<[u8; N], Malformed> {
        let value = self.get(attribute).ok_or(Malformed::Missing(attribute.name))?;
        let length = Malformed::Length { name: attribute.name, bytes: value.len() };
        value.first_chunk().copied().ok_or(length)
    }

    /// Returns a number of 8 bits.
    ///
    /// # Errors
    /// As [`Self::array`].
    pub fn u8(&self, attribute: Attribute) -> Result<u8, Malformed> {
        self.array(attribute).map(u8::from_ne_bytes)
    }

    /// Returns a number of 16 bits in the order of the host.
    ///
    /// # Errors
    /// As [`Self::array`].
    pub fn u16(&self, attribute: Attribute) -> Result<u16, Malformed> {
        self.array(attribute).map(u16::from_ne_bytes)
    }

    /// Returns a number of 32 bits in the order of the host.
    ///
    /// # Errors
    /// As [`Self::array`].
    pub fn u32(&self, attribute: Attribute) -> Result<u32, Malformed> {
        self.array(attribute).map(u32::from_ne_bytes)
    }

    /// Returns a number of 32 or 64 bits, by the length that it has.
    ///
    /// # Errors
    /// As [`Self::array`].
    pub fn u32_or_u64(&self, attribute: Attribute) -> Result<u64, Malformed> {
        match self.array(attribute) {
            Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
            Err(_) => self.u32(attribute).map(u64::from),
        }
    }

    /// Returns a port, which is in network order.
    ///
    /// # Errors
    /// As [`Self::array`].
    pub fn port(&self, attribute: Attribute) -> Result<u16, Malformed> {
        self.array(attribute).map(u16::from_be_bytes)
    }

    /// Returns text up to the NUL that ends it.
    ///
    /// # Errors
    /// [`Malformed::Missing`].
    pub fn text(&self, attribute: Attribute) -> Result<String, Malformed> {
        let value = self.get(attribute).ok_or(Malformed::Missing(attribute.name))?;
        let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Returns the attributes within an attribute.
    ///
    /// # Errors
    /// [`Malformed::Missing`] and [`Malformed::Truncated`].
    pub fn nest(&self, attribute: Attribute) -> Result<Self, Malformed> {
        Self::parse(self.get(attribute).ok_or(Malformed::Missing(attribute.name))?)
    }
}

/// Returns the attribute's value if it is there, and `None` if it is missing.
///
/// # Errors
/// Every other.
pub fn optional<T>(value: Result<T, Malformed>) -> Result<Option<T>, Malformed> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Malformed::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
