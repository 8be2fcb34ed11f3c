//! From the desired state to a text that means it, with every default written out.

mod service;
mod vrrp;

use std::time::Duration;

use crate::desired::{
    Desired, DynamicInterfaces, Fifo, FlushOnStop, Global, Once, Removed, Script, Secret,
    Statement, User, Word,
};
use crate::grammar::seconds;
use crate::shell;

/// Whether passwords are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// As they are: the text is a configuration.
    Shown,
    /// As asterisks: the text is for people.
    Hidden,
}

/// Writes the canonical configuration for a desired state.
pub fn print(desired: &Desired, secrets: Secrets) -> String {
    let mut to = Printer { out: String::new(), depth: 0, secrets };
    to.global(&desired.global);
    to.word("net_namespace", desired.namespace.as_deref());
    to.statements(&desired.kept);
    for process in &desired.processes {
        to.tracked_process(process);
    }
    to.fixed(&desired.fixed);
    for script in &desired.scripts {
        to.tracked_script(script);
    }
    for file in &desired.files {
        to.tracked_file(file);
    }
    for instance in &desired.instances {
        to.instance(instance);
    }
    for group in &desired.sync_groups {
        to.sync_group(group);
    }
    for group in &desired.address_groups {
        to.address_group(group);
    }
    for server in &desired.virtual_servers {
        to.virtual_server(server);
    }
    to.out
}

struct Printer {
    out: String,
    depth: usize,
    secrets: Secrets,
}

impl Printer {
    /// Writes a line of a keyword and words that need no quotes.
    fn line(&mut self, text: impl AsRef<str>) {
        self.out.extend(std::iter::repeat_n("    ", self.depth));
        self.out.push_str(text.as_ref());
        self.out.push('\n');
    }

    /// Writes a block.
    fn block(&mut self, head: impl AsRef<str>, inside: impl FnOnce(&mut Self)) {
        self.line(format!("{} {{", head.as_ref()));
        self.depth += 1;
        inside(self);
        self.depth -= 1;
        self.line("}");
    }

    /// Writes a keyword and a word, if there is one.
    fn word(&mut self, name: &str, word: Option<&str>) {
        if let Some(word) = word {
            self.line(format!("{name} {}", quoted(word)));
        }
    }

    fn time(&mut self, name: &str, time: Duration) {
        self.line(format!("{name} {}", in_seconds(time)));
    }

    fn number(&mut self, name: &str, number: impl Into<u64>) {
        self.line(format!("{name} {}", number.into()));
    }

    fn switch(&mut self, name: &str, on: bool) {
        self.line(format!("{name} {}", if on { "on" } else { "off" }));
    }

    /// Writes a keyword that stands alone, if it holds.
    fn flag(&mut self, name: &str, holds: bool) {
        if holds {
            self.line(name);
        }
    }

    fn secret(&self, secret: &Secret) -> String {
        match self.secrets {
            Secrets::Shown => quoted(secret.reveal()),
            Secrets::Hidden => "********".to_owned(),
        }
    }

    fn command(&mut self, name: &str, command: &[String], user: Option<&User>) {
        let command = quoted_always(&shell::join(command));
        self.line(format!("{name} {command}{}", user_words(user)));
    }

    fn script(&mut self, name: &str, script: Option<&Script>) {
        if let Some(script) = script {
            self.command(name, &script.command, script.user.as_ref());
        }
    }

    fn statements(&mut self, statements: &[Statement]) {
        for statement in statements {
            let mut line = statement.name.clone();
            for word in &statement.words {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(&match word {
                    Word::Open(text) => quoted(text),
                    Word::Hidden(secret) => self.secret(secret),
                });
            }
            match &statement.block {
                Some(block) => self.block(line, |to| to.statements(block)),
                None => self.line(line),
            }
        }
    }

