//! The rules as text, in which they are kept behind the book: a line for each word of the
//! administrator, those of a service behind the line that names it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Access, Limit, Rules, Verdict};
use crate::model::{Family, Protocol, ServiceId};

/// Writes rules, with the numbers of services' lines.
#[must_use]
pub fn text(access: &Access, numbers: &BTreeMap<ServiceId, u32>) -> String {
    let mut text = String::new();
    write_rules(&mut text, &access.all);
    for (id, number) in numbers {
        let Some(rules) = access.services.get(id) else { continue };
        text.push_str(&match id {
            ServiceId::Address { protocol, address, port } => {
                format!("service {number} {} {address} {port}\n", protocol.number())
            }
            ServiceId::Mark { family, mark } => {
                let family = if *family == Family::V4 { 4 } else { 6 };
                format!("mark {number} {family} {mark}\n")
            }
        });
        write_rules(&mut text, rules);
    }
    text
}

fn write_rules(text: &mut String, rules: &Rules) {
    if rules.reject {
        text.push_str("reject\n");
    }
    if let Some(limit) = rules.limit {
        let Limit { rate, burst, number, length4, length6 } = limit;
        let (rate, number) = (rate.unwrap_or(0), number.unwrap_or(0));
        text.push_str(&format!("limit {rate} {burst} {number} {length4} {length6}\n"));
    }
    for (prefix, verdict) in &rules.prefixes {
        let word = if *verdict == Verdict::Allow { "allow" } else { "deny" };
        text.push_str(&format!("{word} {prefix}\n"));
    }
}

/// Reads the numbers of services' lines alone.
#[must_use]
pub fn numbers(text: &str) -> BTreeMap<ServiceId, u32> {
    let names = |line: &&str| line.starts_with("service ") || line.starts_with("mark ");
    let named: Vec<&str> = text.lines().filter(names).collect();
    read(&named.join("\n")).map(|(_, numbers)| numbers).unwrap_or_default()
}

/// Reads rules, with the numbers of services' lines. `None` if it is not such a text.
#[must_use]
pub fn read(text: &str) -> Option<(Access, BTreeMap<ServiceId, u32>)> {
    let (mut access, mut numbers) = (Access::default(), BTreeMap::new());
    let mut of = None;
    for line in text.lines() {
        let mut words = line.split(' ');
        let first = words.next()?;
        let mut number = || words.next()?.parse::<u32>().ok();
        match first {
            "service" => {
                let (line, protocol) = (number()?, u8::try_from(number()?).ok()?);
                let address: IpAddr = words.next()?.parse().ok()?;
                let port = words.next()?.parse().ok()?;
                let protocol = Protocol::from_number(protocol);
                let id = ServiceId::Address { protocol, address, port };
                numbers.insert(id, line);
                of = Some(id);
            }
            "mark" => {
                let line = number()?;
                let family = if number()? == 4 { Family::V4 } else { Family::V6 };
                let id = ServiceId::Mark { family, mark: number()? };
                numbers.insert(id, line);
                of = Some(id);
            }
            "reject" => access.rules_mut(of).reject = true,
            "limit" => {
                let some = |number| if number == 0 { None } else { Some(number) };
                let (rate, burst, most) = (some(number()?), number()?, some(number()?));
                let length4 = u8::try_from(number()?).ok()?;
                let length6 = u8::try_from(number()?).ok()?;
                let limit = Limit { rate, burst, number: most, length4, length6 };
                access.rules_mut(of).limit = Some(limit);
            }
            "allow" | "deny" => {
                let verdict = if first == "allow" { Verdict::Allow } else { Verdict::Deny };
                let prefix = words.next()?.parse().ok()?;
                access.rules_mut(of).prefixes.insert(prefix, verdict);
            }
            _ => return None,
        }
    }
    Some((access, numbers))
}
