//! What an instance does about the packets that it hears.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rlvs_wire::vrrp::{Advertisement, OWNER, RESIGN, Version};

use super::config::{INTERVAL_MIN, Preempt};
use super::event::{Event, Received, State, Why};
use super::instance::{Instance, Outputs};
use super::receive::{self, Rejection};

impl Instance {
    /// Takes a packet for this virtual router.
    pub(super) fn packet(&mut self, packet: &Received, now: Instant, out: &mut Outputs) {
        if !matches!(self.state, State::Backup | State::Master) {
            return;
        }
        let advertisement = match receive::check(&self.config, self.source, packet) {
            Ok(advertisement) => advertisement,
            Err(kind) => return self.reject(kind, packet.source, out),
        };
        let from = packet.source;
        let resigns = advertisement.priority == RESIGN;
        if resigns && self.state == State::Backup && self.master.is_some_and(|it| it != from) {
            return self.reject(Rejection::Resignation, from, out);
        }
        self.counters.received += 1;
        self.compare_addresses(&advertisement, from, out);
        if resigns {
            self.counters.resignations_received += 1;
        } else if self.is_second(&advertisement, from, now) {
            return;
        } else {
            self.master = Some(from);
            self.heard = Some((advertisement.priority, now));
        }
        self.let_go(out);
        match self.state {
            State::Backup => self.packet_as_backup(&advertisement, from, now, out),
            State::Master => self.packet_as_master(&advertisement, from, now, out),
            State::Initialize | State::Fault | State::Stopped => {}
        }
        self.announce(now, out);
    }

    /// Tells whether this is the lesser of two masters who have not heard each other yet. Its last
    /// word may come behind the first of the other, and its interval must not be learned.
    fn is_second(&self, advertisement: &Advertisement<'_>, from: IpAddr, now: Instant) -> bool {
        let (State::Backup, Some(master), Some((priority, when))) =
            (self.state, self.master, self.heard)
        else {
            return false;
        };
        (advertisement.priority, from) < (priority, master) && now < when + self.master_interval
    }

    /// RFC 9568 §6.4.2.
    fn packet_as_backup(
        &mut self,
        advertisement: &Advertisement<'_>,
        from: IpAddr,
        now: Instant,
        out: &mut Outputs,
    ) {
        let priority = advertisement.priority;
        if priority == RESIGN {
            self.log(Event::Resigned { from }, out);
            self.master = None;
            self.deadline = Some(now + self.skew());
            return;
        }
        let patient = match self.config.preempt {
            Preempt::Never => self.priority != OWNER,
            Preempt::After(delay) if priority < self.priority && !delay.is_zero() => {
                now < *self.preempt_at.get_or_insert(now + delay)
            }
            Preempt::After(_) => false,
        };
        if priority < self.priority && !patient {
            self.tell_lower(priority, from, out);
            return;
        }
        if priority >= self.priority {
            self.preempt_at = None;
        }
        let interval = Duration::from_millis(10) * u32::from(advertisement.interval_cs);
        if self.config.version == Version::V3 && interval != self.master_interval {
            self.master_interval = interval;
            self.log(Event::IntervalLearned { interval, from }, out);
        }
        self.deadline = Some(now + self.master_down());
    }

    /// RFC 9568 §6.4.3.
    fn packet_as_master(
        &mut self,
        advertisement: &Advertisement<'_>,
        from: IpAddr,
        now: Instant,
        out: &mut Outputs,
    ) {
        let priority = advertisement.priority;
        if priority == RESIGN {
            self.log(Event::Resigned { from }, out);
            self.answer(now, out);
            return;
        }
        if priority == OWNER && self.priority == OWNER {
            self.log(Event::TwoOwners { from }, out);
        }
        let is_higher_address = self.source.is_some_and(|source| from > source);
        if priority > self.priority || (priority == self.priority && is_higher_address) {
            if self.config.answer_higher && !self.has_overslept(now) {
                self.send_advert(self.priority, now, out);
            }
            self.transition(State::Backup, Why::Outranked(from), now, out);
            // The new master's interval counts from its first word on.
            self.master = Some(from);
            self.packet_as_backup(advertisement, from, now, out);
        } else if self.has_overslept(now) {
            self.transition(State::Backup, Why::Overslept(from), now, out);
        } else {
            self.answer_lower(priority, from, now, out);
        }
    }

    /// Tells a lower priority, and the neighbours, that the master is here.
    fn answer_lower(&mut self, priority: u8, from: IpAddr, now: Instant, out: &mut Outputs) {
        self.tell_lower(priority, from, out);
        if self.config.answer_lower {
            self.answer(now, out);
        }
        let pause = self.config.interval / 2;
        if self.answered.is_none_or(|answered| now >= answered + pause) {
            self.answered = Some(now);
            self.announcer.burst(self.config.held(), self.config.announce.lower_repeat);
        }
    }

    /// Advertises out of turn. A flood is not answered by a flood, and whoever overslept does not
    /// speak before all others were heard.
    fn answer(&mut self, now: Instant, out: &mut Outputs) {
        let just_spoke = self.last_advert.is_some_and(|last| now < last + INTERVAL_MIN);
        if !just_spoke && !self.has_overslept(now) {
            self.advertise(now, out);
        }
    }

    fn tell_lower(&mut self, priority: u8, from: IpAddr, out: &mut Outputs) {
        if self.lower_told.replace(from) != Some(from) {
            self.log(Event::LowerPriority { from, priority }, out);
        }
    }

    fn reject(&mut self, kind: Rejection, from: IpAddr, out: &mut Outputs) {
        let count = self.counters.rejected.entry(kind).or_default();
        *count += 1;
        let count = *count;
        if count.is_power_of_two() {
            self.log(Event::Rejected { kind, from, count }, out);
        }
    }

    /// Another list of addresses is accepted, so that lists can be edited one router at a time.
    fn compare_addresses(
        &mut self,
        advertisement: &Advertisement<'_>,
        from: IpAddr,
        out: &mut Outputs,
    ) {
        let length = if from.is_ipv4() { 4 } else { 16 };
        let own = self.advertised();
        let sorted = |bytes: &[u8]| -> BTreeSet<Vec<u8>> {
            bytes.chunks(length).map(<[u8]>::to_vec).collect()
        };
        if sorted(&own) == sorted(advertisement.addresses) {
            self.differing = None;
            return;
        }
        self.counters.addresses_differ += 1;
        let theirs = advertisement.addresses.to_vec();
        if self.differing.as_ref() != Some(&theirs) {
            self.differing = Some(theirs);
            self.log(Event::AddressesDiffer { from }, out);
        }
    }
}
