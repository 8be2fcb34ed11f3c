//! The main thread: what is done with everything that happens.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rlvs_conf::desired::Desired;
use rlvs_control::table::Error;
use rlvs_control::vrrp::config::Config;
use rlvs_control::vrrp::{Event, Input, State, Who};
use rlvs_linux::dataplane::succession;
use rlvs_linux::process::trim_memory;
use rlvs_linux::vrrp::{Told, Vrrp};

use super::super::checks::{Event as ServiceEvent, Kind, Open};
use super::super::options::Running;
use super::chronicle::{self, Chronicle};
use super::configuration::{self, Found};
use super::files::Files;
use super::log::{Fields, Level, Log};
use super::manager::Manager;
use super::notify::Notifier;
use super::processes::Processes;
use super::routers::{self, Routers};
use super::scripts::Scripts;
use super::services::Services;
use super::signals::{self, Wish};
use super::sync::Synchronisation;
use super::watch::Watch;
use super::{
    Asker, Happening, Refusal, STATUS_CONFIGURATION, STATUS_FATAL, STATUS_SOFTWARE, dump, program,
};
use crate::face;
use crate::ipvsadm::Backend;

/// How long the last words of the virtual routers may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Everything that runs.
pub(super) struct Daemon {
    options: Running,
    log: Log,
    sender: Sender<Happening>,
    desired: Arc<Desired>,
    /// The files that the configuration was read from.
    read_from: BTreeSet<PathBuf>,
    routers: Option<Vrrp>,
    /// Virtual routers that wait for their time to start.
    waiting: Option<Config>,
    /// What the virtual routers were last told to be.
    config: Config,
    services: Option<Services>,
    backend: Backend,
    sync: Synchronisation,
    scripts: Scripts,
    files: Files,
    processes: Processes,
    notifier: Notifier,
    manager: Manager,
    chronicle: Chronicle,
    watch: Option<Watch>,
}

impl Daemon {
    /// Starts everything; the second is what happens to it.
    pub(super) fn start(
        options: &Running,
        found: Found,
        log: &Log,
    ) -> Result<(Self, Receiver<Happening>), Refusal> {
        let (sender, happenings) = channel();
        let failed = |error: std::io::Error| (STATUS_FATAL, error.to_string());
        signals::listen(options.ignore_interrupt, sender.clone()).map_err(failed)?;
        let version = env!("CARGO_PKG_VERSION");
        let shown = options.file.display();
        log.say(Level::Info, format!("keepalived of rlvs {version} starts by {shown}"));
        found.lines.iter().for_each(|(level, line)| log.say(*level, line));
        if found.empty {
            log.say(Level::Warning, format!("{shown} asks for nothing; nothing is done"));
        }
        let global = &found.desired.global;
        program::run_once(global.startup.as_ref(), "startup_script", global, log);
        let Routers { config, left_out } = routers::of(&found.desired);
        left_out.iter().for_each(|line| log.say(Level::Warning, line));
        let backend = backend(options)?;
        let mut daemon = Self {
            options: options.clone(),
            log: log.clone(),
            sender,
            routers: None,
            waiting: None,
            config: Config::default(),
            services: None,
            backend,
            sync: Synchronisation::new(backend),
            scripts: Scripts::default(),
            files: Files::default(),
            processes: Processes::default(),
            notifier: Notifier::new(&found.desired, log),
            manager: Manager::find(),
            chronicle: Chronicle::new(&options.file),
            watch: None,
            desired: Arc::new(found.desired),
            read_from: found.files,
        };
        daemon.delay_routers()?;
        daemon.follow_files();
        daemon.follow_processes();
        daemon.route(config)?;
        daemon.follow();
        daemon.serve_desired()?;
        daemon.synchronise();
        daemon.watch();
        daemon.manager.ready(&daemon.summary());
        trim_memory();
        Ok((daemon, happenings))
    }

    /// Does what happens until the end is wanted, and returns the status to end with.
    pub(super) fn serve(&mut self, happenings: &Receiver<Happening>) -> u8 {
        let mut alive_at = Instant::now();
        loop {
            let happening = match self.manager.interval() {
                None => happenings.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(interval) => {
                    if alive_at <= Instant::now() {
                        // Whoever answers, runs.
                        self.status();
                        self.manager.alive();
                        alive_at = Instant::now() + interval;
                    }
                    let left = alive_at.saturating_duration_since(Instant::now());
                    happenings.recv_timeout(left)
                }
            };
            let end = match happening {
                Ok(happening) => self.happened(happening),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(STATUS_SOFTWARE),
            };
            if let Some(status) = end {
                return status;
            }
        }
    }

