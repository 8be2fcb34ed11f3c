//! The commands of `rlvs` that concern the data plane's life, and the table that `ipvsadm` opens.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rlvs_control::memory::MemoryTable;
use rlvs_control::model::{
    Connection, Destination, DestinationId, Drained, Service, ServiceEntry, ServiceId, SyncDaemon,
    SyncRole, Timeouts,
};
use rlvs_control::table::{Error, Removal, Table};
use rlvs_linux::dataplane::attach::{self, Attached, Mode, Options};
use rlvs_linux::dataplane::load::{self, Sizes};
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::dataplane::upgrade::{self, Done, Upgraded, Whose};
use rlvs_linux::dataplane::{note, pins, succession, sync};
use rlvs_linux::ipvs::table::KernelTable;
use rlvs_linux::vrrp;
use serde_json::{Value, json};

use crate::carry;
use crate::configuration::{self, Attachment, CONNECTIONS_MAX};
use crate::ipvsadm::Backend;
use crate::json::{self, Json};
use crate::keepalived::daemon;
use crate::lab::claim;

/// How to attach.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeName {
    /// XDP in the network driver
    Native,
    /// The traffic-control hook, which every interface has
    Tc,
    /// XDP in the network stack, for tests
    Generic,
}

/// Arguments of `rlvs attach`.
#[derive(Args, Debug)]
pub struct AttachArguments {
    /// How packets reach the program; chosen for each interface if not given
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
    /// Serve virtual addresses that are not addresses of this host
    #[arg(long)]
    any: bool,
    /// Connections that the IPv4 table is made for, if it is made now
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    connections: Option<u32>,
    /// Load every program now, so that whoever edits the table later needs no CAP_PERFMON for it
    #[arg(long)]
    every_program: bool,
    /// Interfaces; without any argument those of rlvs.toml, else all that are up and have an address, but
    /// loopback
    interfaces: Vec<String>,
    #[command(flatten)]
    json: Json,
}

/// Runs `rlvs attach`.
///
/// # Errors
/// A missing capability, or what an interface did not take.
pub fn attach(arguments: &AttachArguments) -> Result<ExitCode> {
    let AttachArguments { mode, any, connections, every_program, interfaces, json } = arguments;
    let said = mode.is_some() || *any || connections.is_some() || !interfaces.is_empty();
    let attachment = match said {
        true => Attachment { options: options(arguments), file: None },
        false => configuration::attachment()?,
    };
    let attached = attachment.attach()?;
    warn_of_sizes(&attachment.options)?;
    if *every_program && !attached.is_empty() {
        load::ensure_all()?;
    }
    if json.json {
        json::print(json!({ "interfaces": as_json(&attached) }))?;
    } else {
        report(&attached, &mut io::stdout())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says so if there were tables of another size already than is asked for.
///
/// # Errors
/// A missing capability.
pub(crate) fn warn_of_sizes(options: &Options) -> Result<()> {
    let (Some(asked), Some(made)) = (options.sizes, attach::sizes()?) else { return Ok(()) };
    if asked != made {
        let text = format!(
            "the tables stay as they were made, for {} connections: `rlvs detach` first, which forgets services \
             and connections",
            made.connections()
        );
        // Nothing is lost with this line.
        drop(writeln!(io::stderr(), "rlvs: {text}"));
    }
    Ok(())
}

/// Returns interfaces as JSON.
pub(crate) fn as_json(attached: &[Attached]) -> Value {
    let one = |Attached { name, mode, new }: &Attached| json!({ "name": name, "mode": mode_word(*mode), "new": new });
    attached.iter().map(one).collect()
}

/// Returns the name that a mode has on command lines and in JSON.
pub(crate) fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => "native",
        Mode::Tc => "tc",
        Mode::Generic => "generic",
    }
}

fn options(arguments: &AttachArguments) -> Options {
    Options {
        mode: arguments.mode.map(|mode| match mode {
            ModeName::Native => Mode::Native,
            ModeName::Tc => Mode::Tc,
            ModeName::Generic => Mode::Generic,
        }),
        interfaces: arguments.interfaces.clone(),
        any: arguments.any,
        sizes: arguments.connections.map(Sizes::for_connections),
        ..Options::default()
    }
}

/// Says what is attached, a line for each interface.
pub(crate) fn report(attached: &[Attached], to: &mut dyn Write) -> io::Result<()> {
    lines(attached).iter().try_for_each(|line| writeln!(to, "{line}"))
}

