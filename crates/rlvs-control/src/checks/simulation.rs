//! Health and upkeep played against servers that fail at random, with a virtual clock.
//!
//! 256 seeds in a normal run; `RLVS_SIM_SEED` plays one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::reload::part;
use super::*;
use crate::memory::MemoryTable;
use crate::model::{
    Connection, ForwardingMethod, Service as TableService, ServiceEntry, ServiceId, Timeouts,
};
use crate::table::{Error, Table};
use crate::upkeep::Upkeep;

const SEEDS: u64 = 256;
const STEPS: u32 = 250;

#[test]
fn no_service_is_without_a_destination_that_could_serve() {
    let one = std::env::var("RLVS_SIM_SEED").ok().and_then(|text| text.parse().ok());
    for seed in one.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let played = std::panic::catch_unwind(|| World::new(seed).play());
        assert!(played.is_ok(), "seed {seed}: RLVS_SIM_SEED={seed} plays it again");
    }
}

struct Random(u64);

impl Random {
    /// Returns a number below `limit`, by xorshift64*.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a check looks at: the server's number and how it answers is the world's.
type Target = (u8, u8);

struct World {
    random: Random,
    now: Instant,
    health: Health<Target>,
    services: Vec<Service<Target>>,
    upkeep: Upkeep,
    table: Watched,
    /// Attempts under way, by the moment of their end; `None` for one that never ends.
    running: BTreeMap<CheckId, (Option<Instant>, AttemptId, Outcome)>,
    /// How servers are.
    good: BTreeMap<u8, bool>,
    started: BTreeMap<CheckId, Instant>,
    /// Every server answers at once.
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let now = Instant::now();
        let services: Vec<_> = (0..1 + random.below(3)).map(|n| service(&mut random, n)).collect();
        let health = Health::new(services.clone(), seed, now);
        Self {
            random,
            now,
            health,
            services,
            upkeep: Upkeep::default(),
            table: Watched::default(),
            running: BTreeMap::new(),
            good: (0..8).map(|number| (number, true)).collect(),
            started: BTreeMap::new(),
            calm: false,
        }
    }

    fn play(mut self) {
        self.drain();
        for _ in 0..STEPS {
            match self.random.below(40) {
                0..6 => self.toggle(),
                6 => self.reload(),
                7 => self.edit_by_hand(),
                8 => self.table.refuses = self.random.chance(30),
                9 => self.suspend(),
                _ => {}
            }
            self.step();
        }
        self.settle();
    }

