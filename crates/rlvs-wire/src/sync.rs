//! Messages by which directors tell each other of their connections, as the kernel's IPVS: version 1 is
//! written, version 0 read too.
//!
//! A message is a UDP datagram, by default to 224.0.0.81, port 8848:
//!
//! ```text
//!  0                   1                   2                   3
//! |       0       |    Sync id    |     Length of the message     |
//! |    Entries    |  Version (1)  |               0               |
//! ```
//!
//! Each entry begins at a multiple of 4. Its addresses have 4 bytes, or 16 if the lowest bit of its
//! kind is set; options, each a kind, a length and so many bytes, fill what its length leaves:
//!
//! ```text
//! |     Kind      |   Protocol    |Version (0)|  Length, 12 bits  |
//! |                             Flags                             |
//! |             State             |          Client port          |
//! |         Virtual port          |       Destination port        |
//! |                         Firewall mark                         |
//! |                      Time-out in seconds                      |
//! | Client address, virtual address, destination's address        |
//! ```
//!
//! A message of version 0 has its number of entries where version 1 has 0, no second line, and entries of
//! IPv4 alone, which moved sequence numbers follow if their flags say so:
//!
//! ```text
//! |       0       |   Protocol    |          Client port          |
//! |         Virtual port          |       Destination port        |
//! | Client address, virtual address, destination's address        |
//! |             Flags             |             State             |
//! ```
//!
//! Nothing in a message proves who sent it. Reading never panics, whatever the bytes: a message whose
//! length is not that of its datagram is refused whole, an entry that lies ends the reading of its
//! message, as in the kernel (`ip_vs_process_message()`).

use crate::{ipsec, sctp, tcp, udp};

/// UDP port that messages are sent to unless told otherwise.
pub const PORT: u16 = 8848;
/// Group that messages are sent to unless told otherwise.
pub const GROUP: [u8; 4] = [224, 0, 0, 81];
/// Length of a message without entries.
pub const HEADER_LENGTH: usize = 8;
/// Length of an entry with IPv4 addresses, without options.
pub const ENTRY4_LENGTH: usize = FIXED_LENGTH + 3 * 4;
/// Length of an entry with IPv6 addresses, without options.
pub const ENTRY6_LENGTH: usize = FIXED_LENGTH + 3 * 16;
/// Most entries that the count of a message can tell.
pub const ENTRIES_MAX: u8 = u8::MAX;

/// Length of an entry before its addresses.
const FIXED_LENGTH: usize = 24;
const VERSION: u8 = 1;
/// In an entry's kind: its addresses are those of IPv6.
const IPV6: u8 = 1;
const LENGTH_MASK: u16 = 0x0fff;
const ALIGNMENT: usize = 4;
/// The last state of a template.
const ASSURED: u16 = 1;

/// Bits of an entry's flags.
pub mod flag {
    /// The forwarding method: 0 NAT, 1 this host, 2 tunnel, 3 direct routing, 4 past the service.
    pub const METHOD: u32 = 0x7;
    /// The server's answers do not come by the director.
    pub const NO_OUTPUT: u32 = 0x80;
    /// Counted as inactive.
    pub const INACTIVE: u32 = 0x100;
    /// The client's port is not known yet.
    pub const NO_CLIENT_PORT: u32 = 0x800;
    /// Sequence numbers are moved.
    pub const SEQUENCES: u32 = 0x600;
    /// A persistence template.
    pub const TEMPLATE: u32 = 0x1000;
    /// What a receiver keeps; all else was true of the sender only.
    pub const KEPT: u32 = METHOD | NO_OUTPUT | INACTIVE | SEQUENCES | NO_CLIENT_PORT | TEMPLATE;
}

