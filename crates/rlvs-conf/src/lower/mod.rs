//! From the tree to the desired state: defaults, inheritance, and what must fit together.

mod address;
mod checker;
mod common;
mod global;
mod instance;
mod routing;
mod service;
mod target;
mod track;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::desired::{Checker, Desired, Timing};
use crate::diagnostic::{Diagnostic, Diagnostics, Objection};
use crate::source::{Sources, Span};
use crate::surroundings::Surroundings;
use crate::tree::Node;

/// Lowers a tree.
pub(crate) fn lower(
    nodes: &[Node],
    surroundings: &dyn Surroundings,
    sources: &Sources,
    diagnostics: &mut Diagnostics,
) -> Desired {
    let defaults = global::Defaults::default();
    let known = nodes.iter().filter_map(|node| Some((node.row.name, &*node.args.first()?.text)));
    let known = known.collect();
    let (script_at, timing, checkers) = (None, None, None);
    let mut lower =
        Lower { surroundings, sources, diagnostics, defaults, known, script_at, timing, checkers };
    let mut desired = Desired::default();
    let named = |name: &'static str| nodes.iter().filter(move |node| node.row.name == name);
    for node in named("global_defs") {
        lower.global(node, &mut desired.global);
    }
    desired.namespace =
        named("net_namespace").find_map(|node| Some(node.args.first()?.text.to_string()));
    for node in named("vrrp_script") {
        if lower.is_new(node, desired.scripts.iter().map(|script| &*script.name)) {
            desired.scripts.extend(lower.script_block(node));
        }
    }
    for node in nodes.iter().filter(|node| track::FILES.contains(&node.row.name)) {
        if lower.is_new(node, desired.files.iter().map(|file| &*file.name)) {
            desired.files.extend(lower.file_block(node));
        }
    }
    for node in nodes.iter().filter(|node| track::PROCESSES.contains(&node.row.name)) {
        if lower.is_new(node, desired.processes.iter().map(|process| &*process.name)) {
            desired.processes.extend(lower.process_block(node));
        }
    }
    lower.fixed(nodes, &mut desired.fixed);
    lower.instances(named("vrrp_instance"), &mut desired);
    lower.sync_groups(named("vrrp_sync_group"), &mut desired);
    for node in named("virtual_server_group") {
        if lower.is_new(node, desired.address_groups.iter().map(|group| &*group.name)) {
            desired.address_groups.extend(lower.address_group(node));
        }
    }
    lower.virtual_servers(named("virtual_server"), &mut desired);
    desired.kept = common::kept(nodes);
    lower.say_security(&desired);
    desired
}

/// What lowering has at hand.
struct Lower<'a> {
    surroundings: &'a dyn Surroundings,
    sources: &'a Sources,
    diagnostics: &'a mut Diagnostics,
    defaults: global::Defaults,
    /// Blocks of the top level, by keyword and name.
    known: BTreeSet<(&'static str, &'a str)>,
    /// The first script that would be run.
    script_at: Option<Span>,
    /// Numbers of the last checker.
    timing: Option<Arc<Timing>>,
    /// Checkers of the last real server.
    checkers: Option<Arc<[Arc<Checker>]>>,
}

impl Lower<'_> {
    fn say(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Returns whether no block before has this one's name, and says so if one has.
    fn is_new<'n>(&mut self, node: &Node, mut names: impl Iterator<Item = &'n str>) -> bool {
        let Some(name) = node.args.first() else { return false };
        let new = !names.any(|known| known == name.text);
        if !new {
            let text = format!(
                "there is a `{}` of the name {} already; this one is left out",
                node.row.name, name.text
            );
            self.say(Diagnostic::error(name.span, text).expected("expected another name"));
        }
        new
    }

    /// Says if no block of these keywords has this name.
    fn check_known(&mut self, keywords: &[&str], name: &str, span: Span) -> bool {
        let there = keywords.iter().any(|&keyword| self.known.contains(&(keyword, name)));
        if !there {
            let text = format!("there is no `{}` {name}", keywords[0]);
            self.say(Diagnostic::error(span, text).expected("expected the name of one"));
        }
        there
    }

    /// Says if scripts run as root that others may write.
    fn say_security(&mut self, desired: &Desired) {
        let Some(span) = self.script_at.filter(|_| !desired.global.script_security) else { return };
        let text = "scripts are run without `enable_script_security`";
        let found = Diagnostic::warning(span, text)
            .help("with it in global_defs, nothing is run as root that others may write");
        self.say(found.objection(Objection::Security));
    }
}

/// Names that were met.
#[derive(Default)]
struct Met(BTreeSet<String>);

impl Met {
    /// Returns whether a name is met for the first time.
    fn first(&mut self, name: &str) -> bool {
        self.0.insert(name.to_owned())
    }
}
