//! The virtual-server table as its front ends see it.
//!
//! `ipvsadm` and `keepalived` read and edit through [`Table`] and do not know which table it is:
//! ours in BPF maps, the kernel's IPVS, or the plain one in memory that tests use. Each call is
//! one edit: it happens whole or not at all.

use crate::model::{
    Connection, ConnectionLine, Destination, DestinationId, Drained, Service, ServiceEntry,
    ServiceId, SyncDaemon, SyncRole, Timeouts, Traffic, Version,
};

/// Why a table refused an edit or a question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `-A` of a service that is there (the kernel's EEXIST).
    #[error("the virtual service exists already")]
    ServiceExists,
    /// The service named is not there (ESRCH).
    #[error("no such virtual service")]
    NoService,
    /// `-a` of a destination that is there (EEXIST).
    #[error("the destination exists already")]
    DestinationExists,
    /// The destination named is not there (ENOENT).
    #[error("no such destination")]
    NoDestination,
    /// No scheduler or persistence engine of that name (ENOENT).
    #[error("no scheduler or persistence engine is named `{0}`")]
    UnknownScheduler(String),
    /// A synchronisation daemon of that role runs already (EEXIST).
    #[error("a {0} daemon runs already")]
    SyncDaemonRuns(SyncRole),
    /// No synchronisation daemon of that role runs (ESRCH).
    #[error("no {0} daemon runs")]
    NoSyncDaemon(SyncRole),
    /// The kernel's IPVS has it, this table does not yet carry it out.
    #[error("{0} is not carried out yet by this data plane")]
    NotYet(String),
    /// A value that IPVS refuses (EINVAL), such as a multicast real server.
    #[error("{0}")]
    Invalid(String),
    /// A number out of range (ERANGE).
    #[error("{0}")]
    Range(String),
    /// A fixed limit of the table is reached.
    #[error("the table holds at most {limit} {what}")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How many fit.
        limit: usize,
    },
    /// The operating system refused; the text names the operation and its object.
    #[error("{0}")]
    System(String),
}

/// What becomes of the connections of a destination that is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removal {
    /// Their packets are dropped until it is added again or they run out, as in IPVS; with
    /// `expire_nodest_conn` the next packet goes to another.
    #[default]
    Silence,
    /// They go on until they end, except with `expire_nodest_conn`; new ones do not come.
    Keep,
    /// They end as if their time had run out: a TCP client's next packet is answered with a reset.
    Reset,
}

const CANNOT_DRAIN: &str = "this table has no place to remember what is set aside: only rlvs's own has; \
    `ipvsadm -e … -w 0` stops new connections";

/// A virtual-server table: the kernel's IPVS or ours.
pub trait Table {
    /// Adds a virtual service without destinations.
    fn add_service(&mut self, service: &Service) -> Result<(), Error>;
    /// Replaces every attribute of a service except its identity.
    fn edit_service(&mut self, service: &Service) -> Result<(), Error>;
    /// Removes a service and its destinations.
    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error>;
    /// Adds a destination at the head of the service's list.
    fn add_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error>;
    /// Replaces every attribute of a destination except its identity.
    fn edit_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error>;
    /// Removes a destination.
    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error>;
    /// Removes every service.
    fn flush(&mut self) -> Result<(), Error>;
    /// Says what becomes of the connections of what is removed from now on, until the table is closed.
    /// A table that has no choice does as IPVS does.
    fn set_removal(&mut self, _removal: Removal) {}
    /// Says that many edits follow: until [`Self::commit`] they need not be in force. Each is still
    /// refused at once or not at all, and whoever reads the table sees all of them.
    fn batch(&mut self) {}
    /// Puts in force what [`Self::batch`] has let wait.
    fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// Lists every service with its destinations, in the table's own order.
    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error>;
    /// Returns one service with its destinations.
    ///
    /// # Errors
    /// [`Error::NoService`] if it is not there.
    fn service(&mut self, id: ServiceId) -> Result<ServiceEntry, Error> {
        self.services()?.into_iter().find(|entry| entry.service.id == id).ok_or(Error::NoService)
    }
    /// Lists one service or all as [`Self::service`] and [`Self::services`] do, with
    /// [`ServiceEntry::traffic`] and that of destinations per second in place of totals.
    ///
    /// A table that does not measure has rates of 0.
    ///
    /// # Errors
    /// [`Error::NoService`] if the service named is not there.
    fn rates(&mut self, only: Option<ServiceId>) -> Result<Vec<ServiceEntry>, Error> {
        let mut entries = match only {
            Some(id) => vec![self.service(id)?],
            None => self.services()?,
        };
        for entry in &mut entries {
            entry.traffic = Traffic::default();
            entry.destinations.iter_mut().for_each(|to| to.traffic = Traffic::default());
        }
        Ok(entries)
    }
    /// Lists every tracked connection, in no particular order.
    fn connections(&mut self) -> Result<Vec<Connection>, Error>;
    /// Lists every tracked connection in words, for a table that has more than
    /// [`Self::connections`] can say.
    fn connection_lines(&mut self) -> Result<Vec<ConnectionLine>, Error> {
        Ok(self.connections()?.into_iter().map(ConnectionLine::from).collect())
    }
    /// Returns the time-outs that `--set` changes.
    fn timeouts(&mut self) -> Result<Timeouts, Error>;
    /// Sets time-outs; a value of 0 keeps what is there.
    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error>;
    /// Makes the counters of one service, or of all, start again from 0.
    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error>;
    /// Returns the size that the first line of a listing shows.
    fn connection_table_size(&mut self) -> Result<u32, Error>;
    /// Sets a destination aside: its weight is 0 whatever is asked for, also when it is removed and
    /// added again, until [`Self::undrain`] gives back what was asked for last.
    fn drain(&mut self, _service: ServiceId, _id: DestinationId) -> Result<(), Error> {
        Err(Error::Invalid(CANNOT_DRAIN.to_owned()))
    }
    /// Gives a destination back that was set aside.
    fn undrain(&mut self, _service: ServiceId, _id: DestinationId) -> Result<(), Error> {
        Err(Error::Invalid(CANNOT_DRAIN.to_owned()))
    }
    /// Lists the destinations that are set aside.
    fn drained(&mut self) -> Result<Vec<Drained>, Error> {
        Ok(Vec::new())
    }
    /// Ends every connection and template of a destination as if its time had run out. Returns how
    /// many there were.
    fn end_connections(&mut self, _service: ServiceId, _id: DestinationId) -> Result<u64, Error> {
        Err(Error::Invalid(CANNOT_DRAIN.to_owned()))
    }
    /// Returns the version that the first line of a listing shows.
    fn version(&mut self) -> Result<Version, Error> {
        Ok(Version::default())
    }
    /// Lists the synchronisation daemons that run.
    fn sync_daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        Ok(Vec::new())
    }
    /// Starts a synchronisation daemon.
    fn start_sync_daemon(&mut self, wanted: &SyncDaemon) -> Result<(), Error> {
        Err(Error::NotYet(format!("connection synchronisation ({})", wanted.role)))
    }
    /// Stops the synchronisation daemon of this role.
    fn stop_sync_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        Err(Error::NotYet(format!("connection synchronisation ({role})")))
    }
}