/// Kinds of options.
mod option {
    /// Moved sequence numbers of an application.
    pub(super) const SEQUENCES: u8 = 1;
    /// What a persistence engine knows.
    pub(super) const ENGINE_DATA: u8 = 2;
    /// Name of the persistence engine.
    pub(super) const ENGINE_NAME: u8 = 3;
    /// Set in the kind of one that may be passed over by who does not know it.
    pub(super) const PARAMETER: u8 = 0x40;
    pub(super) const SEQUENCES_LENGTH: usize = 24;
    pub(super) const ENGINE_DATA_MAX: usize = 255;
    pub(super) const ENGINE_NAME_MAX: usize = 16;
}

/// The three addresses of a connection, in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Client.
        client: [u8; 4],
        /// Virtual address, of a service by mark the mark.
        service: [u8; 4],
        /// Destination.
        destination: [u8; 4],
    },
    /// IPv6.
    V6 {
        /// Client.
        client: [u8; 16],
        /// Virtual address.
        service: [u8; 16],
        /// Destination.
        destination: [u8; 16],
    },
}

/// What a message says of a connection or a template. Numbers are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Protocol of IP; 0 for a template of a service by mark.
    pub protocol: u8,
    /// See [`flag`].
    pub flags: u32,
    /// Number of the state among those of the protocol.
    pub state: u16,
    /// Port of the client.
    pub client_port: u16,
    /// Port of the service.
    pub service_port: u16,
    /// Port of the destination.
    pub destination_port: u16,
    /// Mark of the service, 0 for one that goes by address.
    pub mark: u32,
    /// Seconds that the connection stays without a packet; 0 for what its state says.
    pub timeout_s: u32,
    /// Its addresses, of one version.
    pub addresses: Addresses,
}

impl Entry {
    /// Returns how many bytes it takes in a message.
    #[must_use]
    pub const fn length(&self) -> usize {
        match self.addresses {
            Addresses::V4 { .. } => ENTRY4_LENGTH,
            Addresses::V6 { .. } => ENTRY6_LENGTH,
        }
    }

    fn write(&self, to: &mut [u8]) -> Option<()> {
        let kind = match self.addresses {
            Addresses::V4 { .. } => 0,
            Addresses::V6 { .. } => IPV6,
        };
        let mut rest = to;
        put(&mut rest, &[kind, self.protocol])?;
        put(&mut rest, &(self.length() as u16).to_be_bytes())?;
        put(&mut rest, &self.flags.to_be_bytes())?;
        for number in [self.state, self.client_port, self.service_port, self.destination_port] {
            put(&mut rest, &number.to_be_bytes())?;
        }
        put(&mut rest, &self.mark.to_be_bytes())?;
        put(&mut rest, &self.timeout_s.to_be_bytes())?;
        match &self.addresses {
            Addresses::V4 { client, service, destination } => {
                [client, service, destination].into_iter().try_for_each(|one| put(&mut rest, one))
            }
            Addresses::V6 { client, service, destination } => {
                [client, service, destination].into_iter().try_for_each(|one| put(&mut rest, one))
            }
        }
    }

    /// Reads the entry that bytes begin with; returns it with its length.
    fn read(bytes: &[u8]) -> Result<(Self, usize), Refused> {
        let mut rest = bytes;
        let [kind, protocol] = take(&mut rest)?;
        let word = u16::from_be_bytes(take(&mut rest)?);
        if word & !LENGTH_MASK != 0 {
            return Err(Refused::EntryVersion);
        }
        let length = usize::from(word & LENGTH_MASK);
        let mut rest =
            bytes.get(..length).and_then(|entry| entry.get(4..)).ok_or(Refused::Length)?;
        let flags = u32::from_be_bytes(take(&mut rest)?) & flag::KEPT;
        let mut number = || take(&mut rest).map(u16::from_be_bytes);
        let [state, client_port, service_port, destination_port] =
            [number()?, number()?, number()?, number()?];
        let mark = u32::from_be_bytes(take(&mut rest)?);
        let timeout_s = u32::from_be_bytes(take(&mut rest)?);
        let addresses = if kind & IPV6 == 0 {
            let [client, service, destination] =
                [take(&mut rest)?, take(&mut rest)?, take(&mut rest)?];
            Addresses::V4 { client, service, destination }
        } else {
            let [client, service, destination] =
                [take(&mut rest)?, take(&mut rest)?, take(&mut rest)?];
            Addresses::V6 { client, service, destination }
        };
        check_options(rest)?;
        let mut entry = Self {
            protocol,
            flags,
            state,
            client_port,
            service_port,
            destination_port,
            mark,
            timeout_s,
            addresses,
        };
        entry.check()?;
        Ok((entry, length))
    }

