//! How everything is at one instant, for `rlvs status` and `rlvs top`.

use std::net::IpAddr;

use anyhow::Result;
use rlvs_control::model::{
    DestinationEntry, DestinationId, Drained, ServiceEntry, ServiceId, Traffic,
};
use rlvs_control::table::Table;
use rlvs_datapath::abi::{Settings, mode};
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::attach::{self, Attached, Mode};
use rlvs_linux::dataplane::note::Running;
use rlvs_linux::dataplane::table::{BpfTable, Total};
use rlvs_linux::dataplane::{pins, sync};
use rlvs_linux::route::Rtnetlink;

use crate::acl;
use crate::doctor::judge::{Finding, judge};
use crate::doctor::{Depth, gather};
use crate::keepalived::daemon::state::{self, State, Target};

/// How everything is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where the maps are pinned.
    pub pins: String,
    /// Interfaces that programs hang on.
    pub interfaces: Vec<Interface>,
    /// Names of those that they should hang on.
    pub unattached: Vec<String>,
    /// Counters and rates of all services.
    pub total: Total,
    /// Services, by their identity.
    pub services: Vec<Service>,
    /// Destinations that are drained.
    pub drained: Vec<Drained>,
    /// Synchronisation daemons, with what they have done.
    pub synchronisation: Vec<Running>,
    /// Who may open connections, in a line; `None` if everybody may, or nobody looked.
    pub access: Option<String>,
    /// What is done while the tables of connections run full.
    pub defence: Defence,
    /// Packets that were not simply forwarded.
    pub reasons: Vec<(Reason, u64)>,
    /// What is wrong, as far as it is seen at once; nothing if nobody looked.
    pub findings: Vec<Finding>,
    /// What the daemon says; `None` if none runs here.
    pub daemon: Option<State>,
}

/// What is in force against floods: by the settings, and by how full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defence {
    /// Whether a table of connections has less room than `amemthresh` asks for.
    pub scarce: bool,
    /// Whether half-open connections are ended (`drop_entry`).
    pub ends_half_open: bool,
    /// One of so many new connections is dropped (`drop_packet`); 0 if none is.
    pub drop_rate: u32,
    /// Whether states are the stricter ones (`secure_tcp`).
    pub strict: bool,
}

impl Defence {
    fn of(settings: &Settings) -> Self {
        let scarce = settings.scarce != 0;
        let ends_half_open = match settings.drop_entry {
            mode::NEVER => false,
            mode::ALWAYS => true,
            _ => scarce,
        };
        let (drop_rate, strict) = (settings.drop_rate, settings.strict != 0);
        Self { scarce, ends_half_open, drop_rate, strict }
    }
}

/// An interface that programs hang on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How they do.
    pub mode: Mode,
    /// Why so; nothing of one that is gone.
    pub why: &'static str,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// As the table has it, but for its destinations.
    pub entry: ServiceEntry,
    /// Its traffic in a second.
    pub rates: Traffic,
    /// Its destinations, by address.
    pub servers: Vec<Server>,
    /// Servers that the daemon has taken out, with the reason.
    pub absent: Vec<(DestinationId, String)>,
}

/// A destination.
#[derive(Clone, Debug)]
pub struct Server {
    /// As the table has it.
    pub entry: DestinationEntry,
    /// Its traffic in a second.
    pub rates: Traffic,
    /// Whether it is drained.
    pub drained: bool,
    /// What its checks say.
    pub health: Health,
}

/// What the daemon's checks say of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing: no daemon asks it.
    Unchecked,
    /// It is good.
    Up,
    /// It is bad, and why.
    Down(String),
}

impl Health {
    /// Returns its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Up => "up",
            Self::Down(_) => "down",
        }
    }
}

