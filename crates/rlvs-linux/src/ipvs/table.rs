//! The kernel's own table behind the trait that all tables have.

use std::error::Error as _;

use rlvs_control::check;
use rlvs_control::model::{
    Connection, ConnectionLine, Destination, DestinationEntry, DestinationId, ForwardingMethod,
    Service, ServiceEntry, ServiceId, SyncDaemon, SyncRole, Timeouts, Version,
};
use rlvs_control::table::{Error, Table};

use super::decode::{self, Figures, Info};
use super::message::{Malformed, Message, Writer};
use super::uapi::{self, command, control};
use super::{connections, encode};
use crate::netlink::{self, Socket};

/// `NETLINK_GENERIC` (`linux/netlink.h`).
const NETLINK_GENERIC: isize = 16;
/// The connections of the calling thread's network namespace.
const CONNECTIONS_FILE: &str = "/proc/thread-self/net/ip_vs_conn";

/// The IPVS of the kernel, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct KernelTable {
    socket: Socket,
    family: u16,
    info: Info,
}

impl KernelTable {
    /// Opens the table of the calling thread's network namespace.
    ///
    /// The question alone makes a kernel load its module, if it has one.
    ///
    /// # Errors
    /// [`Error::System`], which says what is missing and what to do: IPVS or a capability.
    pub fn open() -> Result<Self, Error> {
        let failed = |error| system("asking the kernel for IPVS", &error);
        let mut socket = Socket::open(NETLINK_GENERIC).map_err(failed)?;
        let family = family_id(&mut socket).map_err(failed)?.ok_or_else(|| {
            let text = "this kernel has no IPVS; load it as root (`modprobe ip_vs`), or leave out \
                        `--backend kernel` to use the table of rlvs, which needs none";
            Error::System(text.to_owned())
        })?;
        let info = Info { version: Version::default(), connection_table_size: 0 };
        let mut table = Self { socket, family, info };
        let answer = table.ask(command::GET_INFO, Vec::new()).map_err(failed)?;
        table.info = first(&answer, decode::info)?;
        Ok(table)
    }

    /// Sends a request for a change, or for one answer.
    fn ask(&mut self, command: u8, attributes: Vec<u8>) -> Result<Vec<Message>, netlink::Error> {
        let message = self.message(command, attributes);
        self.socket.change(message, 0)
    }

    fn list(&mut self, command: u8, attributes: Vec<u8>) -> Result<Vec<Message>, netlink::Error> {
        let message = self.message(command, attributes);
        self.socket.list(&message)
    }

    fn message(&self, command: u8, attributes: Vec<u8>) -> Message {
        Message { family: self.family, version: uapi::FAMILY_VERSION, command, attributes }
    }

    fn all(&mut self, figures: Figures) -> Result<Vec<ServiceEntry>, Error> {
        let answers = self
            .list(command::GET_SERVICE, Vec::new())
            .map_err(|error| system("listing services", &error))?;
        answers.iter().map(|answer| self.entry(answer, figures)).collect()
    }

    fn one(&mut self, id: ServiceId, figures: Figures) -> Result<ServiceEntry, Error> {
        let answers = self
            .ask(command::GET_SERVICE, encode::service_id(id))
            .map_err(|error| about_service("reading a service", id, &error))?;
        self.entry(answers.first().ok_or(Error::NoService)?, figures)
    }

    fn entry(&mut self, answer: &Message, figures: Figures) -> Result<ServiceEntry, Error> {
        let (service, traffic) =
            decode::service(&answer.attributes, figures).map_err(|error| unreadable(&error))?;
        let destinations = self.destinations(service.id, figures)?;
        Ok(ServiceEntry { service, traffic, destinations })
    }

    fn destinations(
        &mut self,
        id: ServiceId,
        figures: Figures,
    ) -> Result<Vec<DestinationEntry>, Error> {
        let answers = self
            .list(command::GET_DEST, encode::service_id(id))
            .map_err(|error| about_service("listing destinations", id, &error))?;
        let family = id.family();
        let entries = answers.iter().map(|answer| {
            decode::destination(&answer.attributes, family, figures)
                .map_err(|error| unreadable(&error))
        });
        entries.collect()
    }