    /// As [`read`](Self::read), of version 0.
    fn read_old(bytes: &[u8]) -> Result<(Self, usize), Refused> {
        let mut rest = bytes;
        let [_, protocol] = take(&mut rest)?;
        let mut number = || take(&mut rest).map(u16::from_be_bytes);
        let [client_port, service_port, destination_port] = [number()?, number()?, number()?];
        let [client, service, destination] = [take(&mut rest)?, take(&mut rest)?, take(&mut rest)?];
        let mut number = || take(&mut rest).map(u16::from_be_bytes);
        let [flags, state] = [number()?, number()?];
        let flags = u32::from(flags) & flag::KEPT;
        if flags & flag::SEQUENCES != 0 {
            take::<{ option::SEQUENCES_LENGTH }>(&mut rest)?;
        }
        let mut entry = Self {
            protocol,
            flags,
            state,
            client_port,
            service_port,
            destination_port,
            mark: 0,
            timeout_s: 0,
            addresses: Addresses::V4 { client, service, destination },
        };
        entry.check()?;
        Ok((entry, bytes.len() - rest.len()))
    }

    /// Refuses a protocol or a state that there is not; of a template neither matters, and an unknown state
    /// is the first.
    fn check(&mut self) -> Result<(), Refused> {
        if self.flags & flag::TEMPLATE != 0 {
            if self.state > ASSURED {
                self.state = 0;
            }
            return Ok(());
        }
        let states = match self.protocol {
            tcp::PROTOCOL => 11,
            sctp::PROTOCOL => 14,
            udp::PROTOCOL | ipsec::AH | ipsec::ESP => 1,
            _ => return Err(Refused::Protocol),
        };
        if self.state < states { Ok(()) } else { Err(Refused::State) }
    }
}

/// Refuses options that lie, come twice, or must be known and are not.
fn check_options(mut rest: &[u8]) -> Result<(), Refused> {
    let mut seen = 0_u8;
    while !rest.is_empty() {
        let [kind, length] = take(&mut rest)?;
        let length = usize::from(length);
        rest = rest.get(length..).ok_or(Refused::Option)?;
        let fits = match kind & !option::PARAMETER {
            option::SEQUENCES => length == option::SEQUENCES_LENGTH,
            option::ENGINE_DATA => (1..=option::ENGINE_DATA_MAX).contains(&length),
            option::ENGINE_NAME => (1..=option::ENGINE_NAME_MAX).contains(&length),
            _ if kind & option::PARAMETER != 0 => continue,
            _ => return Err(Refused::Option),
        };
        let bit = 1 << (kind & !option::PARAMETER);
        if !fits || seen & bit != 0 {
            return Err(Refused::Option);
        }
        seen |= bit;
    }
    Ok(())
}

