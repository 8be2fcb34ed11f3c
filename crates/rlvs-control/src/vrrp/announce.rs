//! When neighbours are told where the addresses are.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::config::{Announce, VirtualAddress};

/// Frames that may wait in one queue; what is more is not sent.
const WAITING_MAX: usize = 4096;

/// The announcements of one instance that are still to come.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    arp: Queue,
    neighbour: Queue,
    second: Option<Instant>,
    refresh: Option<Instant>,
}

/// Frames of one kind that must not follow each other too fast.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<VirtualAddress>,
    not_before: Option<Instant>,
}

impl Announcer {
    /// Forgets everything that is still to come.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets one address.
    pub(super) fn forget(&mut self, address: &VirtualAddress) {
        for queue in [&mut self.arp, &mut self.neighbour] {
            queue.waiting.retain(|waiting| waiting != address);
        }
    }

    /// Plans what follows the first burst of a new master.
    pub(super) fn start(&mut self, announce: &Announce, now: Instant) {
        let later = |delay: Duration| (!delay.is_zero()).then(|| now + delay);
        self.second = later(announce.delay);
        self.refresh = later(announce.refresh);
    }

    /// Queues `repeat` frames for each address, the addresses in turn.
    pub(super) fn burst<'a>(
        &mut self,
        addresses: impl Iterator<Item = &'a VirtualAddress> + Clone,
        repeat: u16,
    ) {
        for _ in 0..repeat {
            for address in addresses.clone() {
                let queue =
                    if address.address.is_ipv4() { &mut self.arp } else { &mut self.neighbour };
                if queue.waiting.len() < WAITING_MAX {
                    queue.waiting.push_back(address.clone());
                }
            }
        }
    }

    /// Queues the second burst and the refreshing ones when it is time.
    pub(super) fn plan<'a>(
        &mut self,
        announce: &Announce,
        addresses: impl Iterator<Item = &'a VirtualAddress> + Clone,
        now: Instant,
    ) {
        if self.second.is_some_and(|second| second <= now) {
            self.second = None;
            self.burst(addresses.clone(), announce.repeat);
        }
        if self.refresh.is_some_and(|refresh| refresh <= now) {
            self.refresh = Some(now + announce.refresh);
            self.burst(addresses, announce.refresh_repeat);
        }
    }

    /// Returns the next address to announce now.
    pub(super) fn next(&mut self, announce: &Announce, now: Instant) -> Option<VirtualAddress> {
        let arp = self.arp.next(announce.arp_pace, now);
        arp.or_else(|| self.neighbour.next(announce.neighbour_pace, now))
    }

    /// Returns when there is something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let queues = [&self.arp, &self.neighbour].map(Queue::due);
        queues.into_iter().chain([self.second, self.refresh]).flatten().min()
    }
}

impl Queue {
    fn next(&mut self, pace: Duration, now: Instant) -> Option<VirtualAddress> {
        if self.not_before.is_some_and(|not_before| now < not_before) {
            return None;
        }
        let next = self.waiting.pop_front()?;
        // Kept also when the queue runs empty: the next burst must not come too close.
        self.not_before = (!pace.is_zero()).then(|| now + pace);
        Some(next)
    }

    /// Without pace everything has gone at once; so whatever waits has a time.
    fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.waiting.is_empty())
    }
}