    /// Does what is to be done; returns a status if the process must end.
    fn happened(&mut self, happening: Happening) -> Option<u8> {
        match happening {
            Happening::Wish(Wish::End) => return Some(0),
            Happening::Wish(Wish::Reload) => self.reload(),
            Happening::Wish(Wish::Data) => {
                let servers = self.services.as_ref().map(Services::status).unwrap_or_default();
                self.dumped(dump::data(&self.desired, &self.status(), &servers));
            }
            Happening::Wish(Wish::Statistics) => {
                self.dumped(dump::statistics(&self.status()));
            }
            Happening::Routers(told) => self.told(told),
            Happening::RoutersDue => {
                let waiting = self.waiting.take();
                match (waiting, &self.routers) {
                    (Some(config), Some(routers)) => routers.reload(config),
                    (Some(config), None) if config != Config::default() => {
                        if let Err((status, why)) = self.begin_routers(config) {
                            self.log.say(Level::Error, why);
                            return Some(status);
                        }
                    }
                    _ => {}
                }
            }
            Happening::RoutersLost => {
                self.log.say(Level::Error, "the virtual routers have ended of themselves");
                // Nobody is there to be asked for an orderly end; the addresses stay.
                if let Some(routers) = self.routers.take() {
                    std::mem::forget(routers);
                }
                return Some(STATUS_SOFTWARE);
            }
            Happening::Service(event) => self.service(&event),
            Happening::ServicesLost(why) => {
                let line = format!("the checks have ended of themselves: {why}");
                self.log.say(Level::Error, line);
                return Some(STATUS_SOFTWARE);
            }
            Happening::Script { name, good, news } => self.script(&name, good, news),
            Happening::Number { name, number } => self.number(&name, number),
            Happening::Processes { name, good, count } => self.process(&name, good, count),
            Happening::Asked(to) => self.answer(to),
        }
        None
    }

    /// Ends in order: masters resign at once, then the rest.
    pub(super) fn stop(&mut self, happenings: &Receiver<Happening>) {
        self.manager.stopping();
        self.log.say(Level::Info, "stopping");
        if let Some(routers) = self.routers.take() {
            routers.stop();
            while let Ok(happening) = happenings.recv_timeout(LAST_WORDS) {
                match happening {
                    Happening::Routers(Told::Ended) | Happening::RoutersLost => break,
                    Happening::Routers(told) => self.told(told),
                    Happening::Service(event) => self.service(&event),
                    _ => {}
                }
            }
        }
        self.watch = None;
        if let Some(services) = self.services.take() {
            services.stop(self.options.keep_services);
            while let Ok(happening) = happenings.try_recv() {
                if let Happening::Service(event) = happening {
                    self.service(&event);
                }
            }
        }
        let failed = self.sync.stop();
        self.say_failed(failed);
        let global = &self.desired.global;
        program::run_once(global.shutdown.as_ref(), "shutdown_script", global, &self.log);
        self.log.say(Level::Info, "stopped");
    }

    /// Moves to what the file says now, if all of it is right.
    fn reload(&mut self) {
        self.manager.reloading();
        match self.try_reload() {
            Ok(()) => {
                self.chronicle.reloaded(Ok(&self.config));
                self.log.say(Level::Info, format!("reloaded: {}", self.summary()));
            }
            Err(why) => {
                self.chronicle.reloaded(Err(&why));
                self.log.say(Level::Error, format!("not reloaded, all goes on as before: {why}"));
            }
        }
        self.manager.ready(&self.summary());
    }