    fn global(&mut self, global: &Global) {
        self.block("global_defs", |to| {
            to.word("router_id", global.router_id.as_deref());
            to.mail(global);
            if let Some(user) = &global.script_user {
                to.line(format!("script_user{}", user_words(Some(user))));
            }
            to.flag("enable_script_security", global.script_security);
            to.line(format!("vrrp_mcast_group4 {}", global.group4));
            to.line(format!("vrrp_mcast_group6 {}", global.group6));
            to.time("vrrp_garp_interval", global.garp_interval);
            to.time("vrrp_gna_interval", global.gna_interval);
            if !global.startup_delay.is_zero() {
                to.time("vrrp_startup_delay", global.startup_delay);
            }
            match global.dynamic_interfaces {
                DynamicInterfaces::Off => {}
                DynamicInterfaces::On => to.line("dynamic_interfaces"),
                DynamicInterfaces::AllowChanges => to.line("dynamic_interfaces allow_if_changes"),
            }
            to.once("startup_script", global.startup.as_ref());
            to.once("shutdown_script", global.shutdown.as_ref());
            to.fifo("vrrp_notify_fifo", &global.vrrp_fifo);
            to.fifo("lvs_notify_fifo", &global.service_fifo);
            to.fifo("notify_fifo", &global.fifo);
            to.services(global);
            to.statements(&global.kept);
        });
    }

    fn mail(&mut self, global: &Global) {
        let mail = &global.mail;
        if !mail.to.is_empty() {
            self.block("notification_email", |to| {
                for receiver in &mail.to {
                    to.line(quoted(receiver));
                }
            });
        }
        self.word("notification_email_from", mail.from.as_deref());
        if let Some((host, port)) = &mail.server {
            self.line(format!("smtp_server {} {port}", quoted(host)));
        }
        self.word("smtp_helo_name", mail.helo.as_deref());
        self.time("smtp_connect_timeout", mail.timeout);
        self.flag("no_email_faults", mail.no_faults);
        self.flag("no_checker_emails", mail.no_services);
    }

    fn once(&mut self, name: &str, once: Option<&Once>) {
        if let Some(Once { script, timeout }) = once {
            self.script(name, Some(script));
            self.time(&format!("{name}_timeout"), *timeout);
        }
    }

    fn fifo(&mut self, name: &str, fifo: &Fifo) {
        if let Some(path) = &fifo.path {
            self.line(format!("{name} {}{}", quoted(path), user_words(fifo.owner.as_ref())));
        }
        self.script(&format!("{name}_script"), fifo.script.as_ref());
    }

    fn services(&mut self, global: &Global) {
        if let Some(daemon) = &global.sync_daemon {
            let mut line = format!("lvs_sync_daemon {}", quoted(&daemon.interface));
            let mut add = |name: &str, word: Option<String>| {
                if let Some(word) = word {
                    line.push_str(&format!(" {name} {word}"));
                }
            };
            add("inst", daemon.instance.as_deref().map(quoted));
            add("id", daemon.id.map(|id| id.to_string()));
            add("maxlen", daemon.message_bytes_max.map(|bytes| bytes.to_string()));
            add("port", daemon.port.map(|port| port.to_string()));
            add("ttl", daemon.ttl.map(|ttl| ttl.to_string()));
            add("group", daemon.group.map(|group| group.to_string()));
            self.line(line);
        }
        self.flag("lvs_flush", global.flush);
        match global.flush_on_stop {
            FlushOnStop::No => {}
            FlushOnStop::Services => self.line("lvs_flush_on_stop VS"),
            FlushOnStop::All => self.line("lvs_flush_on_stop"),
        }
        match global.removed {
            Removed::Keep => {}
            Removed::Reset => self.line("lvs_removed reset"),
            Removed::Silent => self.line("lvs_removed silent"),
        }
        let timeouts = global.timeouts;
        let all = [("tcp", timeouts.tcp), ("tcpfin", timeouts.tcp_fin), ("udp", timeouts.udp)];
        let words = all
            .iter()
            .filter_map(|(name, time)| time.map(|time| format!(" {name} {}", in_seconds(time))));
        let words: String = words.collect();
        if !words.is_empty() {
            self.line(format!("lvs_timeouts{words}"));
        }
        self.flag("rs_init_notifies", global.initial_notifies);
    }
}

fn in_seconds(time: Duration) -> String {
    seconds(time.as_micros() as u64)
}

fn user_words(user: Option<&User>) -> String {
    let Some(user) = user else { return String::new() };
    let group = user.group.as_deref().map(|group| format!(" {}", quoted(group)));
    format!(" {}{}", quoted(&user.user), group.unwrap_or_default())
}

/// Writes a word, in quotes if it would not be one otherwise.
fn quoted(word: &str) -> String {
    let special = |c: char| c.is_whitespace() || "#!\"{}$@~\\".contains(c);
    let spoilt = word.ends_with('\\');
    if word.is_empty() || (word.contains(special) && !spoilt) {
        quoted_always(word)
    } else {
        word.to_owned()
    }
}

fn quoted_always(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\\\""))
}
