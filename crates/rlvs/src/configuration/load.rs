//! `rlvs load`: what the file asks for and is not so yet is done; what stands as asked for is not touched.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rlvs_linux::dataplane::attach::Attached;
use rlvs_linux::dataplane::pool::{self, ADDRESSES_MAX, Member};
use rlvs_linux::dataplane::{access, pins};
use serde_json::{Value, json};

use super::{Attachment, DEFAULT_FILE, File};
use crate::ipvsadm::Backend;
use crate::json::{self, Json};
use crate::{acl, face, snat};

/// Arguments of `rlvs load`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The file; /etc/rlvs/rlvs.toml, or that of RLVS_CONFIG, if none is named
    file: Option<PathBuf>,
    /// Where something is attached already, only warn of what is wrong: for units that start again
    #[arg(long)]
    at_start: bool,
    #[command(flatten)]
    json: Json,
}

/// Something that was done, or why there was nothing to do.
enum Step {
    Nothing(String),
    Attached(Vec<Attached>),
    Set { name: &'static str, value: u32, was: u32 },
    Left(Member),
    Used(Member),
    Access(String),
}

impl Step {
    fn say(&self, json: Json) -> io::Result<()> {
        if json.json {
            return json::print(self.as_json());
        }
        let out = &mut io::stdout().lock();
        match self {
            Self::Nothing(why) => writeln!(out, "rlvs: {why}"),
            Self::Attached(attached) => face::report(attached, out),
            Self::Set { name, value, was } => writeln!(out, "rlvs: {name} = {value}, was {was}"),
            Self::Left(member) => writeln!(out, "rlvs: full NAT no longer uses {}", member.address),
            Self::Used(member) => writeln!(out, "rlvs: full NAT uses {member}"),
            Self::Access(counted) => writeln!(out, "rlvs: access: {counted}"),
        }
    }

    fn as_json(&self) -> Value {
        match self {
            Self::Nothing(why) => json!({ "nothing": why }),
            Self::Attached(attached) => json!({ "interfaces": face::as_json(attached) }),
            Self::Set { name, value, was } => json!({
                "setting": { "name": name, "value": value, "was": was },
            }),
            Self::Left(member) => json!({ "snat_removed": snat::as_json(member) }),
            Self::Used(member) => json!({ "snat_added": snat::as_json(member) }),
            Self::Access(counted) => json!({ "access": counted }),
        }
    }
}

/// Runs `rlvs load`.
///
/// # Errors
/// The file is wrong; then nothing is changed. A missing capability, or an interface that does not take
/// the program; then what came before it is done.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let path = arguments.file.clone().unwrap_or_else(super::default_path);
    if arguments.file.is_none() && path == Path::new(DEFAULT_FILE) && !path.exists() {
        Step::Nothing(format!("there is no {DEFAULT_FILE}, so nothing to do"))
            .say(arguments.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let carried =
        File::read(&path).and_then(|file| carry_out(&file, &|step| step.say(arguments.json)));
    match carried {
        Err(error) if arguments.at_start && pins::open()?.is_some() => {
            eprintln!("rlvs: {error:#}; going on with what is attached");
        }
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Does what a file asks for, and says each thing that it does.
fn carry_out(file: &File, say: &dyn Fn(Step) -> io::Result<()>) -> Result<()> {
    file.check()?;
    if file.backend() == Some(Backend::Kernel) {
        say(Step::Nothing("the kernel's table is used; there is nothing to load".to_owned()))?;
        return Ok(());
    }
    let (attachment, settings) = (file.attachment()?, file.settings()?);
    let (pool, access) = (file.pool()?, file.access()?);
    if attachment.is_none() && settings.is_empty() && pool.is_none() && access.is_none() {
        say(Step::Nothing(format!("{} asks for nothing", file.path().display())))?;
        return Ok(());
    }
    if attachment.is_some() || pins::open()?.is_none() {
        let file = attachment.is_some().then(|| file.path().to_owned());
        let attachment = Attachment { options: attachment.unwrap_or_default(), file };
        say(Step::Attached(attachment.attach()?))?;
        face::warn_of_sizes(&attachment.options)?;
    }
    for (parameter, value) in settings {
        let before = parameter.read()?;
        if parameter.unheeded().is_none() && before != value {
            parameter.write(value)?;
            say(Step::Set { name: parameter.name, value, was: before })?;
        }
    }
    if let Some(pool) = pool {
        refill(&pool, say)?;
    }
    if let Some(mut new) = access {
        let counted = acl::counted(&new);
        new.tidy();
        if access::get()? != new {
            access::edit(|access| {
                *access = new;
                Ok(())
            })?;
            say(Step::Access(counted))?;
        }
    }
    Ok(())
}

/// Lets the addresses for full NAT be these.
fn refill(wanted: &[Member], say: &dyn Fn(Step) -> io::Result<()>) -> Result<()> {
    let current = pool::list()?;
    for is_v4 in [true, false] {
        let of_version = |member: &&Member| member.address.is_ipv4() == is_v4;
        let has = |members: &[Member], address| members.iter().any(|one| one.address == address);
        let gone: Vec<Member> = current
            .iter()
            .filter(of_version)
            .filter(|member| !has(wanted, member.address))
            .copied()
            .collect();
        let new: Vec<Member> = wanted
            .iter()
            .filter(of_version)
            .filter(|member| !current.contains(member))
            .copied()
            .collect();
        for Member { address, .. } in &new {
            if !pool::is_local(*address)? {
                eprintln!(
                    "rlvs: {address} is not an address of this host, or not yet: answers to it do \
                     not come here until it is"
                );
            }
        }
        let changed = || "the pool was changed by somebody else meanwhile; load again";
        ensure!(pool::delete(&gone)?, changed());
        let room = || format!("the pool has room for {ADDRESSES_MAX} addresses of each IP version");
        ensure!(pool::add(&new).with_context(|| "filling the pool of full NAT")?, room());
        for member in gone {
            say(Step::Left(member))?;
        }
        for member in new {
            say(Step::Used(member))?;
        }
    }
    Ok(())
}