    fn runs(&mut self, role: SyncRole) -> Result<bool, Error> {
        Ok(self.sync_daemons()?.iter().any(|daemon| daemon.role == role))
    }

    /// Sends an edit of a destination.
    fn edit(&mut self, command: u8, service: ServiceId, to: &Destination) -> Result<(), Error> {
        let attributes = encode::destination(service, to);
        self.ask(command, attributes).map(drop).map_err(|error| match error.refusal() {
            // The kernel does not say which rule of its own it is.
            Some(libc::EINVAL | libc::ERANGE) => check::destination(service, to)
                .and_then(|()| check::real_server(to.id.address))
                .err()
                .unwrap_or_else(|| about_destination(to.id, &error)),
            _ => about_destination(to.id, &error),
        })
    }
}

/// Refuses what only our own table has.
fn is_known(to: &Destination) -> Result<(), Error> {
    if to.method == ForwardingMethod::FullNat {
        let text = "the kernel's IPVS has no full NAT (--snat)";
        return Err(Error::Invalid(text.to_owned()));
    }
    Ok(())
}

impl Table for KernelTable {
    fn add_service(&mut self, service: &Service) -> Result<(), Error> {
        self.ask(command::NEW_SERVICE, encode::service(service))
            .map(drop)
            .map_err(|error| about_names(service, &error))
    }

    fn edit_service(&mut self, service: &Service) -> Result<(), Error> {
        self.ask(command::SET_SERVICE, encode::service(service))
            .map(drop)
            .map_err(|error| about_names(service, &error))
    }

    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
        self.ask(command::DEL_SERVICE, encode::service_id(id))
            .map(drop)
            .map_err(|error| about_service("removing a service", id, &error))
    }

    fn add_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        is_known(to)?;
        self.edit(command::NEW_DEST, service, to)
    }

    fn edit_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        is_known(to)?;
        self.edit(command::SET_DEST, service, to)
    }

    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.ask(command::DEL_DEST, encode::destination_id(service, id))
            .map(drop)
            .map_err(|error| about_destination(id, &error))
    }

    fn flush(&mut self) -> Result<(), Error> {
        let done = self.ask(command::FLUSH, Vec::new());
        done.map(drop).map_err(|error| system("removing all services", &error))
    }

    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        self.all(Figures::Totals)
    }

    fn service(&mut self, id: ServiceId) -> Result<ServiceEntry, Error> {
        self.one(id, Figures::Totals)
    }

    fn rates(&mut self, only: Option<ServiceId>) -> Result<Vec<ServiceEntry>, Error> {
        match only {
            Some(id) => Ok(vec![self.one(id, Figures::Rates)?]),
            None => self.all(Figures::Rates),
        }
    }

    fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        Ok(self.connection_lines()?.iter().filter_map(connections::typed).collect())
    }

    fn connection_lines(&mut self) -> Result<Vec<ConnectionLine>, Error> {
        let text = std::fs::read_to_string(CONNECTIONS_FILE)
            .map_err(|error| Error::System(format!("reading {CONNECTIONS_FILE}: {error}")))?;
        connections::lines(&text).map_err(|error| unreadable(&error))
    }

    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let answers = self
            .ask(command::GET_CONFIG, Vec::new())
            .map_err(|error| system("reading the time-outs", &error))?;
        first(&answers, decode::timeouts)
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        let done = self.ask(command::SET_CONFIG, encode::timeouts(timeouts));
        done.map(drop).map_err(|error| system("setting the time-outs", &error))
    }

    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error> {
        let attributes = service.map_or(Vec::new(), encode::service_id);
        self.ask(command::ZERO, attributes).map(drop).map_err(|error| match service {
            Some(id) => about_service("zeroing the counters", id, &error),
            None => system("zeroing all counters", &error),
        })
    }

    fn connection_table_size(&mut self) -> Result<u32, Error> {
        Ok(self.info.connection_table_size)
    }

    fn version(&mut self) -> Result<Version, Error> {
        Ok(self.info.version)
    }

    fn sync_daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        let answers = self
            .list(command::GET_DAEMON, Vec::new())
            .map_err(|error| system("listing synchronisation daemons", &error))?;
        let daemons = answers.iter().map(|answer| decode::sync_daemon(&answer.attributes));
        daemons.map(|daemon| daemon.map_err(|error| unreadable(&error))).collect()
    }

    fn start_sync_daemon(&mut self, wanted: &SyncDaemon) -> Result<(), Error> {
        let done = self.ask(command::NEW_DAEMON, encode::sync_daemon(wanted));
        done.map(drop).map_err(|error| match error.refusal() {
            Some(libc::EEXIST) => Error::SyncDaemonRuns(wanted.role),
            _ => {
                let what = format!("starting a {} daemon on {}", wanted.role, wanted.interface);
                system(&what, &error)
            }
        })
    }

    fn stop_sync_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        let failed = |error| system(&format!("stopping the {role} daemon"), &error);
        if !self.runs(role)? {
            return Err(Error::NoSyncDaemon(role));
        }
        // The kernel stops a daemon that has not run yet without an answer: netlink_rcv_skb() keeps
        // silent about the EINTR of kthread_stop(). So the list tells.
        let message = self.message(command::DEL_DAEMON, encode::sync_role(role));
        self.socket.tell(message).map_err(failed)?;
        match self.runs(role)? {
            false => Ok(()),
            true => Err(Error::System(format!("the {role} daemon does not stop"))),
        }
    }
}

