//! The rules that give packets their firewall marks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use rlvs_datapath::abi::{MARK_RULES, MarkRule, MarkRules, settings_flag};
use rlvs_datapath::ip::Ip;

use super::error::Error;
use super::load;
use super::maps::Maps;
use super::pins;
use super::records::{client, v4, v6};
use super::stages::Group;

/// A rule: packets to these addresses and ports get the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// An address of the network.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// IP protocol; 0 for any.
    pub protocol: u8,
    /// First and last port.
    pub ports: (u16, u16),
    /// The mark, not 0.
    pub mark: u32,
}

impl Rule {
    fn record(&self) -> MarkRule {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        let all = u128::MAX >> (128 - width);
        let mask = all & !all.checked_shr(self.prefix.into()).unwrap_or(0);
        let (family, (high, low)) = match self.address {
            IpAddr::V4(address) => (4, v4(address).words()),
            IpAddr::V6(address) => (6, v6(address).words()),
        };
        let mask = [(mask >> 64) as u64, mask as u64];
        let (first, last) = self.ports;
        MarkRule {
            network: [high & mask[0], low & mask[1]],
            mask,
            ports: [first, last],
            protocol: self.protocol,
            family,
            mark: self.mark,
            ..MarkRule::default()
        }
    }

    fn of(record: &MarkRule) -> Self {
        let ([high, low], [mask_high, mask_low]) = (record.network, record.mask);
        let [first, last] = record.ports;
        Self {
            address: client(record.family, high, low, 0).ip(),
            prefix: (mask_high.count_ones() + mask_low.count_ones()) as u8,
            protocol: record.protocol,
            ports: (first, last),
            mark: record.mark,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, prefix, protocol, ports: (first, last), mark } = self;
        write!(to, "{mark} to {address}/{prefix}")?;
        match protocol {
            0 => {}
            6 => write!(to, " protocol tcp")?,
            17 => write!(to, " protocol udp")?,
            other => write!(to, " protocol {other}")?,
        }
        match (first, last) {
            (0, 65535) => Ok(()),
            (first, last) if first == last => write!(to, " port {first}"),
            (first, last) => write!(to, " port {first}-{last}"),
        }
    }
}

/// Returns the mark that the rules give to packets of a protocol to an address and port, if any does.
pub(super) fn mark_of(maps: &Maps, target: SocketAddr, protocol: u8) -> Option<u32> {
    let rules = maps.marks.read(0)?;
    let (family, (high, low)) = match target.ip() {
        IpAddr::V4(address) => (4, v4(address).words()),
        IpAddr::V6(address) => (6, v6(address).words()),
    };
    let fits = |rule: &&MarkRule| {
        let [first, last] = rule.ports;
        rule.family == family
            && [high & rule.mask[0], low & rule.mask[1]] == rule.network
            && (rule.protocol == 0 || rule.protocol == protocol)
            && (first..=last).contains(&target.port())
    };
    rules.rules.iter().take(rules.length as usize).find(fits).map(|rule| rule.mark)
}

/// Lists the rules, in the order in which they are tried.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn list() -> Result<Vec<Rule>, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let rules = Maps::open(&folder)?.marks.read(0).unwrap_or_default();
    Ok(rules.rules.iter().take(rules.length as usize).map(Rule::of).collect())
}

/// Adds a rule behind those that are there. Returns whether there was room.
///
/// # Errors
/// As [`list`], or programs that the kernel does not take.
pub fn add(rule: &Rule) -> Result<bool, Error> {
    load::ensure_group(Group::Special)?;
    load::ensure_group(Group::Strange)?;
    edit(|rules| {
        let length = rules.length;
        if length >= MARK_RULES {
            return false;
        }
        rules.rules[length as usize] = rule.record();
        rules.length += 1;
        true
    })
}

/// Removes the first rule that is equal. Returns whether there was one.
///
/// # Errors
/// As [`list`].
pub fn delete(rule: &Rule) -> Result<bool, Error> {
    edit(|rules| {
        let (length, record) = (rules.length as usize, rule.record());
        let at = rules.rules.iter().take(length).position(|other| *other == record);
        let Some(at) = at else { return false };
        rules.rules.copy_within(at + 1..length, at);
        rules.rules[length - 1] = MarkRule::default();
        rules.length -= 1;
        true
    })
}

fn edit(change: impl FnOnce(&mut MarkRules) -> bool) -> Result<bool, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    let maps = Maps::open(&folder)?;
    let mut rules = maps.marks.read(0).unwrap_or_default();
    if !change(&mut rules) {
        return Ok(false);
    }
    let mut settings = maps.settings();
    settings.flags |= settings_flag::WIDE;
    maps.settings.update(0, &settings)?;
    maps.marks.update(0, &rules)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_were_written() {
        for (address, prefix) in
            [("10.0.0.1", 32), ("10.0.0.0", 8), ("0.0.0.0", 0), ("2001:db8::", 32)]
        {
            let rule = Rule {
                address: address.parse().unwrap(),
                prefix,
                protocol: 6,
                ports: (80, 443),
                mark: 7,
            };
            assert_eq!(Rule::of(&rule.record()), rule, "{rule}");
        }
    }
}
