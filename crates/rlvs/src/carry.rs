//! What is attached, from the maps of one program to those of another whose layout is a different one.
//!
//! The program that made the maps tells what is in them (`rlvs export`), the next one puts it into maps of
//! its own and lets the interfaces go over to them (`rlvs upgrade --from`). The first line is a JSON object
//! of all but connections, and each line after it half a connection. Text that other commands write
//! and read is taken as it is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rlvs_control::access as rules;
use rlvs_control::model::{DestinationEntry, DestinationId, ServiceId, Timeouts};
use rlvs_control::table::{Removal, Table};
use rlvs_linux::dataplane::carry::{self, End, Half, Made, SCHEMA};
use rlvs_linux::dataplane::hold::Hold;
use rlvs_linux::dataplane::marks::{self, Rule};
use rlvs_linux::dataplane::parameters::{ALL, Parameter};
use rlvs_linux::dataplane::pool::{self, Member};
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::dataplane::{access, succession};
use serde::{Deserialize, Serialize};

use crate::configuration::CONNECTIONS_MAX;
use crate::ipvsadm::{self, Environment, Names};
use crate::json;

/// All but connections.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    schema: u32,
    made: Made,
    /// Settings that are heeded, by name.
    settings: BTreeMap<String, u32>,
    marks: Vec<MarkWords>,
    pool: Vec<MemberWords>,
    /// The rules of access as the book has them.
    access: String,
    /// Lines for `ipvsadm -R`.
    services: String,
    /// Destinations that are set aside, with the weight that they are given back.
    drained: Vec<(String, u32)>,
    /// Destinations of connections by name, in the order in which connections count them.
    ends: Vec<EndWords>,
    /// How many lines follow.
    halves: usize,
    /// Whether this version knows `export --hold`.
    #[serde(default)]
    holds: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MarkWords {
    address: std::net::IpAddr,
    prefix: u8,
    protocol: u8,
    ports: (u16, u16),
    mark: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MemberWords {
    address: std::net::IpAddr,
    ports: (u16, u16),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndWords {
    name: String,
    /// The line that adds it, if it is out of its service's list and has its connections still.
    unlisted: Option<String>,
}

/// Names a destination of a service, as two programs know it.
fn name(service: ServiceId, id: DestinationId) -> String {
    format!("{} {} {}", json::service(service), id.address, id.port)
}

/// Arguments of `rlvs export`.
#[derive(Args, Debug)]
pub struct ExportArguments {
    /// Let no connection be opened from before it is told until standard input ends
    #[arg(long)]
    hold: bool,
}

/// Runs `rlvs export`.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn export(arguments: &ExportArguments) -> Result<ExitCode> {
    if !arguments.hold {
        let told = carry::tell()?;
        write(&head(&told)?, &told.halves)?;
        return Ok(ExitCode::SUCCESS);
    }
    // What it opens needs the lock that the hold has.
    let mut head = head(&carry::tell()?)?;
    let hold = Hold::begin()?;
    let told = hold.tell()?;
    (head.ends, head.halves) = (ends(&told.ends), told.halves.len());
    write(&head, &told.halves)?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(ExitCode::SUCCESS)
}

fn write(head: &Head, halves: &[Half]) -> Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 20, io::stdout().lock());
    serde_json::to_writer(&mut out, head)?;
    writeln!(out)?;
    for half in halves {
        serde_json::to_writer(&mut out, half)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}

fn ends(ends: &[End]) -> Vec<EndWords> {
    let end = |end: &End| EndWords {
        name: name(end.service, end.destination.id),
        unlisted: (!end.listed).then(|| ipvsadm::added(end.service, &bare(end))),
    };
    ends.iter().map(end).collect()
}

fn head(told: &carry::Told) -> Result<Head> {
    let mut table = BpfTable::open()?.context("nothing is attached")?;
    let Timeouts { tcp_s, tcp_fin_s, udp_s } = table.timeouts()?;
    let drained = table.drained()?.into_iter().filter(|one| one.listed);
    let drained = drained.map(|one| (name(one.service, one.id), one.weight)).collect();
    let services = ipvsadm::saved(table.services()?);
    drop(table);
    let heeded = ALL.iter().filter(|parameter| parameter.unheeded().is_none());
    let settings = heeded.map(|parameter| Ok((parameter.name.to_owned(), parameter.read()?)));
    let mark = |Rule { address, prefix, protocol, ports, mark }| MarkWords {
        address,
        prefix,
        protocol,
        ports,
        mark,
    };
    let member = |Member { address, ports }| MemberWords { address, ports };
    Ok(Head {
        schema: SCHEMA,
        made: Made { timeouts_s: [tcp_s, tcp_fin_s, udp_s], ..told.made.clone() },
        settings: settings.collect::<Result<_>>()?,
        marks: marks::list()?.into_iter().map(mark).collect(),
        pool: pool::list()?.into_iter().map(member).collect(),
        access: rules::text(&access::get()?, &BTreeMap::new()),
        services,
        drained,
        ends: ends(&told.ends),
        halves: told.halves.len(),
        holds: true,
    })
}

