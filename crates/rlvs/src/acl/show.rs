//! The rules, shown.

use std::io::{self, Write};

use rlvs_control::access::{Access, Limit, Rules, Verdict};
use rlvs_control::model::{Family, ServiceId};
use serde_json::{Map, Value, json};

/// Names a service, or all.
pub(super) fn name(of: Option<ServiceId>) -> String {
    match of {
        None => "all services".to_owned(),
        Some(ServiceId::Address { protocol, address, port }) => {
            format!("{protocol} {}", std::net::SocketAddr::new(address, port))
        }
        Some(ServiceId::Mark { mark, family: Family::V4 }) => format!("FWM {mark}"),
        Some(ServiceId::Mark { mark, family: Family::V6 }) => format!("FWM {mark} IPv6"),
    }
}

/// Returns how many rules there are, in words.
pub(crate) fn counted(access: &Access) -> String {
    let plural = |number: usize, one: &str, many: &str| {
        format!("{number} {}", if number == 1 { one } else { many })
    };
    let sets = access.services.values().chain([&access.all]);
    let limits = sets.filter(|rules| rules.limit.is_some()).count();
    format!(
        "{}, {}, {} with rules of its own",
        plural(access.prefixes(), "network", "networks"),
        plural(limits, "limit", "limits"),
        plural(access.services.len(), "service", "services"),
    )
}

/// Writes rules for people.
pub(super) fn text(access: &Access, to: &mut dyn Write) -> io::Result<()> {
    let own = access.services.iter().map(|(id, rules)| (Some(*id), rules));
    for (of, rules) in [(None, &access.all)].into_iter().chain(own) {
        if rules.is_empty() {
            continue;
        }
        writeln!(to, "{}", name(of))?;
        if rules.reject {
            writeln!(to, "  refuse  reject")?;
        }
        if let Some(limit) = &rules.limit {
            writeln!(to, "  limit   {}", words(limit))?;
        }
        for (prefix, verdict) in &rules.prefixes {
            writeln!(to, "  {:<7} {prefix}", word(*verdict))?;
        }
    }
    Ok(())
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn words(limit: &Limit) -> String {
    let Limit { rate, burst, number, length4, length6 } = limit;
    let rate = rate.map(|rate| format!("{rate} a second, {burst} at once"));
    let number = number.map(|number| format!("{number} in number"));
    let parts: Vec<String> = rate.into_iter().chain(number).collect();
    format!("{}, for each /{length4} of IPv4 and /{length6} of IPv6", parts.join(", "))
}

/// Returns rules as JSON, with how many packets were refused for which reason.
pub(super) fn json(access: &Access, refused: &[(&str, u64)]) -> Value {
    let services = access.services.iter().map(|(id, rules)| {
        let mut value = crate::json::service(*id);
        if let Some(value) = value.as_object_mut() {
            value.extend(members(rules));
        }
        value
    });
    let services: Vec<Value> = services.collect();
    let refused: Map<String, Value> =
        refused.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
    let all = members(&access.all);
    json!({"all": all, "services": services, "refused": refused})
}

fn members(rules: &Rules) -> Map<String, Value> {
    let listed = |wanted| {
        let fits = rules.prefixes.iter().filter(move |(_, verdict)| **verdict == wanted);
        fits.map(|(prefix, _)| Value::from(prefix.to_string())).collect::<Value>()
    };
    let limit = rules.limit.map(|limit| {
        json!({"rate": limit.rate, "burst": limit.burst, "number": limit.number,
            "per4": limit.length4, "per6": limit.length6})
    });
    let refuse = if rules.reject { "reject" } else { "drop" };
    Map::from_iter([
        ("allow".to_owned(), listed(Verdict::Allow)),
        ("deny".to_owned(), listed(Verdict::Deny)),
        ("limit".to_owned(), limit.into()),
        ("refuse".to_owned(), refuse.into()),
    ])
}