/// Why a message or the rest of one was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The datagram, an entry or a field ends too early, or the message's length is not the datagram's.
    Length,
    /// A version of messages other than 0 and 1.
    Version,
    /// An entry of a version other than 0.
    EntryVersion,
    /// An option that is too long, comes twice, or is not known and may not be passed over.
    Option,
    /// A connection of a protocol that is not balanced.
    Protocol,
    /// A number that none of the protocol's states has.
    State,
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Number of the group of directors.
    pub sync_id: u8,
    version: u8,
    count: u8,
    entries: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the header of a datagram's payload.
    ///
    /// # Errors
    /// A length that is not the datagram's, or another version.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Refused> {
        let mut rest = datagram;
        let [old_count, sync_id] = take(&mut rest)?;
        let length = u16::from_be_bytes(take(&mut rest)?);
        if usize::from(length) != datagram.len() {
            return Err(Refused::Length);
        }
        if old_count != 0 {
            return Ok(Self { sync_id, version: 0, count: old_count, entries: rest });
        }
        let [count, version, _, _] = take(&mut rest)?;
        if version != VERSION {
            return Err(Refused::Version);
        }
        Ok(Self { sync_id, version, count, entries: rest })
    }

    /// Returns its entries. The first one that is refused is the last.
    #[must_use]
    pub const fn entries(&self) -> Entries<'a> {
        Entries { rest: self.entries, left: self.count, version: self.version }
    }
}

/// The entries of a message, in order.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    left: u8,
    version: u8,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let read = if self.version == 0 { Entry::read_old } else { Entry::read };
        match read(self.rest) {
            Ok((entry, length)) => {
                let next = length.next_multiple_of(ALIGNMENT);
                self.rest = self.rest.get(next..).unwrap_or_default();
                Some(Ok(entry))
            }
            Err(refused) => {
                self.left = 0;
                Some(Err(refused))
            }
        }
    }
}

/// A message that is being written.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
    count: u8,
    sync_id: u8,
}

impl<'a> Writer<'a> {
    /// Begins a message that is no longer than the buffer, nor than 65,535 bytes.
    #[must_use]
    pub const fn new(buffer: &'a mut [u8], sync_id: u8) -> Self {
        Self { buffer, length: HEADER_LENGTH, count: 0, sync_id }
    }

    /// Adds an entry; returns whether there was room.
    pub fn push(&mut self, entry: &Entry) -> bool {
        let end = self.length + entry.length();
        if self.count == ENTRIES_MAX || end > usize::from(u16::MAX) {
            return false;
        }
        let Some(room) = self.buffer.get_mut(self.length..end) else { return false };
        if entry.write(room).is_none() {
            return false;
        }
        self.length = end;
        self.count += 1;
        true
    }

    /// Returns the message, or `None` if there is no entry in it.
    #[must_use]
    pub fn finish(self) -> Option<&'a [u8]> {
        if self.count == 0 {
            return None;
        }
        let message = self.buffer.get_mut(..self.length)?;
        let mut rest = &mut *message;
        put(&mut rest, &[0, self.sync_id])?;
        put(&mut rest, &(self.length as u16).to_be_bytes())?;
        put(&mut rest, &[self.count, VERSION, 0, 0])?;
        Some(message)
    }
}

/// Writes bytes to the front of a slice, which is what follows them then.
fn put(rest: &mut &mut [u8], bytes: &[u8]) -> Option<()> {
    let (front, back) = core::mem::take(rest).split_at_mut_checked(bytes.len())?;
    front.copy_from_slice(bytes);
    *rest = back;
    Some(())
}