fn bare(end: &End) -> DestinationEntry {
    DestinationEntry {
        destination: end.destination,
        active: 0,
        inactive: 0,
        persistent: 0,
        traffic: Default::default(),
    }
}

/// What the program that made the maps told.
struct Told {
    head: Head,
    halves: Vec<Half>,
}

impl Told {
    /// Asks the program that made the maps, in the calling thread's network namespace.
    fn ask(program: &Path) -> Result<Self> {
        let mut asked = Asked::begin(program, false)?;
        let told = asked.read();
        let status = asked.child.wait().context("waiting for it")?;
        ensure!(status.success(), "`{} export` failed: {status}", program.display());
        told.with_context(|| format!("what `{} export` says", program.display()))
    }

    fn read(from: impl Read) -> Result<Self> {
        let mut lines = BufReader::with_capacity(1 << 20, from);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let head: Head = serde_json::from_str(&line).context("the first line")?;
        ensure!(head.schema == SCHEMA, "it is of schema {}, known is {SCHEMA}", head.schema);
        // There is no end to wait for where connections are held.
        let halves = serde_json::Deserializer::from_reader(lines).into_iter::<Half>();
        let halves = halves.take(head.halves);
        let halves: Vec<Half> = halves.collect::<Result<_, _>>().context("a connection")?;
        ensure!(halves.len() == head.halves, "{} of {} lines", halves.len(), head.halves);
        Ok(Self { head, halves })
    }
}

/// The program that made the maps, at work. It lets connections be opened again when this is dropped.
struct Asked {
    child: Child,
}

