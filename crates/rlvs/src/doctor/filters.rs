//! Rules of packet filters that name a virtual address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::facts::Rule;

/// Where programs of the system are, also for those without them on their path.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Asks the packet filters that are installed. One that cannot be asked has no rules.
pub(super) fn rules(vips: &BTreeSet<IpAddr>) -> Vec<Rule> {
    if vips.is_empty() {
        return Vec::new();
    }
    let mut rules = Vec::new();
    let nft = output("nft", &["-j", "list", "ruleset"]);
    if let Some(value) = nft.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
        rules.extend(of_nft(&value, vips));
    }
    // The rules of those by nftables are in its list.
    let others: &[&str] = if nft.is_some() {
        &["iptables-legacy-save", "ip6tables-legacy-save"]
    } else {
        &["iptables-save", "ip6tables-save"]
    };
    for program in others {
        let text = output(program, &[]).unwrap_or_default();
        rules.extend(of_iptables(program, &text, vips));
    }
    rules
}

fn output(program: &str, words: &[&str]) -> Option<String> {
    let path = FOLDERS.map(|folder| Path::new(folder).join(program));
    let path: &PathBuf = path.iter().find(|path| path.is_file())?;
    let output = Command::new(path).args(words).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns whether a prefix, or an address alone, covers an address.
fn covers(network: &str, bits: Option<u8>, address: IpAddr) -> bool {
    let Ok(network) = network.parse::<IpAddr>() else { return false };
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    let bits = bits.unwrap_or(width).min(width);
    // Everybody is no name of anybody.
    bits > 0 && network >> (width - bits) == address >> (width - bits)
}

/// Finds rules in what `nft -j list ruleset` prints.
fn of_nft(ruleset: &Value, vips: &BTreeSet<IpAddr>) -> Vec<Rule> {
    let empty = Vec::new();
    let objects = ruleset["nftables"].as_array().unwrap_or(&empty);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sets: BTreeMap<String, &Value> = objects
        .iter()
        .filter_map(|object| object.get("set"))
        .map(|set| (format!("@{}", text(&set["name"])), &set["elem"]))
        .collect();
    let mut found = Vec::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let Some(expressions) = rule["expr"].as_array() else { continue };
        let harmless = ["match", "counter", "accept", "log", "xt"];
        let accepts = expressions
            .iter()
            .filter_map(Value::as_object)
            .all(|one| one.keys().all(|key| harmless.contains(&key.as_str()) && key != "xt"));
        let named = vips.iter().find(|vip| expressions.iter().any(|one| names(one, **vip, &sets)));
        if let (false, Some(&vip)) = (accepts, named) {
            let [family, table, chain] = ["family", "table", "chain"].map(|key| text(&rule[key]));
            let place = format!("nft {family} {table} {chain}");
            let text = format!("handle {}, {}", rule["handle"], rule["expr"]);
            found.push(Rule { place, vip, text });
        }
    }
    found
}

/// Returns whether an expression names an address, a prefix or range with it, or a set that does.
fn names(value: &Value, vip: IpAddr, sets: &BTreeMap<String, &Value>) -> bool {
    match value {
        Value::String(text) => match sets.get(text) {
            Some(elements) => names(elements, vip, &BTreeMap::new()),
            None => covers(text, None, vip),
        },
        Value::Array(parts) => parts.iter().any(|part| names(part, vip, sets)),
        Value::Object(parts) => {
            let prefix = &value["prefix"];
            let bits = prefix["len"].as_u64().and_then(|bits| u8::try_from(bits).ok());
            if let (Some(network), Some(bits)) = (prefix["addr"].as_str(), bits) {
                return covers(network, Some(bits), vip);
            }
            let ends = value["range"].as_array().map(Vec::as_slice);
            if let Some([Value::String(first), Value::String(last)]) = ends {
                let end = |text: &str| {
                    text.parse::<IpAddr>().ok().filter(|end| end.is_ipv4() == vip.is_ipv4())
                };
                return end(first).is_some_and(|first| first <= vip)
                    && end(last).is_some_and(|last| vip <= last);
            }
            parts.values().any(|part| names(part, vip, sets))
        }
        _ => false,
    }
}

/// Finds rules in what `iptables-save` prints.
fn of_iptables(program: &str, text: &str, vips: &BTreeSet<IpAddr>) -> Vec<Rule> {
    let mut table = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ["-A", chain, ..] = words[..] else { continue };
        if line.ends_with("-j ACCEPT") {
            continue;
        }
        let of = |word: &str, vip| {
            let (network, bits) = word.split_once('/').unwrap_or((word, ""));
            covers(network, bits.parse().ok(), vip)
        };
        let named = vips.iter().find(|vip| words.iter().any(|word| of(word, **vip)));
        if let Some(&vip) = named {
            let place = format!("{} {table} {chain}", program.trim_end_matches("-save"));
            found.push(Rule { place, vip, text: line.to_owned() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: &str = "192.0.2.1";

    #[track_caller]
    fn check(found: &[Rule], expected: &[&str]) {
        let places: Vec<_> = found.iter().map(|rule| rule.place.as_str()).collect();
        assert_eq!(places, expected);
    }

    fn vips() -> BTreeSet<IpAddr> {
        [VIP.parse().unwrap(), "2001:db8::1".parse().unwrap()].into()
    }

    #[test]
    fn rules_of_nft_are_found_by_address_prefix_range_and_set() {
        let rule = |chain: &str, right: &str, verdict: &str| {
            format!(
                r#"{{"rule":{{"family":"inet","table":"t","chain":"{chain}","handle":1,"expr":[
                {{"match":{{"op":"==","left":{{"payload":{{"protocol":"ip","field":"daddr"}}}},
                "right":{right}}}}},{{"{verdict}":null}}]}}}}"#
            )
        };
        let text = format!(
            r#"{{"nftables":[{{"set":{{"name":"s","elem":["192.0.2.1","10.0.0.1"]}}}},{}]}}"#,
            [
                rule("one", r#""192.0.2.1""#, "drop"),
                rule("other", r#""192.0.2.2""#, "drop"),
                rule("prefix", r#"{"prefix":{"addr":"192.0.2.0","len":24}}"#, "drop"),
                rule("range", r#"{"range":["192.0.2.0","192.0.2.9"]}"#, "reject"),
                rule("set", r#""@s""#, "drop"),
                rule("six", r#""2001:db8::1""#, "drop"),
                rule("accepts", r#""192.0.2.1""#, "accept"),
                rule("all", r#"{"prefix":{"addr":"0.0.0.0","len":0}}"#, "drop"),
            ]
            .join(",")
        );
        let value = serde_json::from_str(&text).unwrap();
        let places =
            ["one", "prefix", "range", "set", "six"].map(|chain| format!("nft inet t {chain}"));
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        check(&of_nft(&value, &vips()), &places);
    }

    #[test]
    fn rules_of_iptables_are_found() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -d 192.0.2.1/32 -p tcp -j DROP\n\
                    -A INPUT -d 192.0.2.1/32 -j ACCEPT\n-A FORWARD -d 192.0.3.0/24 -j DROP\nCOMMIT\n";
        check(&of_iptables("iptables-save", text, &vips()), &["iptables filter INPUT"]);
    }
}