/// Asks for the number of the family, which is there or not.
fn family_id(socket: &mut Socket) -> Result<Option<u16>, netlink::Error> {
    let attributes = Writer::default().text(control::FAMILY_NAME, uapi::FAMILY_NAME).finish();
    let message = Message {
        family: control::FAMILY,
        version: control::VERSION,
        command: control::GET_FAMILY,
        attributes,
    };
    match socket.change(message, 0) {
        Ok(answers) => {
            let id = answers.first().map(|answer| decode::family_id(&answer.attributes));
            id.transpose().map_err(|error| netlink::Error::Answer(error.to_string()))
        }
        Err(error) if error.refusal() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the one answer to a question.
fn first<T>(answers: &[Message], read: impl Fn(&[u8]) -> Result<T, Malformed>) -> Result<T, Error> {
    let none = || Error::System("the kernel did not answer about IPVS".to_owned());
    let answer = answers.first().ok_or_else(none)?;
    read(&answer.attributes).map_err(|error| unreadable(&error))
}

fn unreadable(error: &Malformed) -> Error {
    Error::System(format!("the kernel's answer about IPVS cannot be read: {error}"))
}

/// Says what the kernel refused to add or edit: the service, or a name in it.
fn about_names(service: &Service, error: &netlink::Error) -> Error {
    match error.refusal() {
        Some(libc::ENOENT) => {
            let scheduler = service.scheduler.clone();
            let engine = service.persistence_engine.as_ref();
            Error::UnknownScheduler(match engine {
                Some(engine) => format!("{scheduler}` or `{engine}"),
                None => scheduler,
            })
        }
        Some(libc::EINVAL) => {
            let unknown = || about_service("editing a service", service.id, error);
            check::service(service).err().unwrap_or_else(unknown)
        }
        _ => about_service("editing a service", service.id, error),
    }
}

fn about_service(operation: &str, id: ServiceId, error: &netlink::Error) -> Error {
    match error.refusal() {
        Some(libc::EEXIST) => Error::ServiceExists,
        Some(libc::ESRCH) => Error::NoService,
        _ => system(&format!("{operation} ({id:?})"), error),
    }
}

fn about_destination(id: DestinationId, error: &netlink::Error) -> Error {
    match error.refusal() {
        Some(libc::EEXIST) => Error::DestinationExists,
        Some(libc::ENOENT) => Error::NoDestination,
        Some(libc::ESRCH) => Error::NoService,
        Some(libc::EINVAL) => Error::Invalid(format!(
            "the kernel refuses the real server {}, as it does addresses that are neither unicast \
             nor of this host, and values that make no sense",
            id.address
        )),
        _ => system(&format!("editing the destination {}", id.address), error),
    }
}

fn system(operation: &str, error: &netlink::Error) -> Error {
    if error.refusal() == Some(libc::EPERM) {
        let text = "the kernel's IPVS is only for those who have CAP_NET_ADMIN in this network \
                    namespace; run this as root";
        return Error::System(text.to_owned());
    }
    let mut text = format!("{operation}: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    Error::System(text)
}