    fn try_reload(&mut self) -> Result<(), String> {
        let found = configuration::find(&self.options);
        found.lines.iter().for_each(|(level, line)| self.log.say(*level, line));
        let shown = self.options.file.display();
        if let Some((_, why)) = found.fatal {
            return Err(why);
        }
        if found.empty {
            return Err(format!("{shown} asks for nothing"));
        }
        if found.errors > 0 {
            return Err(format!("{shown} has {} error(s)", found.errors));
        }
        // Whoever includes what need not be there has never had it; but what is in force does not go
        // because a file cannot be read.
        if let Some(path) = found.unread.iter().find(|path| self.read_from.contains(*path)) {
            return Err(format!("{}, which it includes, cannot be read any more", path.display()));
        }
        if found.desired.namespace != self.desired.namespace {
            return Err(format!("{shown} has another net_namespace, which only a restart enters"));
        }
        let Routers { config, left_out } = routers::of(&found.desired);
        if let Some(refusal) = config.refusals().first() {
            return Err(refusal.to_string());
        }
        left_out.iter().for_each(|line| self.log.say(Level::Warning, line));
        self.notifier.reload(&found.desired);
        (self.desired, self.read_from) = (Arc::new(found.desired), found.files);
        self.follow();
        self.follow_files();
        self.follow_processes();
        self.route(config).map_err(|(_, why)| why)?;
        self.serve_desired().map_err(|(_, why)| why)?;
        self.synchronise();
        Ok(())
    }

    /// A tracked file says another number.
    fn number(&mut self, name: &str, number: i32) {
        self.log.say(Level::Info, format!("track_file {name} says {number}"));
        if let Some(routers) = &self.routers {
            routers.value(name, number);
        }
    }

    /// As many processes run as shall, or not.
    fn process(&mut self, name: &str, good: bool, count: usize) {
        let (level, is) = if good { (Level::Info, "well") } else { (Level::Warning, "not well") };
        self.log.say(level, format!("track_process {name}: {count} run, which is {is}"));
        if let Some(routers) = &self.routers {
            routers.process(name, good);
        }
    }

    /// Lets connection synchronisation be as the configuration has it.
    fn synchronise(&mut self) {
        let wanted = self.desired.global.sync_daemon.as_ref();
        let followed = wanted.and_then(|wanted| wanted.instance.as_deref());
        let is_master = |followed: &str| {
            let states = self.status();
            states.iter().any(|one| &*one.name == followed && one.state == State::Master)
        };
        let master = followed.is_some_and(is_master);
        let failed = self.sync.reload(&self.desired, master);
        self.say_failed(failed);
    }

    fn say_failed(&self, failed: Vec<rlvs_control::table::Error>) {
        for error in failed {
            self.log.say(Level::Error, format!("lvs_sync_daemon: {error}"));
        }
    }

    /// Runs the tracked scripts of the configuration.
    fn follow(&mut self) {
        let (scripts, global) = (&self.desired.scripts, &self.desired.global);
        if let Err(error) = self.scripts.update(scripts, global, &self.sender) {
            self.log.say(Level::Error, format!("a tracked script cannot be run: {error}"));
        }
    }

    /// Watches the tracked files of the configuration; virtual routers know them before they begin.
    fn follow_files(&mut self) {
        let (numbers, failed) = self.files.update(&self.desired.files, &self.sender);
        failed.iter().for_each(|line| self.log.say(Level::Error, line));
        if let Some(routers) = &self.routers {
            numbers.iter().for_each(|(name, number)| routers.value(name, *number));
        }
    }

    /// Watches the tracked processes of the configuration, as the files.
    fn follow_processes(&mut self) {
        let (known, said) = self.processes.update(&self.desired.processes, &self.sender);
        said.iter().for_each(|line| self.log.say(Level::Notice, line));
        if let Some(routers) = &self.routers {
            known.iter().for_each(|(name, good)| routers.process(name, *good));
        }
    }

    /// Lets the virtual routers be these.
    fn route(&mut self, mut config: Config) -> Result<(), Refusal> {
        if config == self.config {
            return Ok(());
        }
        self.config = config.clone();
        if let Some(waiting) = &mut self.waiting {
            // What does not depend on their states does not wait.
            let fixed = Config { fixed: config.fixed.clone(), ..Config::default() };
            *waiting = std::mem::replace(&mut config, fixed);
        }
        match &self.routers {
            Some(routers) => routers.reload(config),
            None if config == Config::default() => {}
            None => self.begin_routers(config)?,
        }
        Ok(())
    }

    /// Lets virtual routers wait for `vrrp_startup_delay`.
    fn delay_routers(&mut self) -> Result<(), Refusal> {
        let delay = self.desired.global.startup_delay;
        if delay.is_zero() {
            return Ok(());
        }
        self.waiting = Some(Config::default());
        self.log.say(Level::Info, format!("the virtual routers start in {delay:?}"));
        let due = Instant::now() + delay;
        let sender = self.sender.clone();
        let wait = move || {
            while let Some(left) = due.checked_duration_since(Instant::now())
                && !left.is_zero()
            {
                std::thread::park_timeout(left);
            }
            // The main thread may have ended.
            sender.send(Happening::RoutersDue).ok();
        };
        let thread = std::thread::Builder::new().name("delay".to_owned()).spawn(wait);
        thread.map(drop).map_err(|error| (STATUS_FATAL, error.to_string()))
    }

