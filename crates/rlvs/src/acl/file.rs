//! The rules in a file: the table `[acl]` of rlvs.toml.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rlvs_control::access::{Access, LIMIT_MAX, Limit, Prefix, Rules, Verdict};
use rlvs_control::model::{Family, Protocol, ServiceId};
use serde::Deserialize;
use toml::Spanned;

use crate::configuration::Text;
use crate::words;

/// The table `[acl]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Acl {
    allow: Vec<Spanned<String>>,
    deny: Vec<Spanned<String>>,
    allow_files: Vec<Spanned<PathBuf>>,
    deny_files: Vec<Spanned<PathBuf>>,
    limit: Option<Spanned<Limits>>,
    refuse: Refusal,
    service: Vec<Spanned<Own>>,
}

/// Rules of one service: `serde(flatten)` and `deny_unknown_fields` do not go together.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Own {
    #[serde(deserialize_with = "words::end_in_file")]
    tcp: Option<SocketAddr>,
    #[serde(deserialize_with = "words::end_in_file")]
    udp: Option<SocketAddr>,
    #[serde(deserialize_with = "words::end_in_file")]
    sctp: Option<SocketAddr>,
    mark: Option<u32>,
    family: Option<MarkFamily>,
    allow: Vec<Spanned<String>>,
    deny: Vec<Spanned<String>>,
    allow_files: Vec<Spanned<PathBuf>>,
    deny_files: Vec<Spanned<PathBuf>>,
    limit: Option<Spanned<Limits>>,
    refuse: Refusal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Refusal {
    #[default]
    Drop,
    Reject,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MarkFamily {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    rate: Option<u32>,
    burst: Option<u32>,
    number: Option<u32>,
    per4: Option<u8>,
    per6: Option<u8>,
}

/// Returns the rules of a file.
///
/// # Errors
/// What is wrong in them, and in which line and column; no such file of networks.
pub(crate) fn access(from: &Text, acl: Acl) -> Result<Access> {
    let Acl { allow, deny, allow_files, deny_files, limit, refuse, service } = acl;
    let lists = Lists { allow, deny, allow_files, deny_files };
    let mut access = Access { all: rules(from, lists, limit, refuse)?, ..Access::default() };
    for own in service {
        let place = from.place(own.span().start);
        let own = own.into_inner();
        let id = service_id(&own).with_context(|| place.clone())?;
        let Own { allow, deny, allow_files, deny_files, limit, refuse, .. } = own;
        let lists = Lists { allow, deny, allow_files, deny_files };
        let rules = rules(from, lists, limit, refuse)?;
        if access.services.insert(id, rules).is_some() {
            bail!("{place}: the rules of {} stand here a second time", super::show::name(Some(id)));
        }
    }
    Ok(access)
}

fn service_id(own: &Own) -> Result<ServiceId> {
    let by_address = |protocol, end: Option<SocketAddr>| {
        end.map(|end| ServiceId::Address { protocol, address: end.ip(), port: end.port() })
    };
    let family = match own.family {
        Some(MarkFamily::Ipv6) => Family::V6,
        _ => Family::V4,
    };
    let mut named = [
        by_address(Protocol::Tcp, own.tcp),
        by_address(Protocol::Udp, own.udp),
        by_address(Protocol::Sctp, own.sctp),
        own.mark.map(|mark| ServiceId::Mark { family, mark }),
    ]
    .into_iter()
    .flatten();
    let (Some(id), None) = (named.next(), named.next()) else {
        bail!("a service is named by one of tcp, udp, sctp and mark");
    };
    match id {
        ServiceId::Mark { mark: 0, .. } => bail!("a mark is not 0"),
        ServiceId::Address { .. } if own.family.is_some() => bail!("family belongs to mark"),
        id => Ok(id),
    }
}

struct Lists {
    allow: Vec<Spanned<String>>,
    deny: Vec<Spanned<String>>,
    allow_files: Vec<Spanned<PathBuf>>,
    deny_files: Vec<Spanned<PathBuf>>,
}

fn rules(
    from: &Text,
    lists: Lists,
    limit: Option<Spanned<Limits>>,
    refuse: Refusal,
) -> Result<Rules> {
    let mut rules = Rules { reject: refuse == Refusal::Reject, ..Rules::default() };
    let allow = lists.allow.into_iter().map(|network| (network, Verdict::Allow));
    let deny = lists.deny.into_iter().map(|network| (network, Verdict::Deny));
    for (network, verdict) in allow.chain(deny) {
        let place = || from.place(network.span().start);
        let prefix = network.get_ref().parse().with_context(place)?;
        enter(&mut rules, prefix, verdict).with_context(place)?;
    }
    let allow = lists.allow_files.iter().map(|file| (file, Verdict::Allow));
    let deny = lists.deny_files.iter().map(|file| (file, Verdict::Deny));
    for (file, verdict) in allow.chain(deny) {
        let folder = from.path.parent().unwrap_or(Path::new(""));
        let place = || from.place(file.span().start);
        let path = folder.join(file.get_ref());
        let text = fs::read_to_string(&path);
        let text =
            text.with_context(|| format!("reading {}", path.display())).with_context(place)?;
        enter_all(&mut rules, &path, &text, verdict)?;
    }
    if let Some(limit) = limit {
        let place = from.place(limit.span().start);
        rules.limit = Some(checked(&limit.into_inner()).with_context(|| place)?);
    }
    Ok(rules)
}

/// Puts a network on a list. One that is on the other already is a mistake of whoever wrote the file.
fn enter(rules: &mut Rules, prefix: Prefix, verdict: Verdict) -> Result<()> {
    match rules.prefixes.insert(prefix, verdict) {
        Some(before) if before != verdict => bail!("{prefix} is both allowed and denied"),
        _ => Ok(()),
    }
}

/// Reads the text of a file with a network in each line; `#` begins a comment.
fn enter_all(rules: &mut Rules, path: &Path, text: &str, verdict: Verdict) -> Result<()> {
    for (number, line) in (1..).zip(text.lines()) {
        let word = line.split('#').next().unwrap_or_default().trim();
        if word.is_empty() {
            continue;
        }
        let place = || format!("{}:{number}", path.display());
        let prefix = word.parse().with_context(place)?;
        enter(rules, prefix, verdict).with_context(place)?;
    }
    Ok(())
}

fn checked(limits: &Limits) -> Result<Limit> {
    let Limits { rate, burst, number, per4, per6 } = *limits;
    for (name, value) in [("rate", rate), ("burst", burst), ("number", number)] {
        if value.is_some_and(|value| value == 0 || value > LIMIT_MAX) {
            bail!("{name} is 1 to {LIMIT_MAX}");
        }
    }
    if rate.is_none() && (number.is_none() || burst.is_some()) {
        bail!("a limit has a rate, with or without a burst, or a number, or both");
    }
    let none = Limit::default();
    let (length4, length6) = (per4.unwrap_or(none.length4), per6.unwrap_or(none.length6));
    if length4 > 32 || length6 > 128 {
        bail!("per4 is 0 to 32, per6 0 to 128");
    }
    let burst = burst.or(rate).unwrap_or(none.burst);
    Ok(Limit { rate, burst, number, length4, length6 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::File;

    fn read(text: &str) -> Result<Access> {
        let file = File::parse(Path::new("rlvs.toml"), text.to_owned())?;
        Ok(file.access()?.unwrap_or_default())
    }

    #[test]
    fn a_file_says_everything_that_commands_do() {
        let access = read(
            r#"
            [acl]
            deny = ["203.0.113.0/24", "2001:db8:bad::/48"]
            limit = { rate = 20, burst = 40, number = 100, per6 = 56 }

            [[acl.service]]
            tcp = "192.0.2.1:80"
            allow = ["10.0.0.0/8"]
            refuse = "reject"

            [[acl.service]]
            mark = 7
            family = "ipv6"
            limit = { number = 5 }
            "#,
        )
        .unwrap();
        let expected = "all services
  limit   20 a second, 40 at once, 100 in number, for each /32 of IPv4 and /56 of IPv6
  deny    203.0.113.0/24
  deny    2001:db8:bad::/48
TCP 192.0.2.1:80
  refuse  reject
  allow   10.0.0.0/8
FWM 7 IPv6
  limit   5 in number, for each /32 of IPv4 and /64 of IPv6
";
        let mut shown = Vec::new();
        super::super::show::text(&access, &mut shown).unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), expected);
        assert_eq!(read("").unwrap(), Access::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, expected) in [
            (
                "[acl]\nallow = [\"10.0.0.0/8\",\n  \"10.0.0.1/8\"]",
                "rlvs.toml:3:3: `10.0.0.1/8` has bits beyond its length; its network is 10.0.0.0/8",
            ),
            ("[acl]\nalow = []", "rlvs.toml:2:1: unknown field `alow`"),
            (
                "[acl]\nallow = [\"::/0\"]\ndeny = [\"::/0\"]",
                "rlvs.toml:3:9: ::/0 is both allowed and denied",
            ),
            ("[acl]\nlimit = { rate = 0 }", "rlvs.toml:2:9: rate is 1 to 1000000"),
            ("[acl]\nlimit = { burst = 1, number = 3 }", "rlvs.toml:2:9: a limit has a rate"),
            ("[acl]\nlimit = { number = 3, per4 = 33 }", "rlvs.toml:2:9: per4 is 0 to 32"),
            ("[[acl.service]]\ndeny = []", "rlvs.toml:1:1: a service is named by one of tcp"),
            (
                "[[acl.service]]\nmark = 1\nudp = \"1.2.3.4:5\"",
                "rlvs.toml:1:1: a service is named by one",
            ),
            ("[[acl.service]]\ntcp = \"1.2.3.4\"", "rlvs.toml:2:7: it is no ADDRESS:PORT"),
            (
                "[[acl.service]]\nmark = 1\n[[acl.service]]\nmark = 1",
                "rlvs.toml:3:1: the rules of FWM 1 stand here a second time",
            ),
            ("[acl]\ndeny_files = [\"/nowhere\"]", "rlvs.toml:2:15: reading /nowhere"),
            ("[acl", "rlvs.toml:1:5:"),
            ("[other]", "rlvs.toml:1:2: unknown field `other`"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.starts_with(expected), "{error} and not {expected}");
        }
    }
}
