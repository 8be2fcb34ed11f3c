//! What instances follow, who learns of their changes, and their groups.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::desired::{
    Compared, Desired, Notify, SyncGroup, Tracked, TrackedFile, TrackedProcess, TrackedScript,
    Weight,
};
use crate::diagnostic::{Diagnostic, Objection};
use crate::lower::{Lower, Met, common};
use crate::nearest::nearest;
use crate::tree::Node;

/// Keywords of files that something follows.
pub(super) const FILES: &[&str] = &["track_file", "vrrp_track_file"];
/// Keywords of processes that something follows.
pub(super) const PROCESSES: &[&str] = &["track_process", "vrrp_track_process"];
/// Keywords of sessions that something follows.
pub(super) const SESSIONS: &[&str] = &["bfd_instance"];

/// The longest name that the kernel keeps of a process.
const NAME_BYTES_MAX: usize = 15;

impl Lower<'_> {
    /// Lowers a `vrrp_script`.
    pub(super) fn script_block(&mut self, node: &Node) -> Option<TrackedScript> {
        let Some(script) = node.child("script") else {
            let found = Diagnostic::error(node.span, "a `vrrp_script` without `script`");
            self.say(found.expected("expected a `script` in it"));
            return None;
        };
        let command = self.command(script, true)?;
        let user = node.child("user").and_then(|user| user.user(0)).or_else(|| script.user(1));
        if let Some(user) = node.child("user") {
            self.check_user(user, 0);
        }
        let interval = node.time("interval").unwrap_or(Duration::from_secs(1));
        Some(TrackedScript {
            name: node.name(),
            command,
            user,
            interval,
            timeout: node.time("timeout").filter(|time| !time.is_zero()).unwrap_or(interval),
            weight: weight(node).unwrap_or_default(),
            rise: node.number("rise").unwrap_or(1),
            fall: node.number("fall").unwrap_or(1),
            starts_bad: node.has("init_fail"),
        })
    }

    /// Lowers a `track_file`.
    pub(super) fn file_block(&mut self, node: &Node) -> Option<TrackedFile> {
        let Some(path) = node.text("file") else {
            let found = Diagnostic::error(node.span, "a `track_file` without `file`");
            self.say(found.expected("expected a `file` in it"));
            return None;
        };
        let start = node.child("init_file");
        let number = |start: &Node| start.args.iter().find_map(|arg| arg.text.parse().ok());
        Some(TrackedFile {
            name: node.name(),
            path,
            weight: weight(node).unwrap_or(Weight { change: 1, reverse: false }),
            initial: start.map(|start| number(start).unwrap_or(0)),
            overwritten: start.is_some_and(|it| it.args.iter().any(|arg| arg.text == "overwrite")),
        })
    }

    /// Lowers a `track_process`.
    pub(super) fn process_block(&mut self, node: &Node) -> Option<TrackedProcess> {
        let Some(process) = node.child("process").filter(|child| !child.args.is_empty()) else {
            let found = Diagnostic::error(node.span, "a `track_process` without `process`");
            self.say(found.expected("expected a `process` in it"));
            return None;
        };
        let command: Vec<String> = process.args.iter().map(|word| word.text.clone()).collect();
        let compared = match node.text("param_match").as_deref() {
            Some("initial") => Compared::Initial,
            Some(_) => Compared::Partial,
            None if command.len() > 1 => Compared::Command,
            None if node.has("full_command") => Compared::Program,
            None => Compared::Name,
        };
        self.check_name(process, &command, compared);
        let delay = node.time("delay").unwrap_or_default();
        let quorum_max = node.number("quorum_max");
        let quorum: u32 = node.number("quorum").unwrap_or(1);
        if node.has("quorum") && quorum_max.is_some_and(|most| most < quorum) {
            let text = format!("{quorum} processes at least, and fewer at most: it is never well");
            self.say(Diagnostic::error(node.span, text));
        }
        // Where none shall run, none is needed.
        let quorum = if quorum_max == Some(0) { 0 } else { quorum };
        Some(TrackedProcess {
            name: node.name(),
            command,
            compared,
            weight: weight(node).unwrap_or(Weight { change: 1, reverse: false }),
            quorum,
            quorum_max,
            fork_delay: node.time("fork_delay").unwrap_or(delay),
            terminate_delay: node.time("terminate_delay").unwrap_or(delay),
        })
    }

    /// Says if no process can have such a name.
    fn check_name(&mut self, process: &Node, command: &[String], compared: Compared) {
        let Some(name) = command.first().filter(|_| compared == Compared::Name) else { return };
        let why = match name {
            name if name.contains('/') => "a process's name has no folder",
            name if name.len() > NAME_BYTES_MAX => "a process's name has 15 bytes at most",
            _ => return,
        };
        let found = Diagnostic::warning(process.span, format!("{why}: no process is {name}"));
        self.say(found.help("with `full_command` the command is compared instead"));
    }

    /// Lowers what an instance or a group follows by the name of a block.
    pub(super) fn track_known(
        &mut self,
        node: &Node,
        list: &str,
        keywords: &[&str],
    ) -> Vec<Tracked> {
        let mut met = Met::default();
        let mut tracked = Vec::new();
        for entry in node.entries(list) {
            let Some(value) = entry.args.first() else { continue };
            if self.check_known(keywords, &value.text, value.span) {
                self.track(entry, &mut met, &mut tracked);
            }
        }
        tracked
    }

    /// Lowers `track_interface`. The own interface is followed anyway.
    pub(super) fn track_interfaces(&mut self, node: &Node, own: Option<&str>) -> Vec<Tracked> {
        let mut met = Met::default();
        let mut tracked = Vec::new();
        for entry in node.entries("track_interface") {
            let Some(value) = entry.args.first() else { continue };
            if own == Some(&*value.text) {
                let text = format!("{} is followed anyway: it is the instance's own", value.text);
                self.say(Diagnostic::warning(value.span, text).objection(Objection::General));
                continue;
            }
            if !self.defaults.dynamic_interfaces {
                self.check_interface(value);
            }
            self.track(entry, &mut met, &mut tracked);
        }
        tracked
    }

    /// Lowers `track_script`.
    pub(super) fn track_scripts(&mut self, node: &Node, scripts: &[TrackedScript]) -> Vec<Tracked> {
        let mut met = Met::default();
        let mut tracked = Vec::new();
        for entry in node.entries("track_script") {
            let Some(value) = entry.args.first() else { continue };
            let names = scripts.iter().map(|script| &*script.name);
            self.script_at.get_or_insert(value.span);
            if names.clone().any(|name| name == value.text) {
                self.track(entry, &mut met, &mut tracked);
                continue;
            }
            let text = format!("there is no `vrrp_script` {}", value.text);
            let mut found = Diagnostic::error(value.span, text);
            if let Some(meant) = nearest(&value.text, names) {
                found = found.help(format!("did you mean `{meant}`?"));
            }
            self.say(found.expected("expected the name of a `vrrp_script`"));
        }
        tracked
    }

    /// Looks for what an instance or a group follows and is not carried out yet.
    pub(super) fn check_tracked(&mut self, node: &Node) {
        for value in node.entries("track_bfd").filter_map(|entry| entry.args.first()) {
            self.check_known(SESSIONS, &value.text, value.span);
        }
    }

    fn track(&mut self, entry: &Node, met: &mut Met, tracked: &mut Vec<Tracked>) {
        let name = entry.name();
        if !met.first(&name) {
            let text = format!("{name} is followed twice; the second is left out");
            return self.say(Diagnostic::error(entry.span, text));
        }
        tracked.push(Tracked { name, weight: weight(entry) });
    }

    /// Lowers programs that learn of changes.
    pub(super) fn notify(&mut self, node: &Node) -> Notify {
        Notify {
            master: self.script(node, "notify_master"),
            backup: self.script(node, "notify_backup"),
            fault: self.script(node, "notify_fault"),
            stop: self.script(node, "notify_stop"),
            any: self.script(node, "notify"),
            lower_priority: self.script(node, "notify_master_rx_lower_pri"),
            priority_changes: node
                .switch("notify_priority_changes")
                .unwrap_or(self.defaults.priority_changes),
            mail: node.switch("smtp_alert").unwrap_or(self.defaults.mail_vrrp),
        }
    }

    /// Lowers the groups.
    pub(super) fn sync_groups<'n>(
        &mut self,
        nodes: impl Iterator<Item = &'n Node>,
        desired: &mut Desired,
    ) {
        let mut taken = Met::default();
        let names: Vec<_> =
            desired.instances.iter().map(|instance| instance.name.clone()).collect();
        let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        for node in nodes {
            if !self.is_new(node, desired.sync_groups.iter().map(|group| &*group.name)) {
                continue;
            }
            self.check_tracked(node);
            let members = self.members(node, &names, &mut taken);
            let group = SyncGroup {
                name: node.name(),
                members,
                track_interfaces: self.track_interfaces(node, None),
                track_scripts: self.track_scripts(node, &desired.scripts),
                track_files: self.track_known(node, "track_file", FILES),
                track_processes: self.track_known(node, "track_process", PROCESSES),
                notify: self.notify(node),
                kept: common::kept(&node.children),
            };
            match group.members.len() {
                0 => {
                    let text =
                        format!("no instance is in the group {}; it is left out", group.name);
                    self.say(Diagnostic::error(node.span, text));
                    continue;
                }
                1 => {
                    let text = format!("only one instance is in the group {}", group.name);
                    self.say(Diagnostic::warning(node.span, text).objection(Objection::General));
                }
                _ => {}
            }
            desired.sync_groups.push(group);
        }
    }

    fn members(&mut self, node: &Node, names: &BTreeSet<&str>, taken: &mut Met) -> Vec<String> {
        let mut members = Vec::new();
        for entry in node.entries("group") {
            let name = entry.name();
            if !names.contains(&*name) {
                let mut found =
                    Diagnostic::error(entry.span, format!("there is no instance {name}"));
                if let Some(meant) = nearest(&name, names.iter().copied()) {
                    found = found.help(format!("did you mean `{meant}`?"));
                }
                self.say(found.expected("expected the name of a `vrrp_instance`"));
            } else if !taken.first(&name) {
                let text = format!("{name} is in a group already");
                self.say(Diagnostic::error(entry.span, text));
            } else {
                members.push(name);
            }
        }
        members
    }
}

/// Returns the weight that is said in a block or an entry.
fn weight(node: &Node) -> Option<Weight> {
    let change = node.number("weight")?;
    let reverse = node.has("reverse") || node.child("weight").is_some_and(|row| row.has("reverse"));
    Some(Weight { change, reverse })
}
