//! BPF filters on the ingress of an interface, and the qdisc `clsact` that holds them.
//!
//! Filters of ours have a handle of their own, so that with its priority one is asked for, replaced
//! and removed without looking at those of others.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::{Error, Rtnetlink};

const CLSACT: &str = "clsact";
/// The handle that this qdisc always has.
const QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_EGRESS };
/// Handle of our filters: "rlvs".
const HANDLE: TcHandle = TcHandle { major: 0x726c, minor: 0x7673 };
/// What `tc filter show` calls them.
const NAME: &str = "rlvs";

impl Rtnetlink {
    /// Gives an interface the qdisc `clsact`. Returns whether it is new: an interface has one such
    /// qdisc at most, and where `clsact` or `ingress` is there, it does.
    ///
    /// # Errors
    /// `ENOENT` from a kernel without it, the interface is gone, or a missing capability.
    pub fn add_clsact(&mut self, index: u32) -> Result<bool, Error> {
        let mut message = message(index, TcHandle::CLSACT, CLSACT);
        message.header.handle = QDISC;
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        let operation = || format!("giving interface {index} the qdisc clsact");
        match self.change(message, NLM_F_CREATE | NLM_F_EXCL, operation) {
            Ok(()) => Ok(true),
            Err(error) if error.refusal() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the qdisc `clsact` from an interface, unless there is a filter in it.
    ///
    /// # Errors
    /// A missing capability.
    pub fn delete_empty_clsact(&mut self, index: u32) -> Result<(), Error> {
        for parent in [INGRESS, EGRESS] {
            let mut question = TcMessage::default();
            question.header.index = index.cast_signed();
            question.header.parent = parent;
            let filters = self.socket.list(&RouteNetlinkMessage::GetTrafficFilter(question));
            // A filter that cannot be read is a filter too.
            if !filters.is_ok_and(|filters| filters.is_empty()) {
                return Ok(());
            }
        }
        let mut message = message(index, TcHandle::CLSACT, CLSACT);
        message.header.handle = QDISC;
        let operation = || format!("taking the qdisc clsact from interface {index}");
        absent_is_done(self.change(RouteNetlinkMessage::DelQueueDiscipline(message), 0, operation))
    }

    /// Sets the filter of this priority, in place of one of ours that is there already.
    ///
    /// # Errors
    /// `EINVAL` if filters of another kind or protocol have the priority, `ENOENT` from a kernel
    /// without BPF filters, the interface is gone, or a missing capability.
    pub fn set_ingress_filter(
        &mut self,
        index: u32,
        priority: u16,
        program: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let mut message = filter(index, priority);
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(NAME.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).to_vec()));
        self.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE, || {
            format!("setting a BPF filter on interface {index}")
        })
    }

    /// Returns the number of the program that our filter of this priority runs, if there is one.
    ///
    /// # Errors
    /// The socket failed.
    pub fn ingress_filter(&mut self, index: u32, priority: u16) -> Result<Option<u32>, Error> {
        let question = RouteNetlinkMessage::GetTrafficFilter(filter(index, priority));
        let answers = match self.socket.change(question, 0) {
            Ok(answers) => answers,
            Err(error) if is_absent(error.refusal()) => return Ok(None),
            Err(source) => {
                let operation = format!("asking for the BPF filter on interface {index}");
                return Err(Error::Netlink { operation, source });
            }
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => program_of(message),
            _ => None,
        }))
    }

    /// Removes our filter of this priority, if it is there.
    ///
    /// # Errors
    /// A missing capability.
    pub fn delete_ingress_filter(&mut self, index: u32, priority: u16) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelTrafficFilter(filter(index, priority));
        let operation = || format!("removing the BPF filter from interface {index}");
        absent_is_done(self.change(message, 0, operation))
    }
}

fn message(index: u32, parent: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
    message
}

fn filter(index: u32, priority: u16) -> TcMessage {
    let mut message = message(index, INGRESS, TcFilterBpf::KIND);
    message.header.handle = HANDLE;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(priority) << 16 | u32::from(protocol);
    message
}

fn program_of(message: TcMessage) -> Option<u32> {
    let options = message.attributes.into_iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.into_iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(id),
        _ => None,
    })
}

/// Whether the kernel refused because there is no such filter, qdisc or interface.
fn is_absent(refusal: Option<i32>) -> bool {
    matches!(refusal, Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

fn absent_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if is_absent(error.refusal()) => Ok(()),
        result => result,
    }
}
