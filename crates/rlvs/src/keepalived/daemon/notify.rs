//! Programs, pipes and mails that tell of changes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rlvs_conf::desired::{Desired, Fifo, Global, Notify, Script};
use rlvs_control::vrrp::{State, Who};

use super::super::checks::{Event, Kind};
use super::log::{Level, Log};
use super::mail::Mailer;
use super::program;

/// Who learns of what.
#[derive(Debug)]
pub(super) struct Notifier {
    global: Global,
    instances: BTreeMap<String, Notify>,
    groups: BTreeMap<String, Notify>,
    /// The state that was last told, by instance.
    states: BTreeMap<String, State>,
    routers: Pipe,
    services: Pipe,
    all: Pipe,
    mailer: Mailer,
    log: Log,
}

impl Notifier {
    /// Begins; the pipes are made and their readers started.
    pub(super) fn new(desired: &Desired, log: &Log) -> Self {
        let global = desired.global.clone();
        let open = |fifo: &Fifo| Pipe::open(fifo, &global, log);
        let (routers, services) = (open(&global.vrrp_fifo), open(&global.service_fifo));
        let all = open(&global.fifo);
        let (instances, groups) = listeners(desired);
        let (log, states) = (log.clone(), BTreeMap::new());
        let mailer = Mailer::start(&log);
        Self { global, instances, groups, states, routers, services, all, mailer, log }
    }

    /// Takes another configuration. Pipes that are the same stay open.
    pub(super) fn reload(&mut self, desired: &Desired) {
        let global = desired.global.clone();
        let old = std::mem::replace(&mut self.global, global);
        (self.instances, self.groups) = listeners(desired);
        for (pipe, old, new) in [
            (&mut self.routers, &old.vrrp_fifo, &self.global.vrrp_fifo),
            (&mut self.services, &old.service_fifo, &self.global.service_fifo),
            (&mut self.all, &old.fifo, &self.global.fifo),
        ] {
            if old != new {
                *pipe = Pipe::open(new, &self.global, &self.log);
            }
        }
    }

    /// Tells that an instance or a group is in another state.
    pub(super) fn state(&mut self, who: &Who, state: State, priority: u8) {
        let (kind, name, notify) = match who {
            Who::Instance(name) => ("INSTANCE", name, self.instances.get(&**name)),
            Who::Group(name) => ("GROUP", name, self.groups.get(&**name)),
        };
        if let Who::Instance(name) = who {
            self.states.insert(name.to_string(), state);
        }
        let word = state.to_string();
        if let Some(notify) = notify {
            let own = match state {
                State::Master => &notify.master,
                State::Backup => &notify.backup,
                State::Fault => &notify.fault,
                State::Stopped => &notify.stop,
                State::Initialize => &None,
            };
            self.start(own.as_ref(), &[]);
            let more = [kind.to_owned(), name.to_string(), word.clone(), priority.to_string()];
            self.start(notify.any.as_ref(), &more);
            let wanted = match state {
                State::Master | State::Backup => notify.mail,
                State::Fault => notify.mail && !self.global.mail.no_faults,
                State::Initialize | State::Stopped => false,
            };
            if wanted {
                let what = if matches!(who, Who::Group(_)) { "Group" } else { "Instance" };
                let subject = format!("VRRP {what} {name} - Entering {word} state");
                let text = match who {
                    Who::Instance(_) => format!("{name} is {word}, with priority {priority}."),
                    Who::Group(_) => format!("All instances of {name} are {word}."),
                };
                self.mailer.send(&self.global, &subject, &text);
            }
        }
        self.tell_routers(&format!("{kind} \"{name}\" {word} {priority}\n"));
    }

    /// Tells that the priority of an instance changed.
    pub(super) fn priority(&mut self, name: &str, priority: u8) {
        let wanted = self.instances.get(name).is_some_and(|notify| notify.priority_changes);
        let word = match self.states.get(name) {
            Some(State::Master) => "MASTER_PRIORITY",
            Some(State::Backup) => "BACKUP_PRIORITY",
            _ => return,
        };
        if wanted {
            self.tell_routers(&format!("INSTANCE \"{name}\" {word} {priority}\n"));
        }
    }

    /// Tells that a master has heard a lower priority.
    pub(super) fn lower_priority(&mut self, name: &str, priority: u8) {
        if self.states.get(name) != Some(&State::Master) {
            return;
        }
        let script = self.instances.get(name).and_then(|notify| notify.lower_priority.as_ref());
        self.start(script, &[]);
        self.tell_routers(&format!("INSTANCE \"{name}\" MASTER_RX_LOWER_PRI {priority}\n"));
    }

    fn start(&self, script: Option<&Script>, more: &[String]) {
        if let Some(script) = script {
            program::start(script, more, &self.global, &self.log);
        }
    }

    /// Tells of a virtual or a real server.
    pub(super) fn service(&mut self, event: &Event) {
        self.start(event.script.as_ref(), &[]);
        let (service, server) = (&event.service, event.server.as_deref().unwrap_or_default());
        let line = match event.kind {
            Kind::ServerUp => format!("RS {server} {service} UP\n"),
            Kind::ServerDown => format!("RS {server} {service} DOWN\n"),
            Kind::QuorumUp => format!("VS {service} UP\n"),
            Kind::QuorumDown => format!("VS {service} DOWN\n"),
            _ => return,
        };
        self.services.write(&line, &self.log);
        self.all.write(&line, &self.log);
        if event.mail && !self.global.mail.no_services {
            let word = line.trim_end().rsplit_once(' ').map_or("", |(_, word)| word);
            let subject = match &event.server {
                Some(server) => format!("Realserver {server} of virtual server {service} - {word}"),
                None => format!("Virtualserver {service} - {word}"),
            };
            self.mailer.send(&self.global, &subject, &event.to_string());
        }
    }

    fn tell_routers(&mut self, line: &str) {
        self.routers.write(line, &self.log);
        self.all.write(line, &self.log);
    }
}

type Listeners = BTreeMap<String, Notify>;

fn listeners(desired: &Desired) -> (Listeners, Listeners) {
    let instances = desired.instances.iter().map(|one| (one.name.clone(), one.notify.clone()));
    let groups = desired.sync_groups.iter().map(|one| (one.name.clone(), one.notify.clone()));
    (instances.collect(), groups.collect())
}

/// A named pipe. Its reader may come and go; what nobody reads in time is lost.
#[derive(Debug, Default)]
struct Pipe {
    path: String,
    file: Option<File>,
}

impl Pipe {
    fn open(fifo: &Fifo, global: &Global, log: &Log) -> Self {
        let Some(path) = fifo.path.clone() else { return Self::default() };
        let file = match make(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                log.say(Level::Error, format!("the pipe {path}: {error}; it gets nothing"));
                None
            }
        };
        if let Some(script) = &fifo.script {
            program::start(script, std::slice::from_ref(&path), global, log);
        }
        Self { path, file }
    }

    fn write(&mut self, line: &str, log: &Log) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(line.as_bytes()) {
            let (path, line) = (&self.path, line.trim());
            log.say(Level::Warning, format!("the pipe {path} did not take `{line}`: {error}"));
        }
    }
}

/// Opens a pipe, which is made if it is not there; opened so that a missing reader is no error.
fn make(path: &str) -> io::Result<File> {
    match mkfifo(path, Mode::from_bits_truncate(0o600)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is no pipe"));
    }
    Ok(file)
}
