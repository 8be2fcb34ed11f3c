//! What a list is made of, read from the table in one go.

use rlvs_control::model::{ConnectionLine, ServiceEntry, SyncDaemon, Timeouts, Version};
use rlvs_control::table::{Error, Table};

use super::parse::{Columns, Listing, What};

/// What a list is made of.
pub(crate) enum Snapshot {
    /// All services or one.
    Services {
        /// Version and size, if all services are listed.
        banner: Option<(Version, u32)>,
        /// With counters or, if the columns are of rates, with those.
        entries: Vec<ServiceEntry>,
        /// The same with rates, for a form that has both.
        rates: Vec<ServiceEntry>,
    },
    Connections(Vec<ConnectionLine>),
    Timeouts(Timeouts),
    Daemons(Vec<SyncDaemon>),
}

/// Tables of which a list can be made.
pub(crate) trait Snapshots {
    fn snapshot(&mut self, listing: Listing) -> Result<Snapshot, Error>;
}

impl Snapshots for dyn Table + '_ {
    fn snapshot(&mut self, listing: Listing) -> Result<Snapshot, Error> {
        Ok(match listing.what {
            What::Services { only, columns } => {
                let banner = match only {
                    None => Some((self.version()?, self.connection_table_size()?)),
                    Some(_) => None,
                };
                let rates = if listing.json { self.rates(only)? } else { Vec::new() };
                let entries = match (columns, only) {
                    (Columns::Rate, _) if !listing.json => self.rates(only)?,
                    (_, None) => self.services()?,
                    (_, Some(id)) => vec![self.service(id)?],
                };
                Snapshot::Services { banner, entries, rates }
            }
            What::Connections { .. } => Snapshot::Connections(self.connection_lines()?),
            What::Timeouts => Snapshot::Timeouts(self.timeouts()?),
            What::Daemons => Snapshot::Daemons(self.sync_daemons()?),
        })
    }
}