    fn begin_routers(&mut self, config: Config) -> Result<(), Refusal> {
        let number = |(name, value): (&str, i32)| Input::Value { name: name.into(), value };
        let process = |(name, good): (&str, bool)| Input::Process { name: name.into(), good };
        let known = self.files.numbers().map(number);
        let known = known.chain(self.processes.known().map(process));
        let (routers, told) = Vrrp::start_with(config, known).map_err(|error| {
            let status = match error {
                rlvs_linux::vrrp::Error::Refused(_) => STATUS_CONFIGURATION,
                _ => STATUS_FATAL,
            };
            let source = std::error::Error::source(&error);
            let source = source.map_or(String::new(), |source| format!(": {source}"));
            (status, format!("{error}{source}"))
        })?;
        self.routers = Some(routers);
        let sender = self.sender.clone();
        let forward = move || {
            for told in told {
                // The main thread may have ended.
                sender.send(Happening::Routers(told)).ok();
            }
            sender.send(Happening::RoutersLost).ok();
        };
        let thread = std::thread::Builder::new().name("told".to_owned()).spawn(forward);
        thread.map(drop).map_err(|error| (STATUS_FATAL, error.to_string()))
    }

    /// Lets the virtual servers be those of the configuration.
    fn serve_desired(&mut self) -> Result<(), Refusal> {
        if let Some(services) = &self.services {
            services.reload(self.desired.clone());
            return Ok(());
        }
        if self.desired.virtual_servers.is_empty() {
            return Ok(());
        }
        let backend = self.backend;
        if backend == Backend::Rlvs {
            self.attach();
        }
        let (mut opened, log) = (false, self.log.clone());
        let open: Open = Box::new(move || {
            let log = log.clone();
            let table =
                face::open_telling(backend, Box::new(move |line| log.say(Level::Info, line)));
            if table.is_err() && opened && matches!(succession::other_layout(), Ok(Some(_))) {
                return Err(Error::System(
                    "another version of rlvs has taken it over, with maps that this process does not \
                     know; packets are balanced by it; restart this daemon, so that the installed \
                     version keeps the table"
                        .to_owned(),
                ));
            }
            opened |= table.is_ok();
            table
        });
        let services = Services::start(&self.desired, open, self.sender.clone());
        self.services = Some(services.map_err(|error| (STATUS_FATAL, error.to_string()))?);
        Ok(())
    }

    /// Attaches the data plane, if nothing is attached.
    fn attach(&self) {
        match face::attach_if_detached() {
            Ok(lines) => lines.iter().for_each(|line| self.log.say(Level::Info, line)),
            Err(error) => {
                let line = format!("nothing is balanced; attaching failed: {error:#}");
                self.log.say(Level::Error, line);
            }
        }
    }

    /// Lets others ask how the daemon is.
    fn watch(&mut self) {
        let started = Watch::start(self.sender.clone(), self.options.metrics, self.backend);
        let lines = match started {
            Ok((watch, lines)) => {
                self.watch = Some(watch);
                lines
            }
            Err(error) => vec![format!("nobody can ask how this daemon is: {error}")],
        };
        lines.iter().for_each(|line| self.log.say(Level::Warning, line));
    }

    /// Tells how the daemon is.
    fn answer(&self, to: Asker) {
        let mut state = Box::new(self.chronicle.state(&self.config, &self.status()));
        state.backend = self.backend.name().to_owned();
        state.log = self.log.state();
        match &self.services {
            Some(services) => services.answer(state, to),
            // Whoever asked may have gone.
            None => drop(to.send(state)),
        }
    }

    fn service(&mut self, event: &ServiceEvent) {
        self.chronicle.service(event);
        let level = match event.kind {
            Kind::ServerUp | Kind::Weight | Kind::QuorumUp | Kind::Drained => Level::Notice,
            Kind::Failed => Level::Info,
            Kind::Carried => Level::Debug,
            Kind::ServerDown | Kind::NotAsked | Kind::Unsupported | Kind::Foreign => Level::Warning,
            Kind::QuorumDown | Kind::Refused => Level::Error,
        };
        let words = [
            ("event", event.kind.name()),
            ("service", &event.service),
            ("server", event.server.as_deref().unwrap_or_default()),
            ("cause", &event.cause),
            ("consequence", &event.consequence),
        ];
        self.log.tell(level, fields(words), event);
        self.notifier.service(event);
    }

