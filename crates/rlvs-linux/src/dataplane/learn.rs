//! What a backup learns of the connections that other directors tell of: whose each is here, and the
//! programs that put it into the tables.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use rlvs_datapath::abi::{self, Destination, Service, service_flag};
use rlvs_datapath::learn::{self, Learnt, Record};
use rlvs_datapath::state::State;
use rlvs_datapath::tables::TIME_MASK;
use rlvs_datapath::wide::words_of;
use rlvs_wire::sync::{Addresses, Entry, Message, Refused, flag};
use rlvs_wire::{sctp, tcp, udp};

use super::error::Error;
use super::load::{self, load_error};
use super::maps::Mapped;
use super::pins::{self, Folder};
use super::records::is_listed;
use super::stages;

/// Programs that learn connections, and templates.
const LEARN4: &str = "rlvs_learn4";
const LEARN6: &str = "rlvs_learn6";
const LEARN_WIDE4: &str = "rlvs_learn_wide4";
const LEARN_WIDE6: &str = "rlvs_learn_wide6";
const LEARN_FOR: &str = "rlvs_learn_for";
const ALL: [&str; 5] = [LEARN4, LEARN6, LEARN_WIDE4, LEARN_WIDE6, LEARN_FOR];
/// Names of services and destinations are read anew when they are older.
const FRESH: Duration = Duration::from_millis(500);
/// Port of FTP's data, and the ports from which servers offer it otherwise.
const FTP_DATA: u16 = 20;
const FTP: u16 = 21;
const PASSIVE: u16 = 1024;
/// The longest time that can be told from one that lies ahead.
const TIME_MAX: u32 = TIME_MASK / 2;
/// How often a record that another CPU was at is tried again.
const TRIES: u32 = 3;

/// What has come of the messages heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Messages.
    pub messages: u64,
    /// Those of other groups of directors.
    pub foreign: u64,
    /// Messages, or the rest of them, that end too early or whose length lies.
    pub bad_length: u64,
    /// Messages or entries of an unknown version.
    pub bad_version: u64,
    /// Entries with options that are not understood.
    pub bad_option: u64,
    /// Entries of a protocol that is not balanced.
    pub bad_protocol: u64,
    /// Entries in a state that there is not.
    pub bad_state: u64,
    /// Connections and templates entered.
    pub entered: u64,
    /// Those that were there.
    pub updated: u64,
    /// Those that were left as they were.
    pub kept: u64,
    /// Those of a service or destination that is not here.
    pub unknown: u64,
    /// Those that found no room.
    pub full: u64,
    /// Those that another CPU was at.
    pub busy: u64,
}

impl Heard {
    /// Counts what was refused.
    pub(super) fn refused(&mut self, refused: Refused) {
        *match refused {
            Refused::Length => &mut self.bad_length,
            Refused::Version | Refused::EntryVersion => &mut self.bad_version,
            Refused::Option => &mut self.bad_option,
            Refused::Protocol => &mut self.bad_protocol,
            Refused::State => &mut self.bad_state,
        } += 1;
    }

    fn learnt(&mut self, learnt: Learnt) {
        *match learnt {
            Learnt::Entered => &mut self.entered,
            Learnt::Updated => &mut self.updated,
            Learnt::Kept => &mut self.kept,
            Learnt::Unknown => &mut self.unknown,
            Learnt::Full => &mut self.full,
            Learnt::Busy => &mut self.busy,
        } += 1;
    }

    /// Returns every count with its name.
    pub(super) const fn named(&self) -> [(&'static str, u64); 13] {
        [
            ("messages", self.messages),
            ("foreign", self.foreign),
            ("bad_length", self.bad_length),
            ("bad_version", self.bad_version),
            ("bad_option", self.bad_option),
            ("bad_protocol", self.bad_protocol),
            ("bad_state", self.bad_state),
            ("entered", self.entered),
            ("updated", self.updated),
            ("kept", self.kept),
            ("unknown", self.unknown),
            ("full", self.full),
            ("busy", self.busy),
        ]
    }
}

impl Display for Heard {
    /// Writes names and numbers, of one width so that a line takes the place of the one before.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.named().iter().try_for_each(|(name, count)| write!(f, "{name}={count:020} "))
    }
}

/// Puts what is told into the tables of the calling thread's network namespace.
pub(super) struct Learner {
    bpf: Ebpf,
    maps: Maps,
    names: Names,
    read_at: Instant,
    unit_ns: u64,
    /// What has come of it.
    pub(super) heard: Heard,
}

