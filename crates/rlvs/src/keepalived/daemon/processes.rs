//! Processes that virtual routers follow: one thread hears of each that begins and ends.
//!
//! The kernel tells (`rlvs_linux::process::watch`). Where it does not, as in a container, what matches is
//! watched for its end, and /proc is looked at once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rlvs_conf::desired::{Compared, TrackedProcess};
use rlvs_linux::process::Handle;
use rlvs_linux::process::watch::{Notice, Notices, Running, all, look_at};

use super::Happening;

/// How often /proc is looked at where the kernel does not tell.
const LOOK: Duration = Duration::from_secs(1);

/// The processes that are watched; the thread ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Processes {
    wanted: Vec<TrackedProcess>,
    known: BTreeMap<String, bool>,
    end: Option<Arc<EventFd>>,
}

impl Processes {
    /// Watches these, and no others; returns how they are now, and what there is to say.
    pub(super) fn update(
        &mut self,
        wanted: &[TrackedProcess],
        to: &Sender<Happening>,
    ) -> (Vec<(String, bool)>, Vec<String>) {
        if self.wanted == wanted {
            return (Vec::new(), Vec::new());
        }
        self.stop();
        self.wanted = wanted.to_vec();
        self.known.clear();
        if wanted.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut said = Vec::new();
        let notices = Notices::open().map_err(|error| {
            said.push(format!(
                "the kernel does not tell of processes ({error}): /proc is looked at once a second"
            ));
        });
        match begin(wanted.to_vec(), notices.ok(), to.clone()) {
            Ok((end, known)) => (self.end, self.known) = (Some(end), known),
            Err(error) => said.push(format!("tracked processes cannot be watched: {error}")),
        }
        (self.known.clone().into_iter().collect(), said)
    }

    /// Returns how the processes were when they were last updated.
    pub(super) fn known(&self) -> impl Iterator<Item = (&str, bool)> {
        self.known.iter().map(|(name, good)| (&**name, *good))
    }