impl Asked {
    fn begin(program: &Path, holds: bool) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("export").stdout(Stdio::piped());
        match holds {
            true => command.arg("--hold").stdin(Stdio::piped()),
            false => command.stdin(Stdio::null()),
        };
        let child = command.spawn().with_context(|| format!("running {}", program.display()))?;
        Ok(Self { child })
    }

    fn read(&mut self) -> Result<Told> {
        self.child.stdout.take().context("its output").and_then(Told::read)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It ends with its input. Whoever has waited for it already gets its status once more.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// How often it is begun anew if somebody edits the table meanwhile.
const TRIES: u32 = 3;

/// Takes over what another program made in the calling thread's network namespace, into tables for so many
/// connections, or as large as they were.
///
/// # Errors
/// That program or the kernel refused; then all is as it was.
pub fn take_over(
    program: &Path,
    connections: Option<u32>,
) -> Result<(), rlvs_linux::dataplane::Error> {
    if succession::resume()? {
        return Ok(());
    }
    let Some(found) = succession::other_layout()? else { return Ok(()) };
    let refused = |error: anyhow::Error| rlvs_linux::dataplane::Error::Succession {
        found,
        reason: format!("{error:#}"),
    };
    let mut first = Told::ask(program).map_err(refused)?;
    if let Some(connections) = connections {
        first.head.made.make_for(connections);
    }
    let fill = || fill(program, &first).map_err(|error| format!("{error:#}"));
    succession::succeed(&first.head.made, fill)
}

/// Fills the new maps: all that is known so far, then what has come about while that was done. From the last
/// reading on no connection is opened, until what this returns is dropped.
fn fill(program: &Path, first: &Told) -> Result<Asked> {
    put_settings(&first.head)?;
    put_services(&first.head)?;
    let made = &first.head.made;
    put_connections(first, made)?;
    let mut services = first.head.services.clone();
    for _ in 0..TRIES {
        // What takes long is done before connections are held.
        let last = Told::ask(program)?;
        if last.head.services != services {
            put_services(&last.head)?;
            services.clone_from(&last.head.services);
        }
        put_connections(&last, made)?;
        let mut asked = Asked::begin(program, first.head.holds)?;
        let last = asked.read().with_context(|| format!("asking {}", program.display()))?;
        if last.head.services == services {
            put_connections(&last, made)?;
            retire(&last.head)?;
            return Ok(asked);
        }
    }
    bail!("somebody edits the table all the time; stop that and try again")
}

fn put_settings(head: &Head) -> Result<()> {
    for (name, value) in &head.settings {
        match Parameter::named(name).filter(|parameter| parameter.unheeded().is_none()) {
            Some(parameter) if parameter.read()? != *value => parameter.write(*value)?,
            Some(_) => {}
            None => eprintln!("rlvs: there is no setting {name} any more; it was {value}"),
        }
    }
    for MarkWords { address, prefix, protocol, ports, mark } in &head.marks {
        let (address, prefix, protocol, ports, mark) =
            (*address, *prefix, *protocol, *ports, *mark);
        let added = marks::add(&Rule { address, prefix, protocol, ports, mark })?;
        ensure!(added, "no room for a rule of marks");
    }
    for is_v4 in [true, false] {
        let members = head.pool.iter().filter(|member| member.address.is_ipv4() == is_v4);
        let member = |&MemberWords { address, ports }: &MemberWords| Member { address, ports };
        let members: Vec<Member> = members.map(member).collect();
        ensure!(pool::add(&members)?, "no room in the pool of full NAT");
    }
    Ok(())
}

/// Makes the table be as told, whatever is in it.
fn put_services(head: &Head) -> Result<()> {
    let unlisted = head.ends.iter().filter_map(|end| end.unlisted.as_deref());
    let lines: Vec<&str> =
        ["-C"].into_iter().chain(head.services.lines()).chain(unlisted).collect();
    let lines = lines.join("\n") + "\n";
    let mut complaints = Vec::new();
    let status = ipvsadm::run(
        &["-R", "--atomic"].map(OsString::from),
        "ipvsadm",
        Environment {
            open: &mut |_| {
                let table = BpfTable::open()?;
                table.map(|table| Box::new(table) as _).ok_or_else(|| {
                    rlvs_control::table::Error::System("the new maps are gone".to_owned())
                })
            },
            backend: Some("rlvs".to_owned()),
            names: &Names::system(),
            stdin: &mut lines.as_bytes(),
            stdout: &mut io::sink(),
            stderr: &mut complaints,
        },
    );
    ensure!(status == 0, "the table: {}", String::from_utf8_lossy(&complaints).trim());
    let mut table = BpfTable::open()?.context("the new maps are gone")?;
    let [tcp_s, tcp_fin_s, udp_s] = head.made.timeouts_s;
    table.set_timeouts(Timeouts { tcp_s, tcp_fin_s, udp_s })?;
    for entry in table.services()? {
        let service = entry.service.id;
        for to in entry.destinations {
            let (id, mut to) = (to.destination.id, to.destination);
            let of = name(service, id);
            let Some((_, weight)) = head.drained.iter().find(|(name, _)| *name == of) else {
                continue;
            };
            to.weight = *weight;
            table.edit_destination(service, &to)?;
            table.drain(service, id)?;
        }
    }
    drop(table);
    let (wanted, _) = rules::read(&head.access).context("the rules of access")?;
    if access::get()? != wanted {
        access::edit(|access| {
            *access = wanted;
            Ok(())
        })?;
    }
    Ok(())
}

/// Puts connections into the tables, which were made so.
fn put_connections(told: &Told, made: &Made) -> Result<()> {
    let mut table = BpfTable::open()?.context("the new maps are gone")?;
    let mut named = BTreeMap::new();
    for entry in table.services()? {
        let service = entry.service.id;
        let ids = entry.destinations.iter().map(|to| to.destination.id);
        named.extend(ids.map(|id| (name(service, id), (service, id))));
    }
    drop(table);
    let mut ends = Vec::new();
    for end in &told.head.ends {
        let known = named.get(&end.name).with_context(|| format!("no server {}", end.name))?;
        ends.push(*known);
    }
    let put = carry::put(&ends, &told.halves)?;
    if put.left == 0 {
        return Ok(());
    }
    let larger = made.larger(&told.halves);
    let remedy = match larger <= CONNECTIONS_MAX {
        true => format!("once more with `--connections {larger}`"),
        false => {
            "there are no larger tables; `rlvs drain` or wait until some have ended".to_owned()
        }
    };
    let (left, all) = (put.left, told.head.halves);
    bail!("the new tables have no room for {left} of {all} halves of connections: {remedy}")
}

/// Takes those out of their services' lists again that were there for their connections.
fn retire(head: &Head) -> Result<()> {
    let mut table = BpfTable::open()?.context("the new maps are gone")?;
    table.set_removal(Removal::Keep);
    for entry in table.services()? {
        let service = entry.service.id;
        for to in entry.destinations {
            let (id, of) = (to.destination.id, name(service, to.destination.id));
            if head.ends.iter().any(|end| end.name == of && end.unlisted.is_some()) {
                table.delete_destination(service, id)?;
            }
        }
    }
    Ok(())
}