    fn told(&mut self, told: Told) {
        self.chronicle.told(&told);
        match told {
            Told::State { who, state, priority } => {
                if let Who::Instance(name) = &who {
                    let failed = self.sync.follow(name, state);
                    self.say_failed(failed);
                }
                self.notifier.state(&who, state, priority);
            }
            Told::Log { about, event } => {
                match &event {
                    Event::Priority { to, .. } => self.notifier.priority(&about, *to),
                    Event::LowerPriority { priority, .. } => {
                        self.notifier.lower_priority(&about, *priority);
                    }
                    _ => {}
                }
                let consequence = self.consequence(&about, &event);
                let words = [
                    ("event", chronicle::name_of(&event)),
                    ("router", &about),
                    ("cause", &event.to_string()),
                    ("consequence", consequence.trim_start_matches("; ")),
                ];
                let about = if about.is_empty() { "VRRP" } else { &*about };
                let line = format!("{about}: {event}{consequence}");
                self.log.tell(level_of(&event), fields(words), line);
            }
            Told::Failed { what } => self.log.say(Level::Error, what),
            Told::Without { what } => self.log.say(Level::Notice, what),
            Told::Ended => {}
        }
    }

    /// Returns what follows from an event.
    fn consequence(&self, about: &str, event: &Event) -> String {
        let Event::Transition { from, to, .. } = event else { return String::new() };
        let does = match (from, to) {
            (_, State::Master) => "takes",
            (State::Master, _) => "gives up",
            _ => return String::new(),
        };
        let instance = self.config.instances.iter().find(|one| &*one.name == about);
        let Some(instance) = instance else { return String::new() };
        let addresses: Vec<String> = instance.held().map(|held| held.address.to_string()).collect();
        format!("; it {does} {}", addresses.join(", "))
    }

    fn script(&mut self, name: &str, good: bool, news: Option<String>) {
        self.chronicle.script(name, good, news.as_deref());
        if let Some(news) = news {
            let level = if good { Level::Info } else { Level::Warning };
            let words = [("event", "script"), ("script", name), ("cause", &news)];
            self.log.tell(level, fields(words), format!("script {name}: {news}"));
        }
        if let Some(routers) = &self.routers {
            routers.script(name, good);
        }
    }

    fn status(&self) -> Vec<rlvs_control::vrrp::Status> {
        self.routers.as_ref().map_or_else(Vec::new, Vrrp::status)
    }

    fn dumped(&self, outcome: std::io::Result<&'static str>) {
        match outcome {
            Ok(path) => self.log.say(Level::Info, format!("{path} is written")),
            Err(error) => self.log.say(Level::Error, format!("writing a file in /tmp: {error}")),
        }
    }

    /// Returns what runs, in a few words.
    fn summary(&self) -> String {
        let servers = &self.desired.virtual_servers;
        let real: usize = servers.iter().map(|server| server.real_servers.len()).sum();
        let (routers, servers) = (self.config.instances.len(), servers.len());
        format!("{routers} virtual router(s), {servers} virtual server(s), {real} real server(s)")
    }
}

/// Returns whose table is kept.
fn backend(options: &Running) -> Result<Backend, Refusal> {
    crate::configuration::backend(options.backend.as_deref())
        .map_err(|error| (STATUS_FATAL, format!("{error:#}")))
}

fn fields<const N: usize>(words: [(&'static str, &str); N]) -> Fields {
    words.into_iter().map(|(name, word)| (name, word.to_owned())).collect()
}

fn level_of(event: &Event) -> Level {
    match event {
        Event::Transition { .. } | Event::Priority { .. } | Event::Resigned { .. } => Level::Notice,
        Event::ReloadRefused(_) | Event::TwoOwners { .. } => Level::Error,
        Event::AddressesDiffer { .. }
        | Event::Rejected { .. }
        | Event::LowerPriority { .. }
        | Event::Restored { .. }
        | Event::RoutingRestored { .. } => Level::Warning,
        Event::IntervalLearned { .. } => Level::Info,
    }
}