impl Snapshot {
    /// Looks at the calling thread's network namespace, and for what is wrong if so asked. `None` if
    /// nothing is attached.
    ///
    /// # Errors
    /// A missing capability.
    pub fn take(with_findings: bool) -> Result<Option<Self>> {
        attach::collect()?;
        let Some(folder) = pins::open()? else { return Ok(None) };
        let links = Rtnetlink::open()?.links()?;
        let interface = |one: Attached| {
            let link = links.iter().find(|link| link.name == one.name);
            let why = link.map_or("", |link| attach::why(link, one.mode));
            Interface { name: one.name, mode: one.mode, why }
        };
        let interfaces = attach::attached(&folder)?.into_iter().map(interface).collect();
        let unattached = attach::unattached(&folder)?;
        let facts = if with_findings { gather(Depth::Quick)? } else { None };
        let findings = facts.map(|facts| judge(&facts)).unwrap_or_default();
        let daemon = state::ask();
        let synchronisation = sync::list()?;
        let Some(mut table) = BpfTable::open()? else { return Ok(None) };
        let (entries, rates) = (table.services()?, table.rates(None)?);
        let drained = table.drained()?;
        let counted = |one: Reason| (one, table.maps().reason(one as u32));
        let reasons = Reason::ALL.map(counted).into_iter().filter(|(_, packets)| *packets > 0);
        let (reasons, total) = (reasons.collect(), table.total());
        let defence = Defence::of(&table.maps().settings());
        drop(table);
        let access = if with_findings { acl::status()? } else { None };
        let mut services: Vec<Service> = entries
            .into_iter()
            .zip(rates)
            .map(|(entry, rates)| service(entry, &rates, &drained, daemon.as_ref()))
            .collect();
        services.sort_by_key(|service| service.entry.service.id);
        let pins = folder.shown();
        let snapshot = Self {
            pins,
            interfaces,
            unattached,
            total,
            services,
            drained,
            synchronisation,
            access,
            defence,
            reasons,
            findings,
            daemon,
        };
        Ok(Some(snapshot))
    }

    /// Returns active, inactive connections and templates of all destinations.
    pub fn connections(&self) -> (u64, u64, u64) {
        let servers = self.services.iter().flat_map(|service| &service.servers);
        servers.fold((0, 0, 0), |(active, inactive, persistent), server| {
            let entry = &server.entry;
            (
                active + u64::from(entry.active),
                inactive + u64::from(entry.inactive),
                persistent + u64::from(entry.persistent),
            )
        })
    }
}

fn service(
    entry: ServiceEntry,
    rates: &ServiceEntry,
    drained: &[Drained],
    daemon: Option<&State>,
) -> Service {
    let id = entry.service.id;
    let checked: Vec<_> = daemon
        .into_iter()
        .flat_map(|daemon| &daemon.services)
        .filter(|service| service.targets.iter().any(|target| is(target, id)))
        .flat_map(|service| &service.servers)
        .collect();
    let health = |to: DestinationId| {
        let found = checked.iter().find(|one| (one.address, one.port) == (to.address, to.port));
        match found {
            None => Health::Unchecked,
            // Good, as nobody asks.
            Some(one) if one.up && one.checks.is_empty() => Health::Unchecked,
            Some(one) if one.up => Health::Up,
            Some(one) => Health::Down(one.why.clone().unwrap_or_else(|| "not up yet".to_owned())),
        }
    };
    let mut servers: Vec<Server> = entry
        .destinations
        .iter()
        .zip(&rates.destinations)
        .map(|(to, rates)| Server {
            entry: *to,
            rates: rates.traffic,
            drained: drained.iter().any(|one| (one.service, one.id) == (id, to.destination.id)),
            health: health(to.destination.id),
        })
        .collect();
    servers.sort_by_key(|server| server.entry.destination.id);
    let listed = |to: DestinationId| servers.iter().any(|one| one.entry.destination.id == to);
    let absent = checked
        .iter()
        .map(|one| (DestinationId { address: one.address, port: one.port }, one))
        .filter(|(to, one)| !one.up && !listed(*to))
        .map(|(to, one)| (to, one.why.clone().unwrap_or_else(|| "not up yet".to_owned())))
        .collect();
    Service { entry, rates: rates.traffic, servers, absent }
}

fn is(target: &Target, id: ServiceId) -> bool {
    match (target, id) {
        (
            Target::Address { protocol, address, port },
            ServiceId::Address { protocol: other, address: at, port: on },
        ) => {
            let same_end: (IpAddr, u16) = (at, on);
            other.name().is_some_and(|name| name.eq_ignore_ascii_case(protocol))
                && same_end == (*address, *port)
        }
        (Target::Mark { mark, family }, ServiceId::Mark { family: of, mark: other }) => {
            let v4 = of == rlvs_control::model::Family::V4;
            *mark == other && (family == "ipv4") == v4
        }
        _ => false,
    }
}
