//! Whom the schedulers pick, ours and the kernel's: random sequences of edits and connections, each
//! replayable by its seed.

use std::env;
use std::fmt::Write;
use std::sync::Mutex;

use e2e::crossing::{self, Balancer, Crossing, Shared, Side};
use e2e::lab::Random;
use e2e::network::{client, server, server_mac, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene;
use rlvs_control::model::{
    Destination, DestinationId, ForwardingMethod, Protocol, Service, ServiceId,
};
use rlvs_control::table::Table;
use rlvs_wire::tcp::{ACK, FIN, SYN};

use crate::guest;

/// Seeds of a run, as `5` or `100-200`.
const SEEDS: &str = "RLVS_SEEDS";
const SEEDS_DEFAULT: &str = "1-16";
/// What happens to one service.
const EVENTS: usize = 40;
/// Numbers of the servers.
const SERVERS: std::ops::RangeInclusive<u8> = 11..=16;
/// Weights that are drawn; ovf gives each server one connection more than its weight.
const WEIGHTS: [u32; 8] = [0, 1, 1, 2, 3, 5, 8, 40];

/// Every scheduler that draws no lots, with the flags that it knows.
fn schedulers() -> Vec<(&'static str, u8)> {
    let plain =
        ["rr", "wrr", "lc", "wlc", "sed", "nq", "lblc", "lblcr", "dh", "fo", "ovf", "sh", "mh"];
    let mut all: Vec<_> = plain.map(|name| (name, 0)).into();
    all.extend((1..4).flat_map(|flags| [("sh", flags), ("mh", flags)]));
    all
}

/// A service and its connections.
struct Play<'a, 'n> {
    crossing: &'a mut Crossing<'n>,
    table: Shared,
    random: Random,
    family: u8,
    service: Service,
    port: u16,
    /// Upper and lower threshold of each server: Linux 6.1 heeds an edited one with the next
    /// connection only, later ones at once, as ours.
    limits: [(u32, u32); 6],
    listed: Vec<u8>,
    opened: Vec<Packet>,
    text: String,
}

impl<'a, 'n> Play<'a, 'n> {
    fn new(crossing: &'a mut Crossing<'n>, seed: u64, number: u16, of: (&str, u8)) -> Self {
        // A small seed alone has few bits.
        let mut random =
            Random((seed << 16 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let family = if random.next_number().is_multiple_of(4) { 6 } else { 4 };
        let protocol =
            if random.next_number().is_multiple_of(4) { Protocol::Udp } else { Protocol::Tcp };
        let port = 1000 + number;
        // Ours goes on where wrr was when everybody is overloaded; see docs/differences.md.
        let limits = [(); 6].map(|()| {
            let [limited, upper, lower] = [(); 3].map(|()| (random.next_number() >> 16) as u32);
            let upper = if limited.is_multiple_of(5) && of.0 != "wrr" { 1 + upper % 5 } else { 0 };
            (upper, lower % (upper + 1))
        });
        let service = Service {
            id: ServiceId::Address { protocol, address: vip(family, 100), port },
            scheduler: of.0.to_owned(),
            scheduler_flags: of.1,
            one_packet: false,
            persistence: None,
            persistence_engine: None,
        };
        let mut table = crossing.table();
        table.add_service(&service).unwrap();
        let (listed, opened) = (Vec::new(), Vec::new());
        let text = format!("{} {} IPv{family} {protocol:?}:", of.0, of.1);
        Self { crossing, table, random, family, service, port, limits, listed, opened, text }
    }

    fn draw(&mut self, below: usize) -> usize {
        (self.random.next_number() >> 16) as usize % below
    }

    /// Draws a destination's settings.
    fn destination(&mut self, number: u8) -> Destination {
        let weight = WEIGHTS[self.draw(WEIGHTS.len())];
        let (upper_threshold, lower_threshold) = self.limits[usize::from(number - SERVERS.start())];
        write!(self.text, "{number}w{weight}x{upper_threshold}y{lower_threshold}").unwrap();
        Destination {
            id: self.id(number),
            method: ForwardingMethod::DirectRoute,
            weight,
            upper_threshold,
            lower_threshold,
        }
    }

    fn id(&self, number: u8) -> DestinationId {
        DestinationId { address: server(self.family, number), port: self.port }
    }

    fn event(&mut self) {
        let kind = self.draw(16);
        match kind {
            0..3 if self.listed.len() < SERVERS.len() => {
                let absent: Vec<u8> =
                    SERVERS.filter(|number| !self.listed.contains(number)).collect();
                let number = absent[self.draw(absent.len())];
                self.text += " +";
                let to = self.destination(number);
                self.table.add_destination(self.service.id, &to).unwrap();
                self.listed.push(number);
            }
            3 if !self.listed.is_empty() => {
                let index = self.draw(self.listed.len());
                let number = self.listed[index];
                self.text += " =";
                let to = self.destination(number);
                self.table.edit_destination(self.service.id, &to).unwrap();
            }
            4 if !self.listed.is_empty() => {
                let index = self.draw(self.listed.len());
                let number = self.listed.remove(index);
                write!(self.text, " -{number}").unwrap();
                self.table.delete_destination(self.service.id, self.id(number)).unwrap();
            }
            5..8 if !self.opened.is_empty() => {
                let index = self.draw(self.opened.len());
                let packet = self.opened.remove(index);
                self.send("close", &Packet { kind: self.kind(FIN | ACK), ..packet });
            }
            8 if !self.opened.is_empty() => {
                let index = self.draw(self.opened.len());
                let packet = self.opened[index].clone();
                self.send("more", &Packet { kind: self.kind(ACK), ..packet });
            }
            _ => self.open(),
        }
    }

    fn open(&mut self) {
        let from = client(self.family, 1 + self.draw(60) as u8);
        let port = 1024 + self.draw(60_000) as u16;
        let packet = Packet {
            source: (from, port).into(),
            target: (vip(self.family, 100), self.port).into(),
            payload: Vec::new(),
            ..scene::request(self.crossing.network, self.family, self.kind(SYN))
        };
        write!(self.text, " {from}:{port}").unwrap();
        if self.send("", &packet) {
            self.opened.push(packet);
        }
    }

    fn kind(&self, flags: u8) -> Kind {
        match self.service.id {
            ServiceId::Address { protocol: Protocol::Udp, .. } => Kind::Udp,
            _ => Kind::Tcp(flags),
        }
    }

    /// Sends a packet and notes who gets it; tells whether anybody does.
    fn send(&mut self, what: &str, packet: &Packet) -> bool {
        let out = self.crossing.step(Side::Clients, &packet.bytes());
        let to = match &out[..] {
            [(Side::Servers, frame)] if frame[..5] == server_mac(0)[..5] => frame[5].to_string(),
            // The kernel says so not to everybody when it has refused many at once.
            [(Side::Clients, _)] | [] => "nobody".to_owned(),
            other => format!("{other:02x?}"),
        };
        let space = if what.is_empty() { "" } else { " " };
        write!(self.text, "{space}{what}>{to}").unwrap();
        matches!(out[..], [(Side::Servers, _)])
    }

    /// Ends it; returns its text, with what each destination counts.
    fn end(mut self) -> String {
        let entry = self.table.service(self.service.id).unwrap();
        for to in entry.destinations {
            let number = to.destination.id.address.to_string();
            write!(self.text, " | {number} {} {}", to.active, to.inactive).unwrap();
        }
        self.table.delete_service(self.service.id).unwrap();
        self.text
    }
}

/// Plays the sequences of all seeds; a line for each.
fn play(balancer: Balancer, seeds: &str) -> String {
    let (first, last) = seeds.split_once('-').unwrap_or((seeds, seeds));
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let text = Mutex::new(String::new());
    crossing::run("picks", balancer, |mut crossing| {
        let mut all = String::new();
        let mut number = 0;
        for seed in first..=last {
            for of in schedulers() {
                let mut play = Play::new(&mut crossing, seed, number, of);
                (0..EVENTS).for_each(|_| play.event());
                writeln!(all, "seed {seed} {}", play.end()).unwrap();
                number += 1;
            }
        }
        *text.lock().unwrap() = all;
    });
    text.into_inner().unwrap()
}

#[test]
fn schedulers_pick_whom_the_kernels_pick() {
    let seeds = env::var(SEEDS).unwrap_or_else(|_| SEEDS_DEFAULT.to_owned());
    if guest::is_guest() {
        return guest::report(&play(Balancer::Kernel, &seeds));
    }
    let (theirs, ours) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| guest::run("picks::schedulers_pick_whom_the_kernels_pick"));
        let ours = play(Balancer::Ours, &seeds);
        (theirs.join().unwrap(), ours)
    });
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (theirs, ours) = (lines(&theirs), lines(&ours));
    assert_eq!(theirs.len(), ours.len());
    assert!(theirs.len() >= schedulers().len());
    let mut wrong = String::new();
    for (theirs, ours) in theirs.iter().zip(&ours).filter(|(theirs, ours)| theirs != ours) {
        let same = theirs.bytes().zip(ours.bytes()).take_while(|(one, other)| one == other).count();
        let at = theirs.get(..same).and_then(|text| text.rfind(' ')).unwrap_or(0);
        writeln!(wrong, "{theirs}\n  ours:{}", &ours[at..]).unwrap();
    }
    assert!(wrong.is_empty(), "replay by {SEEDS}=SEED:\n{wrong}");
}