    /// Goes on to the next moment at which something happens.
    fn step(&mut self) {
        let timer = self.health.poll_timeout().map(|(at, _)| at);
        let ends = self.running.values().filter_map(|(at, ..)| *at).min();
        let next = [timer, ends].into_iter().flatten().min();
        self.now = next.unwrap_or(self.now + Duration::from_secs(1)).max(self.now);
        let ended: Vec<CheckId> = self
            .running
            .iter()
            .filter(|(_, (at, ..))| at.is_some_and(|at| at <= self.now))
            .map(|(&id, _)| id)
            .collect();
        for id in ended {
            let (_, attempt, outcome) = self.running.remove(&id).unwrap();
            self.health.handle(Input::Finished(id, attempt, outcome), self.now);
        }
        self.health.handle_timeout(self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.health.poll_output() {
            match output {
                Output::Start(id, attempt) => self.start(id, attempt),
                Output::Cancel(id) => {
                    assert!(self.running.remove(&id).is_some(), "{id:?} was not running");
                }
                Output::Pool(name) => self.want(&name),
                Output::Event(_) => {}
            }
        }
        self.apply();
    }

    fn start(&mut self, id: CheckId, attempt: AttemptId) {
        let &(server, _) = self.health.request(id).unwrap();
        let good = self.good[&server] || self.calm;
        let took = Duration::from_millis(self.random.below(300));
        let ends = self.calm || !self.random.chance(3);
        let end = ends.then_some(self.now + if self.calm { Duration::ZERO } else { took });
        let outcome = match self.random.below(50) {
            _ if self.calm => Outcome::Good,
            0 => Outcome::Unknown("no room".into()),
            1 if good => Outcome::Weight(self.random.below(3) as u32),
            _ if good => Outcome::Good,
            _ => Outcome::Bad("refused".into()),
        };
        let before = self.running.insert(id, (end, attempt, outcome));
        assert!(before.is_none(), "{id:?} runs twice");
        self.started.insert(id, self.now);
    }

    fn want(&mut self, name: &str) {
        let known = self.services.iter().position(|service| service.name == name);
        let number = name.trim_start_matches("VS").parse().unwrap();
        let destinations = self.health.destinations(name);
        let wish = known.map(|_| (table_service(number), destinations));
        self.upkeep.want(table_id(number), wish);
    }

    fn apply(&mut self) {
        if !self.upkeep.is_dirty() {
            return;
        }
        let services = &self.services;
        self.table.could_serve = services
            .iter()
            .map(|service| (table_id(number(service)), self.could_serve(service)))
            .collect();
        self.upkeep.apply(&mut self.table).unwrap();
    }

    /// Returns whether a service has somebody who takes connections, as far as health knows.
    fn could_serve(&self, service: &Service<Target>) -> bool {
        let known = self.health.destinations(&service.name);
        let serves = known.iter().any(|to| to.weight > 0);
        let good = |server: &Server<Target>| {
            self.health.is_up(&service.name, server.destination.id) == Some(true)
        };
        let somebody =
            service.servers.iter().any(|server| good(server) && server.destination.weight > 0);
        // A check may have asked for weight 0.
        assert!(
            serves || service.sorry.is_none(),
            "{}: a sorry server does not serve",
            service.name
        );
        assert!(serves || !somebody || !self.no_weight_asked(service), "{}", service.name);
        serves
    }

    fn no_weight_asked(&self, service: &Service<Target>) -> bool {
        let state = self.health.services.iter().find(|state| state.name == service.name).unwrap();
        state.servers.iter().all(|server| server.asked.is_none())
    }

    fn toggle(&mut self) {
        let server = self.random.below(8) as u8;
        let good = self.good.get_mut(&server).unwrap();
        *good = !*good;
    }

    fn reload(&mut self) {
        let at = self.random.below(self.services.len() as u64);
        let mut services = self.services.clone();
        match self.random.below(4) {
            0 => services[at as usize] = service(&mut self.random, at),
            1 => services.push(service(&mut self.random, services.len() as u64)),
            2 if services.len() > 1 => {
                services.pop();
            }
            _ => {}
        }
        let same = services == self.services;
        let running = self.running.len();
        let before: Vec<_> =
            services.iter().map(|service| self.health.destinations(&service.name)).collect();
        self.services = services.clone();
        self.health.reload(services, self.now);
        if same {
            let after = self.services.iter().map(|it| self.health.destinations(&it.name));
            assert_eq!(after.collect::<Vec<_>>(), before, "the same again changes nothing");
        }
        self.drain();
        assert!(!same || self.running.len() == running, "the same again ends nothing");
    }

    fn edit_by_hand(&mut self) {
        self.table.watching = false;
        let entries = self.table.services().unwrap();
        let at = self.random.below(entries.len().max(1) as u64) as usize;
        if let Some(entry) = entries.get(at) {
            let id = entry.service.id;
            match entry.destinations.first() {
                Some(to) if self.random.chance(50) => {
                    self.table.inner.delete_destination(id, to.destination.id).unwrap();
                }
                _ => self.table.inner.delete_service(id).unwrap(),
            }
        }
        let foreign = ServiceId::Mark { family: crate::model::Family::V4, mark: 99 };
        drop(self.table.inner.add_service(&TableService { id: foreign, ..table_service(0) }));
        self.upkeep.reconcile(&mut self.table).unwrap();
        self.table.watching = true;
        assert!(self.table.inner.service(foreign).is_ok(), "a service of somebody else is gone");
    }

    fn suspend(&mut self) {
        let at = self.random.below(self.services.len() as u64) as usize;
        let suspended = self.random.chance(50);
        let name = self.services[at].name.clone();
        self.health.handle(Input::Suspended(name, suspended), self.now);
        self.drain();
    }

    /// Lets everything be good and holds what then is against the configuration.
    fn settle(&mut self) {
        self.table.refuses = false;
        self.calm = true;
        for service in self.services.clone() {
            self.health.handle(Input::Suspended(service.name, false), self.now);
        }
        self.drain();
        let end = self.now + Duration::from_secs(40);
        while self.now < end {
            self.step();
        }
        let checks = self.health.places.iter().map(|(id, _)| id);
        let period_max = Duration::from_secs(6);
        for id in checks {
            assert!(self.now - self.started[id] < period_max, "{id:?} does not run any more");
        }
        for service in &self.services {
            let bad: Vec<_> = service
                .servers
                .iter()
                .filter(|to| self.health.is_up(&service.name, to.destination.id) != Some(true))
                .collect();
            assert!(bad.is_empty(), "{bad:?} have not recovered");
            let whole = self.no_weight_asked(service) && !service.servers.is_empty();
            assert!(!whole || self.health.has_quorum(&service.name), "{service:?}");
        }
        self.upkeep.apply(&mut self.table).unwrap();
        for service in &self.services {
            let entry = self.table.service(table_id(number(service))).unwrap();
            let mut there: Vec<_> = entry.destinations.iter().map(|to| to.destination).collect();
            let mut wanted = self.health.destinations(&service.name);
            there.sort_by_key(|to| to.id);
            wanted.sort_by_key(|to| to.id);
            assert_eq!(there, wanted);
        }
    }
}

fn number(service: &Service<Target>) -> u64 {
    service.name.trim_start_matches("VS").parse().unwrap()
}

fn table_id(number: u64) -> ServiceId {
    ServiceId::Mark { family: crate::model::Family::V4, mark: number as u32 + 1 }
}

fn table_service(number: u64) -> TableService {
    TableService {
        id: table_id(number),
        scheduler: "wrr".to_owned(),
        scheduler_flags: 0,
        one_packet: false,
        persistence: None,
        persistence_engine: None,
    }
}

fn destination(number: u8, weight: u32) -> Destination {
    Destination {
        id: DestinationId { address: [10, 0, 0, number + 1].into(), port: 80 },
        method: ForwardingMethod::Masquerade,
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
    }
}

fn service(random: &mut Random, number: u64) -> Service<Target> {
    let mut servers = Vec::new();
    let mut total = 0;
    for number in 0..8 {
        if !random.chance(40) {
            continue;
        }
        let checks = (0..random.below(3)).map(|at| check(random, (number, at as u8))).collect();
        let weight = 1 + random.below(3) as u32;
        total += weight;
        let (destination, inhibit) = (destination(number, weight), random.chance(30));
        servers.push(Server { destination, inhibit, checks });
    }
    let weight = 1 + random.below(u64::from(total.max(1))) as u32;
    let hysteresis = random.below(u64::from(weight)) as u32;
    let quorum = Quorum { weight, hysteresis };
    let inhibit = random.chance(30);
    let sorry = Sorry { destination: destination(random.below(12) as u8, 1), inhibit };
    let sorry = random.chance(50).then_some(sorry);
    Service { name: format!("VS{number}"), quorum, sorry, servers }
}

fn check(random: &mut Random, request: Target) -> Check<Target> {
    let mut time = |most: u64| Duration::from_millis(100 + random.below(most));
    let timing = Timing {
        delay_loop: time(5000),
        warmup: time(3000),
        delay_before_retry: time(1000),
        deadline: time(500),
        retry: random.below(3) as u32,
        fall: 1 + random.below(2) as u32,
        rise: 1 + random.below(2) as u32,
        fast_recovery: random.chance(30),
    };
    Check { request, timing: timing.into(), starts_down: random.chance(30) }
}

/// A table that looks after every change whether somebody serves who could.
#[derive(Debug)]
struct Watched {
    inner: MemoryTable,
    /// One edit in three is refused.
    refuses: bool,
    edits: u64,
    watching: bool,
    /// Services that have somebody to serve them before and after the batch.
    could_serve: BTreeMap<ServiceId, bool>,
}

impl Default for Watched {
    fn default() -> Self {
        let inner = MemoryTable::default();
        Self { inner, refuses: false, edits: 0, watching: true, could_serve: BTreeMap::new() }
    }
}

impl Watched {
    fn serves(&mut self, id: ServiceId) -> bool {
        let entry = self.inner.service(id);
        entry.is_ok_and(|entry| entry.destinations.iter().any(|to| to.destination.weight > 0))
    }