/// Takes bytes from the front of a slice.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Refused> {
    let (front, back) = rest.split_first_chunk().ok_or(Refused::Length)?;
    *rest = back;
    Ok(*front)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.1 sent: a NAT connection, established, of director group 9.
    const SENT: [u8; 44] = [
        0x00, 0x09, 0x00, 0x2c, 0x01, 0x01, 0x00, 0x00, // header
        0x00, 0x06, 0x00, 0x24, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x1e, 0x79, 0x03, 0xe9, 0x00,
        0x50, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0x84, // until the time-out
        10, 9, 0, 2, 10, 9, 0, 100, 10, 1, 0, 12,
    ];

    fn sent() -> Entry {
        Entry {
            protocol: 6,
            flags: 0,
            state: 1,
            client_port: 0x1e79,
            service_port: 1001,
            destination_port: 80,
            mark: 0,
            timeout_s: 900,
            addresses: Addresses::V4 {
                client: [10, 9, 0, 2],
                service: [10, 9, 0, 100],
                destination: [10, 1, 0, 12],
            },
        }
    }

    fn v6() -> Entry {
        let addresses = Addresses::V6 { client: [1; 16], service: [2; 16], destination: [3; 16] };
        Entry { protocol: 17, state: 0, flags: flag::INACTIVE | 3, addresses, mark: 7, ..sent() }
    }

    #[test]
    fn what_the_kernel_sent_is_read_and_written_byte_for_byte() {
        let message = Message::parse(&SENT).expect("a message");
        assert_eq!(message.sync_id, 9);
        assert!(message.entries().eq([Ok(sent())]));
        let mut buffer = [0xaa; 44];
        let mut writer = Writer::new(&mut buffer, 9);
        assert!(writer.push(&sent()));
        assert!(!writer.push(&sent()), "there is no room for another");
        assert_eq!(writer.finish(), Some(&SENT[..]));
    }

    #[test]
    fn entries_of_both_versions_come_back() {
        let mut buffer = [0; 1472];
        let mut writer = Writer::new(&mut buffer, 255);
        for entry in [sent(), v6(), sent()] {
            assert!(writer.push(&entry));
        }
        let message = Message::parse(writer.finish().expect("a message")).expect("read again");
        assert!(message.entries().eq([Ok(sent()), Ok(v6()), Ok(sent())]));
    }

    #[test]
    fn a_message_takes_255_entries_and_none_is_no_message() {
        let mut buffer = [0; 65_507];
        assert_eq!(Writer::new(&mut buffer, 0).finish(), None);
        let mut writer = Writer::new(&mut buffer, 0);
        let taken = (0..300).take_while(|_| writer.push(&sent())).count();
        assert_eq!(taken, 255);
        let message = Message::parse(writer.finish().expect("a message")).expect("read again");
        assert_eq!(message.entries().filter(Result::is_ok).count(), 255);
    }

    #[test]
    fn whatever_is_cut_off_is_refused() {
        for length in 0..SENT.len() {
            assert_eq!(Message::parse(&SENT[..length]).err(), Some(Refused::Length));
            // The same with a header that says so.
            let mut cut = SENT;
            cut[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            if let Ok(message) = Message::parse(&cut[..length]) {
                assert!(message.entries().eq([Err(Refused::Length)]), "{length} bytes");
            }
        }
    }

    #[test]
    fn versions_and_lengths_that_lie_are_refused() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = SENT;
            bytes[at] = byte;
            bytes
        };
        let first = |bytes: &[u8]| Message::parse(bytes).map(|message| message.entries().next());
        for length in [43, 45] {
            assert_eq!(first(&changed(3, length)), Err(Refused::Length), "{length}");
        }
        // An entry of version 0, of ICMP.
        assert_eq!(first(&changed(0, 1)), Ok(Some(Err(Refused::Protocol))));
        assert_eq!(first(&changed(5, 2)), Err(Refused::Version));
        assert_eq!(first(&changed(10, 0x10)), Ok(Some(Err(Refused::EntryVersion))));
        for length in [0, 3, 35, 37, 255] {
            assert_eq!(first(&changed(11, length)), Ok(Some(Err(Refused::Length))), "{length}");
        }
        // More entries than there are: those that are there count, as in the kernel.
        let more = changed(4, 3);
        let message = Message::parse(&more).expect("a message");
        assert!(message.entries().eq([Ok(sent()), Err(Refused::Length)]));
    }

    #[test]
    fn what_the_kernel_sent_of_version_0_is_read() {
        let old = [
            0x01, 0x09, 0x00, 0x1c, 0x00, 0x06, 0x1e, 0x7d, 0x03, 0xe9, 0x00, 0x50, 0x0a, 0x09,
            0x00, 0x02, 0x0a, 0x09, 0x00, 0x64, 0x0a, 0x01, 0x00, 0x0c, 0x00, 0x00, 0x00, 0x01,
        ];
        let message = Message::parse(&old).expect("a message");
        let expected = Entry { client_port: 0x1e7d, timeout_s: 0, ..sent() };
        assert!(message.entries().eq([Ok(expected)]));
        for length in 4..old.len() {
            let mut cut = old;
            cut[3] = length as u8;
            let message = Message::parse(&cut[..length]).expect("a header");
            assert!(message.entries().eq([Err(Refused::Length)]), "{length} bytes");
        }
        let mut moved = old;
        moved[24..26].copy_from_slice(&[0x02, 0x00]);
        let message = Message::parse(&moved).expect("a message");
        assert!(message.entries().eq([Err(Refused::Length)]), "sequence numbers are missing");
    }

    #[test]
    fn protocols_and_states_that_there_are_not_are_refused() {
        let with = |at: usize, byte: u8| {
            let mut bytes = SENT;
            bytes[at] = byte;
            Message::parse(&bytes).expect("a message").entries().next()
        };
        assert_eq!(with(9, 1), Some(Err(Refused::Protocol)));
        assert_eq!(with(17, 10).map(|entry| entry.is_ok()), Some(true));
        assert_eq!(with(17, 11), Some(Err(Refused::State)));
        assert_eq!(with(9, 17), Some(Err(Refused::State)), "UDP has one state");
        // What a template says of either does not matter.
        let mut template = SENT;
        template[14] = 0x10;
        template[9] = 0;
        template[17] = 7;
        let entry = Message::parse(&template).expect("a message").entries().next();
        assert_eq!(entry.map(|entry| entry.map(|entry| entry.state)), Some(Ok(0)));
    }

    #[test]
    fn options_are_passed_over_or_refused() {
        let with = |options: &[u8]| {
            let mut bytes = [0; 44 + 64];
            bytes[..44].copy_from_slice(&SENT);
            bytes[44..44 + options.len()].copy_from_slice(options);
            let length = 44 + options.len();
            bytes[3] = length as u8;
            bytes[11] = (length - HEADER_LENGTH) as u8;
            let message = Message::parse(&bytes[..length]).expect("a message");
            let mut entries = message.entries();
            (entries.next(), entries.next())
        };
        let mut sequences = [0; 26];
        sequences[..2].copy_from_slice(&[1, 24]);
        assert_eq!(with(&sequences), (Some(Ok(sent())), None));
        let engine = [0x42, 2, b'a', b'b', 0x43, 3, b's', b'i', b'p'];
        assert_eq!(with(&engine), (Some(Ok(sent())), None));
        assert_eq!(with(&[0x7f, 1, 9]), (Some(Ok(sent())), None));
        for lie in [
            &[1, 23, 0][..],
            &[0x3f, 0],
            &[0x42, 3, b'a', b'b'],
            &[2, 0],
            &[2, 1, b'a', 2, 1, b'b'],
        ] {
            assert_eq!(with(lie), (Some(Err(Refused::Option)), None), "{lie:?}");
        }
        assert_eq!(with(&[1]), (Some(Err(Refused::Length)), None));
    }

    /// Every message that differs from a good one in one byte is read without a panic, and what
    /// is read of it can be written.
    #[test]
    fn no_changed_byte_does_harm() {
        let mut buffer = [0; 256];
        let mut writer = Writer::new(&mut buffer, 1);
        for entry in [v6(), sent()] {
            assert!(writer.push(&entry));
        }
        let length = writer.finish().map_or(0, <[u8]>::len);
        for at in 0..length {
            for byte in 0..=255 {
                let mut changed = buffer;
                changed[at] = byte;
                let Ok(message) = Message::parse(&changed[..length]) else { continue };
                for entry in message.entries().flatten() {
                    let mut again = [0; 128];
                    assert!(Writer::new(&mut again, 1).push(&entry));
                }
            }
        }
    }
}