struct Maps {
    settings: Mapped<abi::Settings>,
    services: Mapped<Service>,
    destinations: Mapped<Destination>,
    /// Which file the settings are pinned by.
    pin: u64,
}

fn pin(folder: &Folder) -> Option<u64> {
    fs::metadata(folder.path("settings")).ok().map(|about| about.ino())
}

impl Learner {
    /// Loads the programs over the maps that are there; `None` if nothing is attached.
    ///
    /// # Errors
    /// A missing capability, maps of another layout, or what the kernel did not take.
    pub(super) fn open() -> Result<Option<Self>, Error> {
        let Some(folder) = pins::open()? else { return Ok(None) };
        let mut bpf = load::reopen(&folder)?;
        for name in ALL {
            stages::load_program(&mut bpf, name)?;
        }
        let maps = Maps {
            settings: Mapped::look(&folder, "settings")?,
            services: Mapped::look(&folder, "services")?,
            destinations: Mapped::look(&folder, "destinations")?,
            pin: pin(&folder).unwrap_or_default(),
        };
        let names = Names::read(&maps);
        let (_, unit_ns) = load::clock()?;
        let heard = Heard::default();
        Ok(Some(Self { bpf, maps, names, read_at: Instant::now(), unit_ns, heard }))
    }

    /// Returns whether the tables are those that are attached now, or `None` if nothing is.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn is_current(&self) -> Result<Option<bool>, Error> {
        Ok(pins::open()?.map(|folder| pin(&folder) == Some(self.maps.pin)))
    }

    /// Learns what a datagram tells; whatever is wrong with it is counted.
    ///
    /// # Errors
    /// The kernel did not run the programs.
    pub(super) fn hear(&mut self, datagram: &[u8], group: u8) -> Result<(), Error> {
        self.heard.messages += 1;
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(refused) => {
                self.heard.refused(refused);
                return Ok(());
            }
        };
        // As the kernel: whoever has no group hears all.
        if group != 0 && message.sync_id != group {
            self.heard.foreign += 1;
            return Ok(());
        }
        if self.read_at.elapsed() > FRESH {
            self.names = Names::read(&self.maps);
            self.read_at = Instant::now();
        }
        for entry in message.entries() {
            match entry {
                Ok(entry) => self.learn(&entry)?,
                Err(refused) => self.heard.refused(refused),
            }
        }
        Ok(())
    }

    fn learn(&mut self, entry: &Entry) -> Result<(), Error> {
        let record = self.names.record(entry, |seconds| self.units(seconds));
        let Some(record) = record else {
            self.heard.learnt(Learnt::Unknown);
            return Ok(());
        };
        let is_wide = || {
            let service = self.maps.services.read(record.service);
            service.is_some_and(|service| learn::is_wide(&service, record.target_port))
        };
        let name = match (entry.flags & flag::TEMPLATE != 0, &entry.addresses) {
            (true, _) => LEARN_FOR,
            (false, Addresses::V4 { .. }) => {
                if is_wide() {
                    LEARN_WIDE4
                } else {
                    LEARN4
                }
            }
            (false, Addresses::V6 { .. }) => {
                if is_wide() {
                    LEARN_WIDE6
                } else {
                    LEARN6
                }
            }
        };
        let mut learnt = Learnt::Busy;
        for _ in 0..TRIES {
            learnt = self.run(name, &record)?;
            if learnt != Learnt::Busy {
                break;
            }
        }
        self.heard.learnt(learnt);
        Ok(())
    }

    /// Returns seconds in units of coarse time; 0 says that the state's own time-out holds.
    fn units(&self, seconds: u32) -> u32 {
        if seconds == 0 {
            return u32::MAX;
        }
        let units = u64::from(seconds) * 1_000_000_000 / self.unit_ns;
        units.min(TIME_MAX.into()) as u32
    }

    fn run(&mut self, name: &str, record: &Record) -> Result<Learnt, Error> {
        let program: &mut Xdp = load::program(&mut self.bpf, name)?;
        let frame: Vec<u8> = record.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
        let result = program.test_run(options).map_err(|error| load_error(name, &error))?;
        Learnt::from_number(result.return_value).ok_or_else(|| Error::Load {
            what: name.to_owned(),
            reason: format!("it returned {}", result.return_value),
        })
    }
}

