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
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rlvs_control::access as rules;
use rlvs_control::model::{DestinationEntry, DestinationId, ServiceId, Timeouts};
use rlvs_control::table::{Removal, Table};
use rlvs_linux::dataplane::carry::{self, End, Half, Made, SCHEMA};
use rlvs_linux::dataplane::marks::{self, Rule};
use rlvs_linux::dataplane::parameters::{ALL, Parameter};
use rlvs_linux::dataplane::pool::{self, Member};
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::dataplane::{access, succession};
use serde::{Deserialize, Serialize};

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

/// Runs `rlvs export`.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn export() -> Result<ExitCode> {
    let told = carry::tell()?;
    let mut out = io::BufWriter::with_capacity(1 << 20, io::stdout().lock());
    let (ends, halves) = (&told.ends, told.halves.len());
    serde_json::to_writer(&mut out, &head(told.made, ends, halves)?)?;
    writeln!(out)?;
    for half in &told.halves {
        serde_json::to_writer(&mut out, half)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn head(made: Made, ends: &[End], halves: usize) -> Result<Head> {
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
    let end = |end: &End| EndWords {
        name: name(end.service, end.destination.id),
        unlisted: (!end.listed).then(|| ipvsadm::added(end.service, &bare(end))),
    };
    Ok(Head {
        schema: SCHEMA,
        made: Made { timeouts_s: [tcp_s, tcp_fin_s, udp_s], ..made },
        settings: settings.collect::<Result<_>>()?,
        marks: marks::list()?.into_iter().map(mark).collect(),
        pool: pool::list()?.into_iter().map(member).collect(),
        access: rules::text(&access::get()?, &BTreeMap::new()),
        services,
        drained,
        ends: ends.iter().map(end).collect(),
        halves,
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
        let mut child = Command::new(program)
            .arg("export")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", program.display()))?;
        let told = child.stdout.take().context("its output").and_then(Self::read);
        let status = child.wait().context("waiting for it")?;
        ensure!(status.success(), "`{} export` failed: {status}", program.display());
        told.with_context(|| format!("what `{} export` says", program.display()))
    }

    fn read(from: impl Read) -> Result<Self> {
        let mut lines = BufReader::with_capacity(1 << 20, from);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let head: Head = serde_json::from_str(&line).context("the first line")?;
        ensure!(head.schema == SCHEMA, "it is of schema {}, known is {SCHEMA}", head.schema);
        let halves = serde_json::Deserializer::from_reader(lines).into_iter::<Half>();
        let halves: Vec<Half> = halves.collect::<Result<_, _>>().context("a connection")?;
        ensure!(halves.len() == head.halves, "{} of {} lines", halves.len(), head.halves);
        Ok(Self { head, halves })
    }
}

/// How often it is begun anew if somebody edits the table meanwhile.
const TRIES: u32 = 3;

/// Takes over what another program made in the calling thread's network namespace.
///
/// # Errors
/// That program or the kernel refused; then all is as it was.
pub fn take_over(program: &Path) -> Result<(), rlvs_linux::dataplane::Error> {
    if succession::resume()? {
        return Ok(());
    }
    let Some(found) = succession::other_layout()? else { return Ok(()) };
    let refused = |error: anyhow::Error| rlvs_linux::dataplane::Error::Succession {
        found,
        reason: format!("{error:#}"),
    };
    let first = Told::ask(program).map_err(refused)?;
    let fill = || fill(program, &first).map_err(|error| format!("{error:#}"));
    succession::succeed(&first.head.made, fill)
}

/// Fills the new maps: all that is known so far, then what has come about while that was done.
fn fill(program: &Path, first: &Told) -> Result<()> {
    put_settings(&first.head)?;
    put_services(&first.head)?;
    put_connections(first)?;
    let mut services = first.head.services.clone();
    for _ in 0..TRIES {
        let last = Told::ask(program)?;
        let is_known = last.head.services == services;
        if !is_known {
            put_services(&last.head)?;
            services.clone_from(&last.head.services);
        }
        put_connections(&last)?;
        if is_known {
            return retire(&last.head);
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

fn put_connections(told: &Told) -> Result<()> {
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
    ensure!(
        put.left == 0,
        "no room for {} of {} halves of connections",
        put.left,
        told.head.halves
    );
    Ok(())
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
