//! `rlvs load`: what the file asks for and is not so yet is done; what stands as asked for is not touched.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rlvs_linux::dataplane::attach::{self, Options};
use rlvs_linux::dataplane::pool::{self, ADDRESSES_MAX, Member};
use rlvs_linux::dataplane::{access, pins};

use super::{DEFAULT_FILE, File, VARIABLE};
use crate::ipvsadm::Backend;
use crate::{acl, face};

/// Arguments of `rlvs load`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The file; /etc/rlvs/rlvs.toml, or that of RLVS_CONFIG, if none is named
    file: Option<PathBuf>,
    /// Where something is attached already, only warn of what is wrong: for units that start again
    #[arg(long)]
    at_start: bool,
}

/// Runs `rlvs load`.
///
/// # Errors
/// The file is wrong; then nothing is changed. A missing capability, or an interface that does not take
/// the program; then what came before it is done.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let named = || std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
    let path = arguments.file.clone().or_else(named);
    if path.is_none() && !PathBuf::from(DEFAULT_FILE).exists() {
        println!("rlvs: there is no {DEFAULT_FILE}, so nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    let path = path.unwrap_or_else(|| DEFAULT_FILE.into());
    let carried = File::read(&path).and_then(|file| carry_out(&file, &mut io::stdout()));
    match carried {
        Err(error) if arguments.at_start && pins::open()?.is_some() => {
            eprintln!("rlvs: {error:#}; going on with what is attached");
        }
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Does what a file asks for, and says each thing that it does.
fn carry_out(file: &File, to: &mut dyn Write) -> Result<()> {
    file.check()?;
    if file.backend() == Some(Backend::Kernel) {
        writeln!(to, "rlvs: the kernel's table is used; there is nothing to load")?;
        return Ok(());
    }
    let (attachment, settings) = (file.attachment()?, file.settings()?);
    let (pool, access) = (file.pool()?, file.access()?);
    if attachment.is_none() && settings.is_empty() && pool.is_none() && access.is_none() {
        writeln!(to, "rlvs: {} asks for nothing", file.path().display())?;
        return Ok(());
    }
    if attachment.is_some() || pins::open()?.is_none() {
        let options: Options = attachment.unwrap_or_default();
        face::report(&attach::attach(&options)?, to)?;
    }
    for (parameter, value) in settings {
        let before = parameter.read()?;
        if parameter.unheeded().is_none() && before != value {
            parameter.write(value)?;
            writeln!(to, "rlvs: {} = {value}, was {before}", parameter.name)?;
        }
    }
    if let Some(pool) = pool {
        refill(&pool, to)?;
    }
    if let Some(mut new) = access {
        let counted = acl::counted(&new);
        new.tidy();
        if access::get()? != new {
            access::edit(|access| {
                *access = new;
                Ok(())
            })?;
            writeln!(to, "rlvs: access: {counted}")?;
        }
    }
    Ok(())
}

/// Lets the addresses for full NAT be these.
fn refill(wanted: &[Member], to: &mut dyn Write) -> Result<()> {
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
            writeln!(to, "rlvs: full NAT no longer uses {}", member.address)?;
        }
        for member in new {
            writeln!(to, "rlvs: full NAT uses {member}")?;
        }
    }
    Ok(())
}
