//! What a virtual server serves.

use std::net::IpAddr;

use rlvs_control::model::Family;

use crate::desired::{AddressGroup, AddressRange, Desired, Member, Target};
use crate::diagnostic::Diagnostic;
use crate::lower::Lower;
use crate::nearest::nearest;
use crate::tree::Node;
use crate::value::Meaning;

impl Lower<'_> {
    pub(super) fn address_group(&mut self, node: &Node) -> Option<AddressGroup> {
        let entries = node.children.iter().filter(|child| child.is_entry());
        let members: Vec<_> = entries.filter_map(member).collect();
        if members.is_empty() {
            let text = format!("nothing is in the group {}", node.name());
            self.say(Diagnostic::error(node.span, text));
        }
        Some(AddressGroup { name: node.name(), members })
    }

    pub(super) fn target(&mut self, node: &Node, desired: &Desired) -> Option<Target> {
        let (first, second) = (node.args.first()?, node.args.get(1));
        let wrong = |text: String, expected: &str| {
            let span = second.map_or(first.span, |value| value.span);
            Diagnostic::error(span, text).expected(expected.to_owned())
        };
        match (&*first.text, second.map(|value| &*value.text)) {
            ("fwmark", Some(mark)) => {
                let family = node
                    .text("ip_family")
                    .or_else(|| node.args.get(2).map(|value| value.text.clone()));
                let family =
                    if family.as_deref() == Some("inet6") { Family::V6 } else { Family::V4 };
                match mark.parse::<u32>() {
                    Ok(mark) if mark > 0 => return Some(Target::Mark(mark, family)),
                    _ => self.say(wrong(
                        format!("`{mark}` is no mark"),
                        "expected a number, at least 1",
                    )),
                }
            }
            ("group", Some(name)) => {
                if self.known.contains(&("virtual_server_group", name)) {
                    return Some(Target::Group(name.to_owned()));
                }
                let names = desired.address_groups.iter().map(|group| &*group.name);
                let mut found = wrong(
                    format!("there is no group {name}"),
                    "expected the name of a `virtual_server_group`",
                );
                if let Some(meant) = nearest(name, names) {
                    found = found.help(format!("did you mean `{meant}`?"));
                }
                self.say(found);
            }
            (address, port) => {
                let Ok(address) = address.parse::<IpAddr>() else {
                    let text = format!("`{address}` is no IP address");
                    self.say(
                        Diagnostic::error(first.span, text)
                            .expected("expected an address, `fwmark` or `group`"),
                    );
                    return None;
                };
                match port.unwrap_or("0").parse() {
                    Ok(port) => return Some(Target::Address(address, port)),
                    Err(_) => self.say(wrong(
                        format!("`{}` is no port", port.unwrap_or("")),
                        "expected a number from 1 to 65535",
                    )),
                }
            }
        }
        None
    }
}

fn member(entry: &Node) -> Option<Member> {
    if let Some(mark) = entry.number("fwmark") {
        let family = if entry.has("inet6") { Family::V6 } else { Family::V4 };
        return Some(Member::Mark(mark, family));
    }
    let range = AddressRange::parse(&entry.args.first()?.text)?;
    let port = match entry.args.get(1).map(|value| value.meaning) {
        Some(Meaning::Number(port)) => port.try_into().ok()?,
        _ => 0,
    };
    Some(Member::Addresses(range, port))
}