fn lines(attached: &[Attached]) -> Vec<String> {
    if attached.is_empty() {
        let none = "rlvs: no interface here is up and has an address; nothing is attached";
        return vec![none.to_owned()];
    }
    let line = |Attached { name, mode, new }: &Attached| {
        let how = if *new { "attached" } else { "was attached" };
        format!("rlvs: {name} {how}: {}", mode.name())
    };
    attached.iter().map(line).collect()
}

/// Attaches as rlvs.toml says, else to all interfaces, if nothing is attached, and returns lines that say what is.
///
/// # Errors
/// A missing capability, or what an interface did not take.
pub fn attach_if_detached() -> Result<Vec<String>> {
    attach::collect()?;
    let attached = match pins::open()? {
        Some(folder) => attach::attached(&folder)?,
        None => configuration::attachment()?.attach()?,
    };
    Ok(lines(&attached))
}

/// Runs `rlvs detach`.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn detach(json: Json) -> Result<ExitCode> {
    match attach::detach() {
        // What would attach is no help here.
        Err(rlvs_linux::dataplane::Error::NotAttached) => bail!("nothing is attached here"),
        other => other?,
    }
    if json.json {
        json::print(json!({ "detached": true }))?;
    } else {
        let what = "detached; the virtual-server table of this network namespace is gone";
        writeln!(io::stdout(), "rlvs: {what}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Is the daemon that `ipvsadm --start-daemon` starts.
///
/// # Errors
/// Words that it was not started with by us, or what ended it.
pub fn sync_daemon(words: &[String]) -> Result<ExitCode> {
    let daemon = sync::from_words(words.iter().map(String::as_str));
    sync::run(&daemon.context("`ipvsadm --start-daemon` starts this")?)?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `rlvs upgrade`.
#[derive(Args, Debug)]
pub struct UpgradeArguments {
    /// In every network namespace of the machine
    #[arg(long)]
    all: bool,
    /// The version before, as a program: what it made is taken over if this version's maps are others
    #[arg(long, value_name = "PROGRAM")]
    from: Option<PathBuf>,
    /// Connections that the IPv4 table is made for, if other maps are made; as many as before if not given
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    connections: Option<u32>,
    #[command(flatten)]
    json: Json,
}

/// Runs `rlvs upgrade`. What fails in one network namespace keeps none of the others from it.
///
/// # Errors
/// A missing capability.
pub fn upgrade(arguments: &UpgradeArguments) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    let one = || match &arguments.from {
        Some(program) if succession::other_layout()?.is_some() => {
            carry::take_over(program, arguments.connections).map(|()| Some(Upgraded::Exchanged))
        }
        _ => upgrade::upgrade(),
    };
    let all = if arguments.all {
        upgrade::in_all(one)?
    } else {
        let own = one().transpose();
        own.map(|outcome| Done { whose: Whose::Own, outcome }).into_iter().collect()
    };
    if arguments.json.json {
        json::print(json!({ "namespaces": all.iter().map(done).collect::<Vec<_>>() }))?;
        let failed = all.iter().any(|done| done.outcome.is_err());
        return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let out = &mut io::stdout();
    if all.is_empty() {
        let here = if arguments.all { "" } else { " here" };
        writeln!(out, "rlvs: nothing is attached{here}")?;
    }
    for Done { whose, outcome } in all {
        let name = match whose {
            Whose::Own => "this network namespace".to_owned(),
            Whose::Other(cookie) => format!("network namespace {cookie}"),
        };
        match outcome {
            Ok(Upgraded::Exchanged) => {
                writeln!(out, "rlvs: {name}: runs this version's programs from now on")?;
            }
            Ok(Upgraded::Unchanged) => writeln!(out, "rlvs: {name}: runs this version's programs")?,
            Err(error) => {
                eprintln!("rlvs: {name}: {:#}", anyhow::Error::new(error));
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn done(Done { whose, outcome }: &Done) -> Value {
    let cookie = match whose {
        Whose::Own => None,
        Whose::Other(cookie) => Some(cookie),
    };
    let (outcome, why) = match outcome {
        Ok(Upgraded::Exchanged) => ("exchanged", None),
        Ok(Upgraded::Unchanged) => ("unchanged", None),
        Err(error) => ("failed", Some(error.to_string())),
    };
    json!({ "namespace": cookie, "outcome": outcome, "why": why })
}

/// Runs `rlvs uninstall`. Labs go too, but for those that somebody is at; keepalived should have ended
/// before, else it will write its notes again.
///
/// # Errors
/// A missing capability.
pub fn uninstall(json: Json) -> Result<ExitCode> {
    claim::forget().context("removing labs")?;
    vrrp::forget_all()?;
    daemon::remove_stale_sockets();
    let removed = pins::remove_all()?;
    note::collect();
    if json.json {
        json::print(json!({ "removed": removed }))?;
    } else {
        writeln!(io::stdout(), "rlvs: removed {removed} data plane(s) and {}", pins::ROOT)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the table of this network namespace for `ipvsadm`.
///
/// # Errors
/// A missing capability, pins of another layout, or a kernel without IPVS.
pub fn open_table(backend: Backend) -> Result<Box<dyn Table>, Error> {
    // Standard output belongs to ipvsadm. Nothing is lost with this line.
    open_telling(backend, Box::new(|line| drop(writeln!(io::stderr(), "{line}"))))
}

/// Takes a line that says to what has been attached.
pub type Tell = Box<dyn Fn(&str)>;

/// As [`open_table`], for who has another place for what is to be said if the first service attaches.
///
/// # Errors
/// As there.
pub fn open_telling(backend: Backend, tell: Tell) -> Result<Box<dyn Table>, Error> {
    if backend == Backend::Kernel {
        return Ok(Box::new(KernelTable::open()?));
    }
    attach::collect()?;
    let table = BpfTable::open()?;
    Ok(Box::new(LazyTable { table, empty: MemoryTable::default(), batched: false, tell }))
}

/// A table that comes into being with its first service. Before that it is empty, and looking at
/// it attaches nothing.
struct LazyTable {
    table: Option<BpfTable>,
    empty: MemoryTable,
    /// Whether edits may wait.
    batched: bool,
    tell: Tell,
}

impl LazyTable {
    fn get(&mut self) -> &mut dyn Table {
        match &mut self.table {
            Some(table) => table,
            None => &mut self.empty,
        }
    }

    fn make(&mut self) -> Result<&mut BpfTable, Error> {
        if self.table.is_none() {
            let attachment = configuration::attachment();
            let attachment = attachment.map_err(|error| Error::System(format!("{error:#}")))?;
            let attached = attachment.attach()?;
            lines(&attached).iter().for_each(|line| (self.tell)(line));
            self.table = BpfTable::open()?;
            if self.batched {
                self.get().batch();
            }
        }
        self.table.as_mut().ok_or_else(|| Error::System("the table has just been removed".into()))
    }
}

impl Table for LazyTable {
    fn set_removal(&mut self, removal: Removal) {
        self.get().set_removal(removal);
    }

    fn add_service(&mut self, service: &Service) -> Result<(), Error> {
        // What is refused anyway attaches nothing.
        if self.table.is_none() {
            BpfTable::accepts(service)?;
        }
        self.make()?.add_service(service)
    }
    fn edit_service(&mut self, service: &Service) -> Result<(), Error> {
        self.get().edit_service(service)
    }
    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
        self.get().delete_service(id)
    }
    fn add_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        self.get().add_destination(service, to)
    }
    fn edit_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        self.get().edit_destination(service, to)
    }
    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.get().delete_destination(service, id)
    }
    fn flush(&mut self) -> Result<(), Error> {
        self.get().flush()
    }
    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        self.get().services()
    }
    fn service(&mut self, id: ServiceId) -> Result<ServiceEntry, Error> {
        self.get().service(id)
    }
    fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        self.get().connections()
    }
    fn batch(&mut self) {
        self.batched = true;
        self.get().batch();
    }
    fn commit(&mut self) -> Result<(), Error> {
        self.batched = false;
        self.get().commit()
    }
    fn rates(&mut self, only: Option<ServiceId>) -> Result<Vec<ServiceEntry>, Error> {
        self.get().rates(only)
    }
    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        self.get().timeouts()
    }
    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        self.make()?.set_timeouts(timeouts)
    }
    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error> {
        self.get().zero(service)
    }
    fn drain(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.get().drain(service, id)
    }
    fn undrain(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.get().undrain(service, id)
    }
    fn drained(&mut self) -> Result<Vec<Drained>, Error> {
        self.get().drained()
    }
    fn end_connections(&mut self, service: ServiceId, id: DestinationId) -> Result<u64, Error> {
        self.get().end_connections(service, id)
    }
    fn sync_daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        self.get().sync_daemons()
    }
    fn start_sync_daemon(&mut self, wanted: &SyncDaemon) -> Result<(), Error> {
        self.make()?.start_sync_daemon(wanted)
    }
    fn stop_sync_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        self.get().stop_sync_daemon(role)
    }
    fn connection_table_size(&mut self) -> Result<u32, Error> {
        self.get().connection_table_size()
    }
}