    fn stop(&mut self) {
        if let Some(end) = self.end.take() {
            // Its counter is far from full.
            end.write(1).ok();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the thread; returns what ends it, and how the processes are.
fn begin(
    wanted: Vec<TrackedProcess>,
    notices: Option<Notices>,
    to: Sender<Happening>,
) -> io::Result<(Arc<EventFd>, BTreeMap<String, bool>)> {
    let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    let mut census = Census::new(wanted);
    census.take_all()?;
    let known = census.settle_all();
    let watcher = Watcher { census, notices, handles: BTreeMap::new(), to };
    let ended = end.clone();
    std::thread::Builder::new().name("processes".to_owned()).spawn(move || watcher.run(&ended))?;
    Ok((end, known))
}

struct Watcher {
    census: Census,
    notices: Option<Notices>,
    /// Those that match, where the kernel does not tell of their end.
    handles: BTreeMap<u32, Handle>,
    to: Sender<Happening>,
}

impl Watcher {
    fn run(mut self, end: &EventFd) {
        loop {
            let now = Instant::now();
            for (name, good, count) in self.census.settle(now) {
                if self.to.send(Happening::Processes { name, good, count }).is_err() {
                    return;
                }
            }
            if self.wait(end, now) {
                return;
            }
            match &self.notices {
                Some(notices) => match notices.take() {
                    Some(notices) => notices.iter().for_each(|one| self.census.hear(*one)),
                    // Some were lost.
                    None => drop(self.census.take_all()),
                },
                None => drop(self.census.take_all()),
            }
        }
    }

    /// Sleeps until something happens or is due; returns whether that is the end.
    fn wait(&mut self, end: &EventFd, now: Instant) -> bool {
        let mut due = self.census.due();
        if self.notices.is_none() {
            due = due.into_iter().chain([now + LOOK]).min();
            let running = &self.census.matching;
            self.handles.retain(|pid, _| running.contains_key(pid));
            for pid in running.keys() {
                if !self.handles.contains_key(pid)
                    && let Ok(handle) = Handle::open(*pid)
                {
                    self.handles.insert(*pid, handle);
                }
            }
        }
        let time = due.map_or(PollTimeout::NONE, |due| {
            let left = due.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut ready = vec![PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        let notices = self.notices.iter().map(AsFd::as_fd);
        let handles = self.handles.values().map(AsFd::as_fd);
        ready.extend(notices.chain(handles).map(|one| PollFd::new(one, PollFlags::POLLIN)));
        // Interrupted or not: all is looked at.
        poll(&mut ready, time).ok();
        ready.first().is_some_and(|end| end.any() == Some(true))
    }
}

/// Which processes match, and what follows from their number.
#[derive(Debug)]
struct Census {
    wanted: Vec<TrackedProcess>,
    /// Processes that match, each with which it matches.
    matching: BTreeMap<u32, BTreeSet<usize>>,
    standings: Vec<Standing>,
}

/// What follows from the number of processes that match.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    good: bool,
    /// How many there were when it was last looked.
    count: usize,
    /// When it changes, if nothing else happens.
    due: Option<Instant>,
}

impl Census {
    fn new(wanted: Vec<TrackedProcess>) -> Self {
        let standings = vec![Standing::default(); wanted.len()];
        Self { wanted, matching: BTreeMap::new(), standings }
    }

    /// Looks at every process.
    fn take_all(&mut self) -> io::Result<()> {
        let pids = all()?;
        self.matching.clear();
        pids.into_iter().for_each(|pid| self.look(pid));
        Ok(())
    }

    fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::Forked { parent, child } => {
                if let Some(matches) = self.matching.get(&parent).cloned() {
                    self.matching.insert(child, matches);
                }
            }
            Notice::Changed(pid) => self.look(pid),
            Notice::Ended(pid) => drop(self.matching.remove(&pid)),
        }
    }

    fn look(&mut self, pid: u32) {
        let running = look_at(pid);
        let matches = |(_, wanted): &(usize, &TrackedProcess)| {
            running.as_ref().is_some_and(|running| is_it(wanted, running))
        };
        let matches = self.wanted.iter().enumerate().filter(matches).map(|(at, _)| at);
        let matches: BTreeSet<usize> = matches.collect();
        if matches.is_empty() {
            self.matching.remove(&pid);
        } else {
            self.matching.insert(pid, matches);
        }
    }

    fn count(&self, at: usize) -> usize {
        self.matching.values().filter(|matches| matches.contains(&at)).count()
    }

    /// Takes what there is for what counts, without delay.
    fn settle_all(&mut self) -> BTreeMap<String, bool> {
        let mut known = BTreeMap::new();
        for at in 0..self.wanted.len() {
            let count = self.count(at);
            let (Some(wanted), Some(standing)) = (self.wanted.get(at), self.standings.get_mut(at))
            else {
                continue;
            };
            *standing = Standing { good: is_enough(wanted, count), count, due: None };
            known.insert(wanted.name.clone(), standing.good);
        }
        known
    }

    /// Returns what has changed for long enough: name, whether it is well, how many there are.
    fn settle(&mut self, now: Instant) -> Vec<(String, bool, usize)> {
        let mut changed = Vec::new();
        for at in 0..self.wanted.len() {
            let count = self.count(at);
            let (Some(wanted), Some(standing)) = (self.wanted.get(at), self.standings.get_mut(at))
            else {
                continue;
            };
            let before = std::mem::replace(&mut standing.count, count);
            let good = is_enough(wanted, count);
            if good == standing.good {
                standing.due = None;
                continue;
            }
            let delay = if count > before { wanted.fork_delay } else { wanted.terminate_delay };
            let due = *standing.due.get_or_insert(now + delay);
            if due <= now {
                (standing.good, standing.due) = (good, None);
                changed.push((wanted.name.clone(), good, count));
            }
        }
        changed
    }

    /// Returns when something is to be settled.
    fn due(&self) -> Option<Instant> {
        self.standings.iter().filter_map(|standing| standing.due).min()
    }
}

fn is_enough(wanted: &TrackedProcess, count: usize) -> bool {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    count >= wanted.quorum && wanted.quorum_max.is_none_or(|most| count <= most)
}

/// Tells whether a process is one of those that are tracked.
fn is_it(wanted: &TrackedProcess, running: &Running) -> bool {
    let words = || wanted.command.iter().map(|word| word.as_bytes());
    let same = |count: usize| {
        running.command.len() >= count
            && words().take(count).eq(running.command.iter().take(count).map(Vec::as_slice))
    };
    let all = wanted.command.len();
    match wanted.compared {
        Compared::Name => words().next() == Some(&*running.name),
        Compared::Program => same(1),
        Compared::Command => running.command.len() == all && same(all),
        Compared::Partial => same(all),
        Compared::Initial => {
            let before = all.saturating_sub(1);
            let last = running.command.get(before).zip(words().next_back());
            // A program is not longer than it is called.
            let begins = last.is_some_and(|(has, wanted)| has.starts_with(wanted));
            if before == 0 { same(1) } else { same(before) && begins }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracked(words: &[&str], compared: Compared) -> TrackedProcess {
        TrackedProcess {
            name: "P".to_owned(),
            command: words.iter().map(|&word| word.to_owned()).collect(),
            compared,
            weight: rlvs_conf::desired::Weight::default(),
            quorum: 1,
            quorum_max: None,
            fork_delay: Duration::ZERO,
            terminate_delay: Duration::ZERO,
        }
    }

    /// As keepalived 2.2.7 took and did not take `/x/proc 1000 2000`.
    #[test]
    fn a_process_is_taken_as_by_the_real_one() {
        let words = ["/x/proc", "1000", "2000"];
        let command = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let running = Running { name: b"proc".to_vec(), command };
        use Compared::{Command, Initial, Name, Partial, Program};
        for (compared, words, expected) in [
            (Name, ["proc"].as_slice(), true),
            (Name, &["pro"], false),
            (Name, &["/x/proc"], false),
            (Program, &["/x/proc"], true),
            (Program, &["/x/pro"], false),
            (Program, &["proc"], false),
            (Command, &["/x/proc", "1000"], false),
            (Command, &["/x/proc", "1000", "2000"], true),
            (Command, &["/x/proc", "2000", "1000"], false),
            (Command, &["/x/proc", "1000", "2000", "3"], false),
            (Command, &["proc", "1000", "2000"], false),
            (Initial, &["/x/proc"], true),
            (Initial, &["/x/pro"], false),
            (Initial, &["/x/proc", "100"], true),
            (Initial, &["/x/proc", "1000", "2"], true),
            (Initial, &["/x/proc", "100", "2"], false),
            (Initial, &["/x/proc", "1000", "2000", "3"], false),
            (Partial, &["/x/proc"], true),
            (Partial, &["/x/proc", "1000"], true),
            (Partial, &["/x/proc", "100"], false),
            (Partial, &["/x/proc", "1000", "2"], false),
            (Partial, &["/x/proc", "1000", "2000", "3"], false),
        ] {
            let tracked = tracked(words, compared);
            assert_eq!(is_it(&tracked, &running), expected, "{compared:?} {words:?}");
        }
    }

    #[test]
    fn a_change_counts_when_it_has_lasted() {
        let mut wanted = tracked(&["proc"], Compared::Name);
        (wanted.quorum, wanted.quorum_max) = (2, Some(3));
        wanted.fork_delay = Duration::from_secs(1);
        wanted.terminate_delay = Duration::from_secs(5);
        let mut census = Census::new(vec![wanted]);
        census.matching.insert(1, BTreeSet::from([0]));
        assert_eq!(census.settle_all(), BTreeMap::from([("P".to_owned(), false)]));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let told = |good, count| vec![("P".to_owned(), good, count)];
        // A second comes, and lasts.
        census.hear(Notice::Forked { parent: 1, child: 2 });
        census.hear(Notice::Forked { parent: 9, child: 10 });
        assert_eq!((census.settle(at(0)), census.due()), (vec![], Some(at(1))));
        assert_eq!((census.settle(at(1)), census.due()), (told(true, 2), None));
        // It goes, and is there again in time.
        census.hear(Notice::Ended(2));
        assert_eq!((census.settle(at(2)), census.due()), (vec![], Some(at(7))));
        census.hear(Notice::Forked { parent: 1, child: 3 });
        assert_eq!((census.settle(at(6)), census.due()), (vec![], None));
        // It goes for good, later than the first time.
        census.hear(Notice::Ended(3));
        assert_eq!((census.settle(at(7)), census.due()), (vec![], Some(at(12))));
        assert_eq!(census.settle(at(12)), told(false, 1));
        // There are too many, then one less.
        for child in 4..7 {
            census.hear(Notice::Forked { parent: 1, child });
        }
        assert_eq!((census.settle(at(13)), census.due()), (vec![], None));
        census.hear(Notice::Ended(4));
        assert_eq!((census.settle(at(14)), census.due()), (vec![], Some(at(19))));
        assert_eq!(census.settle(at(19)), told(true, 3));
    }
}