    fn watched(
        &mut self,
        id: ServiceId,
        edit: impl FnOnce(&mut MemoryTable) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.edits += 1;
        if self.refuses && part(Duration::from_secs(3), 1, self.edits) > Duration::from_secs(2) {
            return Err(Error::System("no".into()));
        }
        let before = self.serves(id);
        edit(&mut self.inner)?;
        let could = self.could_serve.get(&id).copied().unwrap_or(false);
        let lost = before && could && !self.serves(id);
        assert!(!lost || !self.watching, "{id:?} has nobody for an instant");
        Ok(())
    }
}

impl Table for Watched {
    fn add_service(&mut self, service: &TableService) -> Result<(), Error> {
        self.watched(service.id, |table| table.add_service(service))
    }

    fn edit_service(&mut self, service: &TableService) -> Result<(), Error> {
        self.watched(service.id, |table| table.edit_service(service))
    }

    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
        self.watched(id, |table| table.delete_service(id))
    }

    fn add_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        self.watched(service, |table| table.add_destination(service, to))
    }

    fn edit_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        self.watched(service, |table| table.edit_destination(service, to))
    }

    fn delete_destination(&mut self, service: ServiceId, to: DestinationId) -> Result<(), Error> {
        self.watched(service, |table| table.delete_destination(service, to))
    }

    fn flush(&mut self) -> Result<(), Error> {
        panic!("nobody asked for all to be removed")
    }

    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        self.inner.services()
    }

    fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        self.inner.connections()
    }

    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        self.inner.timeouts()
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        self.inner.set_timeouts(timeouts)
    }

    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error> {
        self.inner.zero(service)
    }

    fn connection_table_size(&mut self) -> Result<u32, Error> {
        self.inner.connection_table_size()
    }
}
