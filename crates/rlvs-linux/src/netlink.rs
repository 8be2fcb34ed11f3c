//! One netlink socket, one request at a time: send, collect the replies, take the verdict.
//!
//! It serves every netlink family here. Invariant: when a request returns, nothing of
//! that request is left to be read.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// How long the kernel may take for an answer; it answers in the system call, so this is a stop.
const ANSWER_S_MAX: i64 = 10;
/// How often a listing that changed while it was read is begun again.
const DUMP_ATTEMPTS_MAX: u32 = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words about an error.
const ERROR_ATTRIBUTE_MESSAGE: u16 = 1;
/// The longest datagram: the kernel fills 32 KiB at most when it lists.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;
/// Length of `struct nlmsghdr`, which precedes the attributes of an error.
const HEADER_BYTES: usize = 16;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel answered with an error.
    #[error("{}", .explanation.as_deref().unwrap_or("the kernel refused"))]
    Refused {
        /// The error number.
        source: io::Error,
        /// The kernel's own words, if it sent any.
        explanation: Option<String>,
    },
    /// The socket failed.
    #[error("{operation} a netlink socket")]
    Socket {
        /// What was done with it.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer was not understood.
    #[error("the kernel's netlink answer cannot be read: {0}")]
    Answer(String),
    /// The listing changed each time while it was read.
    #[error("the listing changed {DUMP_ATTEMPTS_MAX} times while it was read")]
    Restless,
}

impl Error {
    /// Returns the error number with which the kernel refused, if it did.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Socket { .. } | Self::Answer(_) | Self::Restless => None,
        }
    }
}

/// A netlink socket of one family, in the namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    /// What was received last.
    received: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's namespace; it may then be used from anywhere.
    ///
    /// # Errors
    /// No such family, or no file descriptor left.
    pub fn open(protocol: isize) -> Result<Self, Error> {
        let failed = |operation| move |source| Error::Socket { operation, source };
        let mut socket = netlink_sys::Socket::new(protocol).map_err(failed("opening"))?;
        socket.bind_auto().map_err(failed("binding"))?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0)).map_err(failed("connecting"))?;
        socket.set_ext_ack(true).map_err(failed("configuring"))?;
        socket.set_cap_ack(true).map_err(failed("configuring"))?;
        setsockopt(&socket.as_fd(), ReceiveTimeout, &TimeVal::new(ANSWER_S_MAX, 0))
            .map_err(|source| failed("configuring")(source.into()))?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM_BYTES_MAX) })
    }

    /// Asks for a change, and returns what the kernel said besides yes.
    ///
    /// # Errors
    /// The kernel refused, or the socket failed.
    pub fn change<M>(&mut self, message: M, flags: u16) -> Result<Vec<M>, Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(|(answers, _)| answers)
    }

    /// Asks a question that has one answer.
    ///
    /// # Errors
    /// The kernel refused, or the socket failed.
    pub fn ask<M>(&mut self, message: M) -> Result<M, Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(message, NLM_F_REQUEST)?;
        // Without a wish for an acknowledgement the answer is the end.
        self.answers(true)?.0.pop().ok_or_else(|| Error::Answer("no answer".to_owned()))
    }

    /// Asks for a listing, which is read whole and consistent.
    ///
    /// # Errors
    /// The kernel refused, the socket failed, or the listing would not stand still.
    pub fn list<M>(&mut self, message: &M) -> Result<Vec<M>, Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let (answers, consistent) =
                self.request(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if consistent {
                return Ok(answers);
            }
        }
        Err(Error::Restless)
    }

    /// Asks for a change without waiting for the verdict, for what the kernel may not answer.
    ///
    /// # Errors
    /// The socket failed.
    pub fn tell<M: NetlinkSerializable>(&mut self, message: M) -> Result<(), Error> {
        self.send(message, NLM_F_REQUEST)
    }

    /// Sends one request and reads up to its end; tells whether a listing stood still meanwhile.
    fn request<M>(&mut self, message: M, flags: u16) -> Result<(Vec<M>, bool), Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(message, flags)?;
        self.answers(false)
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .map(drop)
            .map_err(|source| Error::Socket { operation: "sending to", source })
    }

    /// Reads all that answers the last request, or only the first answer.
    fn answers<M: NetlinkDeserializable>(
        &mut self,
        only_first: bool,
    ) -> Result<(Vec<M>, bool), Error> {
        let mut answers = Vec::new();
        let mut consistent = true;
        loop {
            self.received.clear();
            let bytes = match self.socket.recv(&mut self.received, libc::MSG_TRUNC) {
                Ok(length) => self
                    .received
                    .get(..length)
                    .ok_or_else(|| Error::Answer(format!("{length} bytes in one datagram")))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Socket { operation: "receiving from", source }),
            };
            for answer in messages::<M>(bytes)? {
                // What is left of an earlier request, told or timed out, is not ours.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if only_first {
                            return Ok((answers, consistent));
                        }
                    }
                    NetlinkPayload::Error(error) => {
                        return verdict(&error).map(|()| (answers, consistent));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let source = io::Error::from_raw_os_error(done.code.saturating_neg());
                        return Err(Error::Refused { source, explanation: None });
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, consistent)),
                    _ => {}
                }
            }
        }
    }
}

/// Takes a datagram apart into its messages.
fn messages<M: NetlinkDeserializable>(mut bytes: &[u8]) -> Result<Vec<NetlinkMessage<M>>, Error> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(bytes)
            .map_err(|error| Error::Answer(error.to_string()))?;
        let length = usize::try_from(message.header.length)
            .map_err(|error| Error::Answer(error.to_string()))?;
        if length < HEADER_BYTES {
            return Err(Error::Answer(format!("a message of {length} bytes")));
        }
        messages.push(message);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

fn verdict(error: &ErrorMessage) -> Result<(), Error> {
    if error.code.is_none() {
        return Ok(());
    }
    let attributes = error.header.get(HEADER_BYTES..).unwrap_or_default();
    let explanation = NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == ERROR_ATTRIBUTE_MESSAGE)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned()
        });
    Err(Error::Refused { source: error.to_io(), explanation })
}