/// What services and destinations are called on the wire, with their ids.
#[derive(Debug, Default)]
struct Names {
    /// By IP version, mark, protocol, address and port, of which the former or the others are 0.
    services: HashMap<(u8, u32, u8, [u8; 16], u16), u32>,
    /// By service, address and port.
    destinations: HashMap<(u32, [u8; 16], u16), u32>,
    /// By service and address; 0 if there are several.
    servers: HashMap<(u32, [u8; 16]), u32>,
}

impl Names {
    fn read(maps: &Maps) -> Self {
        let settings = maps.settings.read(0).unwrap_or_default();
        let mut names = Self::default();
        for id in 1..settings.services {
            let Some(service) = maps.services.read(id) else { break };
            names.add_service(id, &service);
        }
        for id in 1..settings.destinations {
            let Some(destination) = maps.destinations.read(id) else { break };
            names.add_destination(id, &destination);
        }
        names
    }

    fn add_service(&mut self, id: u32, service: &Service) {
        if service.flags & service_flag::LIVE == 0 {
            return;
        }
        let port = u16::from_be_bytes(service.port);
        let name = match service.mark {
            0 => (service.family, 0, service.protocol, service.address, port),
            mark => (service.family, mark, 0, [0; 16], 0),
        };
        self.services.insert(name, id);
    }

    fn add_destination(&mut self, id: u32, destination: &Destination) {
        if !is_listed(destination) {
            return;
        }
        let (service, address) = (destination.service, destination.address);
        let port = u16::from_be_bytes(destination.port);
        self.destinations.insert((service, address, port), id);
        self.servers.entry((service, address)).and_modify(|other| *other = 0).or_insert(id);
    }

    /// Returns the service of an entry, as `ip_vs_service_find()`.
    fn service(&self, family: u8, entry: &Entry, address: [u8; 16]) -> Option<u32> {
        let Entry { protocol, service_port, mark, .. } = *entry;
        let by_mark = || self.services.get(&(family, mark, 0, [0; 16], 0));
        let by_port = |port| self.services.get(&(family, 0, protocol, address, port));
        let is_data =
            protocol == tcp::PROTOCOL && (service_port == FTP_DATA || service_port >= PASSIVE);
        (mark != 0)
            .then(by_mark)
            .flatten()
            .or_else(|| by_port(service_port))
            .or_else(|| is_data.then(|| by_port(FTP)).flatten())
            .or_else(|| by_port(0))
            .copied()
    }

    /// Returns the destination of an entry, as `ip_vs_find_dest()`; where that finds none, the only one
    /// with this address.
    fn destination(&self, service: u32, entry: &Entry, address: [u8; 16]) -> Option<u32> {
        let port = entry.destination_port;
        let no_port_first = entry.mark != 0 && entry.flags & flag::METHOD != 0;
        let ports = if no_port_first { [0, port] } else { [port, 0] };
        let by_port = |port: &u16| self.destinations.get(&(service, address, *port));
        let only = || self.servers.get(&(service, address)).filter(|id| **id != 0);
        ports.iter().find_map(by_port).or_else(only).copied()
    }

    /// Returns what the program is to learn of an entry, if that is of a service and a destination here.
    fn record(&self, entry: &Entry, units: impl FnOnce(u32) -> u32) -> Option<Record> {
        if entry.flags & flag::NO_CLIENT_PORT != 0 {
            return None;
        }
        let (family, [client, target, server]) = match entry.addresses {
            Addresses::V4 { client, service, destination } => {
                (4, [client, service, destination].map(long))
            }
            Addresses::V6 { client, service, destination } => (6, [client, service, destination]),
        };
        let service = self.service(family, entry, target)?;
        let destination = self.destination(service, entry, server)?;
        let is_template = entry.flags & flag::TEMPLATE != 0;
        Some(Record {
            client: words_of(family, &client),
            target: words_of(family, &target),
            server: words_of(family, &server),
            port: entry.client_port,
            target_port: entry.service_port,
            protocol: entry.protocol,
            service,
            destination,
            state: if is_template { entry.state.into() } else { state(entry)?.0 },
            timeout: units(entry.timeout_s),
        })
    }
}

fn long(address: [u8; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..4].copy_from_slice(&address);
    octets
}

/// Returns a state by its number among those of its protocol.
fn state(entry: &Entry) -> Option<State> {
    Some(match entry.protocol {
        tcp::PROTOCOL => State(entry.state.into()),
        udp::PROTOCOL => State::UDP,
        sctp::PROTOCOL => State(State::ASSOCIATIONS + u32::from(entry.state)),
        _ => return None,
    })
}
