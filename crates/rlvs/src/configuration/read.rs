//! The file as text, and what it means.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rlvs_control::access::Access;
use rlvs_linux::dataplane::attach::{Mode, Options};
use rlvs_linux::dataplane::load::Sizes;
use rlvs_linux::dataplane::parameters::Parameter;
use rlvs_linux::dataplane::pool::{ADDRESSES_MAX, Member, PORTS};
use serde::Deserialize;
use toml::Spanned;

use crate::acl::file::{self as rules, Acl};
use crate::ipvsadm::Backend;
use crate::{set, snat};

/// Connections that a table may be made for, at most.
pub(crate) const CONNECTIONS_MAX: u32 = 1 << 26;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tables {
    backend: Option<Spanned<Whose>>,
    attach: Option<Attach>,
    settings: BTreeMap<Spanned<String>, Spanned<u32>>,
    snat: Option<Snat>,
    acl: Option<Acl>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    name: BackendName,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BackendName {
    Rlvs,
    Kernel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Attach {
    interfaces: Vec<String>,
    mode: Option<ModeName>,
    any: bool,
    connections: Option<Spanned<u32>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeName {
    Native,
    Tc,
    Generic,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Snat {
    pool: Vec<Pool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pool {
    addresses: Spanned<String>,
    ports: Option<Spanned<String>>,
}

/// What is read, to tell where in it something is wrong.
#[derive(Debug)]
pub(crate) struct Text {
    /// Where it was read.
    pub(crate) path: PathBuf,
    text: String,
}

impl Text {
    /// Names a place as `FILE:LINE:COLUMN`, both from 1 on.
    pub(crate) fn place(&self, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|char| *char != '\n').count() + 1;
        format!("{}:{line}:{column}", self.path.display())
    }
}

/// A file whose words and types are right. What its values mean is told, or refused, section by section.
#[derive(Debug)]
pub struct File {
    text: Text,
    tables: Tables,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is not TOML, or has words that it may not have.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(path, text)
    }

    /// The same of what has been read already.
    pub(crate) fn parse(path: &Path, text: String) -> Result<Self> {
        let text = Text { path: path.to_owned(), text };
        let tables = toml::from_str(&text.text).map_err(|error| {
            let shown = || text.path.display().to_string();
            let place = error.span().map_or_else(shown, |span| text.place(span.start));
            anyhow::anyhow!("{place}: {}", error.message())
        })?;
        Ok(Self { text, tables })
    }

    /// Looks at all of it.
    ///
    /// # Errors
    /// What is wrong first, with its place.
    pub fn check(&self) -> Result<()> {
        let asks = self.attachment()?.is_some() | self.pool()?.is_some() | self.access()?.is_some();
        let asks = asks | !self.settings()?.is_empty();
        let at = self.tables.backend.as_ref().map_or(0, |named| named.span().start);
        if asks && self.backend() == Some(Backend::Kernel) {
            bail!(
                "{}: with the kernel's table there is nothing that attach, settings, snat and acl \
                 could say: they are of rlvs's own",
                self.text.place(at)
            );
        }
        Ok(())
    }

    /// Returns where it was read.
    pub fn path(&self) -> &Path {
        &self.text.path
    }

    /// Returns whose table is to be used, if it says.
    pub fn backend(&self) -> Option<Backend> {
        self.tables.backend.as_ref().map(|whose| match whose.get_ref().name {
            BackendName::Rlvs => Backend::Rlvs,
            BackendName::Kernel => Backend::Kernel,
        })
    }

    /// Returns what to attach to, if it says.
    ///
    /// # Errors
    /// A number that is not in its range.
    pub fn attachment(&self) -> Result<Option<Options>> {
        let Some(Attach { interfaces, mode, any, connections }) = &self.tables.attach else {
            return Ok(None);
        };
        if let Some(number) = connections
            && !(1..=CONNECTIONS_MAX).contains(number.get_ref())
        {
            let place = self.text.place(number.span().start);
            bail!("{place}: connections is 1 to {CONNECTIONS_MAX}");
        }
        Ok(Some(Options {
            mode: mode.map(|mode| match mode {
                ModeName::Native => Mode::Native,
                ModeName::Tc => Mode::Tc,
                ModeName::Generic => Mode::Generic,
            }),
            interfaces: interfaces.clone(),
            any: *any,
            sizes: connections.as_ref().map(|number| Sizes::for_connections(*number.get_ref())),
            ..Options::default()
        }))
    }

    /// Returns the settings that it names, with their values.
    ///
    /// # Errors
    /// A name that is none, or a value that the setting does not take.
    pub fn settings(&self) -> Result<Vec<(&'static Parameter, u32)>> {
        let settings = self.tables.settings.iter().map(|(name, value)| {
            let parameter =
                set::named(name.get_ref()).with_context(|| self.text.place(name.span().start))?;
            set::takes(parameter, &value.get_ref().to_string())
                .with_context(|| self.text.place(value.span().start))?;
            Ok((parameter, *value.get_ref()))
        });
        settings.collect()
    }

    /// Returns the addresses for full NAT, if it says which there are.
    ///
    /// # Errors
    /// Words that are no addresses or ports, an address that is there twice, more than there is room for.
    pub fn pool(&self) -> Result<Option<Vec<Member>>> {
        let Some(snat) = &self.tables.snat else { return Ok(None) };
        let (mut members, mut seen) = (Vec::<Member>::new(), BTreeSet::new());
        for Pool { addresses, ports } in &snat.pool {
            let ports = ports.as_ref().map_or(Ok(PORTS), |ports| {
                snat::port_range(ports.get_ref())
                    .with_context(|| self.text.place(ports.span().start))
            })?;
            let place = || self.text.place(addresses.span().start);
            for member in snat::members(addresses.get_ref(), ports).with_context(place)? {
                if !seen.insert(member.address) {
                    bail!("{}: {} is in the pool already", place(), member.address);
                }
                members.push(member);
            }
            for is_v4 in [true, false] {
                let of_version = |member: &&Member| member.address.is_ipv4() == is_v4;
                if members.iter().filter(of_version).count() > ADDRESSES_MAX as usize {
                    bail!(
                        "{}: the pool has room for {ADDRESSES_MAX} addresses of each IP version",
                        place()
                    );
                }
            }
        }
        Ok(Some(members))
    }

    /// Returns the rules of who may open connections, if it has any section of them.
    ///
    /// # Errors
    /// What is wrong in them, and in which line and column.
    pub fn access(&self) -> Result<Option<Access>> {
        self.tables.acl.as_ref().map(|acl| rules::access(&self.text, acl.clone())).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<File> {
        let file = File::parse(Path::new("rlvs.toml"), text.to_owned())?;
        file.check()?;
        Ok(file)
    }

    #[test]
    fn a_file_says_what_commands_do() {
        let file = read(
            r#"
            [attach]
            interfaces = ["eth0", "eth1"]
            mode = "tc"
            any = true
            connections = 100000

            [settings]
            tcp_mss = 1400
            expire_nodest_conn = 1

            [[snat.pool]]
            addresses = "192.0.2.1-192.0.2.3"
            ports = "2000-3000"

            [[snat.pool]]
            addresses = "2001:db8::1"
            "#,
        )
        .unwrap();
        let options = file.attachment().unwrap().unwrap();
        assert_eq!(options.interfaces, ["eth0", "eth1"]);
        assert_eq!((options.mode, options.any), (Some(Mode::Tc), true));
        let settings = file.settings().unwrap();
        let named: Vec<_> = settings.iter().map(|(one, value)| (one.name, *value)).collect();
        assert_eq!(named, [("expire_nodest_conn", 1), ("tcp_mss", 1400)]);
        let pool: Vec<String> =
            file.pool().unwrap().unwrap().iter().map(Member::to_string).collect();
        assert_eq!(pool.len(), 4);
        assert_eq!(pool[2], "192.0.2.3 ports 2000-3000");
        assert_eq!(pool[3], "2001:db8::1 ports 1024-32767");
        assert!(file.access().unwrap().is_none() && file.backend().is_none());
        let kernel = read("[backend]\nname = \"kernel\"").unwrap();
        assert_eq!(kernel.backend(), Some(Backend::Kernel));
    }

    #[test]
    fn the_file_of_the_package_asks_for_nothing_and_its_examples_are_right() {
        let text = include_str!("../../../../packaging/rlvs.toml");
        let file = read(text).unwrap();
        assert!(file.attachment().unwrap().is_none() && file.access().unwrap().is_none());
        let examples = text.lines().filter_map(|line| line.strip_prefix('#'));
        let lines: Vec<&str> = examples.filter(|line| !line.starts_with(' ')).collect();
        let all = read(&lines.join("\n")).unwrap();
        assert!(all.attachment().unwrap().is_some() && all.access().unwrap().is_some());
        assert!(all.pool().unwrap().is_some() && !all.settings().unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, expected) in [
            ("[attach]\nmode = \"xdp\"", "rlvs.toml:2:8: unknown variant `xdp`, expected one of"),
            ("[attach]\ninterface = []", "rlvs.toml:2:1: unknown field `interface`, expected one"),
            ("[attach]\nconnections = 0", "rlvs.toml:2:15: connections is 1 to 67108864"),
            ("[settings]\nmss = 1", "rlvs.toml:2:1: there is no setting mss; there are: am_dro"),
            ("[settings]\ntcp_mss = 70000", "rlvs.toml:2:11: tcp_mss takes 0 to 65535, not 70000"),
            ("[settings]\ntcp_mss = -1", "rlvs.toml:2:11: invalid value: integer `-1`"),
            ("[settings]\nconntrack = 1", "rlvs.toml:2:13: conntrack is without meaning here"),
            ("[[snat.pool]]\nports = \"1-2\"", "rlvs.toml:1:1: missing field `addresses`"),
            ("[[snat.pool]]\naddresses = \"ten\"", "rlvs.toml:2:13: `ten` is not an address"),
            (
                "[[snat.pool]]\naddresses = \"10.0.0.1\"\nports = \"9-3\"",
                "rlvs.toml:3:9: port 9 is above 3",
            ),
            (
                "[snat]\npool = [{ addresses = \"::1\" }, { addresses = \"::1\" }]",
                "rlvs.toml:2:46: ::1 is in the pool already",
            ),
            ("[backend]\nname = \"ipvs\"", "rlvs.toml:2:8: unknown variant `ipvs`, expected `rl"),
            (
                "[attach]\n[backend]\nname = \"kernel\"",
                "rlvs.toml:2:1: with the kernel's table there is nothing",
            ),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.starts_with(expected), "{error} and not {expected}");
        }
    }
}
