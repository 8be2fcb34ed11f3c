//! Looks at packets as the balancer has them: what came, what became of it, and why.
//!
//! While a capture runs, programs of its own hang on the links of the balancer's. They call the
//! balancer's programs, which know nothing of it, and write down what they see. Each link goes over
//! from one program to the other in one step, so that no packet misses the balancer; what the
//! captures call is pinned, so that packets are balanced as before if this process is killed. The
//! next capture, `rlvs status` or `rlvs doctor` then tidies up; until it comes, only the deadline is
//! looked at for each packet.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use aya::maps::{MapData, ProgramArray, RingBuf};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use nix::fcntl::{Flock, FlockArg};
use rlvs_datapath::abi::REASONS;
use rlvs_datapath::reason::Reason;

use super::attach::{self, KIND_TC, KIND_XDP};
use super::clsact;
use super::error::Error;
use super::load::{self, OUT, TC, XDP, load_error};
use super::local::KIND_OUT;
use super::pins::{self, Folder};
use super::{stages, sys};
use crate::route::Rtnetlink;

#[expect(unreachable_pub, reason = "shared with the programs")]
#[path = "../../../rlvs-ebpf/src/taken.rs"]
mod taken;

use taken::Head;
pub use taken::{FRAME_MAX, Wanted};

/// The programs, compiled to BPF; kept beside their source.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../rlvs-ebpf/object/capture.bpf.o");

/// The folder, in that of the namespace, of what is pinned while a capture runs.
const FOLDER: &str = "capture";

/// A place where packets are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// XDP.
    Xdp,
    /// TC, on packets that come.
    Tc,
    /// TC, on packets that go: answers of real servers on this host.
    Out,
}

impl Place {
    const ALL: [Self; 3] = [Self::Xdp, Self::Tc, Self::Out];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Out => "tc-egress",
        }
    }

    /// The kind of its links.
    const fn kind(self) -> &'static str {
        match self {
            Self::Xdp => KIND_XDP,
            Self::Tc => KIND_TC,
            Self::Out => KIND_OUT,
        }
    }

    /// The balancer's program, as it is pinned.
    pub(super) const fn pinned(self) -> &'static str {
        match self {
            Self::Xdp => XDP,
            Self::Tc => TC,
            Self::Out => OUT,
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "capture_xdp",
            Self::Tc => "capture_tc",
            Self::Out => "capture_out",
        }
    }

    /// The map of what the program calls.
    const fn entry(self) -> &'static str {
        match self {
            Self::Xdp => "entry_xdp",
            Self::Tc => "entry_tc",
            Self::Out => "entry_out",
        }
    }

    const fn from_number(number: u32) -> Option<Self> {
        match number {
            taken::XDP => Some(Self::Xdp),
            taken::TC => Some(Self::Tc),
            taken::OUT => Some(Self::Out),
            _ => None,
        }
    }
}

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The packet is left to the stack, and to whatever hangs there behind us.
    Pass,
    /// It ends here.
    Drop,
    /// It goes out by the interface that it came by.
    Back,
    /// It goes out by an interface.
    Redirect,
    /// Something else, which is no program of ours.
    Other(u32),
}

impl Action {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Back => "tx",
            Self::Redirect => "redirect",
            Self::Other(_) => "other",
        }
    }

    /// Returns whether what went is a frame that the balancer sent.
    pub const fn is_sent(self) -> bool {
        matches!(self, Self::Back | Self::Redirect)
    }

    const fn from_number(place: Place, number: u32) -> Self {
        const UNSPECIFIED: u32 = u32::MAX;
        match (place, number) {
            (Place::Xdp, 1) | (Place::Tc | Place::Out, 2) => Self::Drop,
            (Place::Xdp, 2) | (Place::Tc | Place::Out, 0 | UNSPECIFIED) => Self::Pass,
            (Place::Xdp, 3) => Self::Back,
            (Place::Xdp, 4) | (Place::Tc | Place::Out, 7) => Self::Redirect,
            _ => Self::Other(number),
        }
    }
}

/// A packet that was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Nanoseconds of the monotonic clock when it came.
    pub time_ns: u64,
    /// Index of the interface that it came by, or was about to leave by.
    pub interface: u32,
    /// Where it was met.
    pub place: Place,
    /// What became of it.
    pub action: Action,
    /// What was counted for it.
    pub reasons: Vec<Reason>,
    /// The frame that came.
    pub came: Kept,
    /// The frame when the balancer was done with it.
    pub went: Kept,
}

/// A frame, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its length.
    pub length: u32,
    /// The bytes that were kept.
    pub bytes: Vec<u8>,
}

impl Taken {
    /// Reads a packet as the programs write it down; `None` if it is none.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (head, frames) = bytes.split_at_checked(size_of::<Head>())?;
        let word = |at: usize| Some(u32::from_ne_bytes(*head.get(at..)?.first_chunk()?));
        let time_ns = u64::from_ne_bytes(*head.first_chunk()?);
        let [interface, place, action, counted] = [word(8)?, word(12)?, word(16)?, word(20)?];
        let (came, went) = (word(28)? as usize, word(36)? as usize);
        let kept = |length: u32, bytes: &[u8]| Kept { length, bytes: bytes.to_vec() };
        let place = Place::from_number(place)?;
        let numbers = (0..REASONS).filter(|number| counted & 1 << number != 0);
        Some(Self {
            time_ns,
            interface,
            place,
            action: Action::from_number(place, action),
            reasons: numbers.map(Reason::from_number).collect(),
            came: kept(word(24)?, frames.get(..came)?),
            went: kept(word(32)?, frames.get(came..came + went)?),
        })
    }
}

/// A capture that runs. Ends when it is dropped.
pub struct Capture {
    folder: Folder,
    /// Holds the lock.
    _live: Flock<File>,
    /// Keeps the programs and maps.
    bpf: Ebpf,
    ring: RingBuf<MapData>,
    /// Interfaces with a filter in the place of a link: what hangs there cannot be exchanged.
    pub unseen: Vec<String>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Capture {
    /// Begins one on interfaces of the calling thread's network namespace, or, if none is named, on
    /// all that programs hang on.
    ///
    /// # Errors
    /// Nothing is attached, another capture runs, no such interface, a missing capability.
    pub fn begin(wanted: &Wanted, interfaces: &[String]) -> Result<Self, Error> {
        let folder = pins::open()?.ok_or(Error::NotAttached)?;
        let links = chosen(&folder, interfaces)?;
        let unseen = names(&clsact::interfaces(&folder)?)?;
        let mut bpf = EbpfLoader::new()
            .map_pin_path("reasons", folder.path("reasons"))
            .load(&load::object_of("capture.bpf.o", OBJECT)?)
            .map_err(|error| load_error("the maps of the capture", &error))?;
        let ring = bpf.take_map("taken").ok_or_else(|| stages::missing("taken"))?;
        let ring = RingBuf::try_from(ring).map_err(|error| load_error("its ring", &error))?;
        sys::update(map(&bpf, "wanted")?, 0, wanted).map_err(Error::io("saying what is wanted"))?;
        let lock = folder.lock()?;
        let live = live(&folder)?.ok_or(Error::Capturing)?;
        let mut capture = Self { folder, _live: live, bpf, ring, unseen };
        let hung = capture.hang_all(&links);
        // What is dropped now takes the lock itself.
        drop(lock);
        hung.map(|()| capture)
    }

    /// Hangs the programs on links, after those that a killed capture has left there are off.
    fn hang_all(&mut self, links: &[(Place, String)]) -> Result<(), Error> {
        give_back(&self.folder)?;
        for place in Place::ALL {
            let links: Vec<_> = links.iter().filter(|(of, _)| *of == place).collect();
            if !links.is_empty() {
                self.prepare(place)?;
            }
            for (_, link) in links {
                hang(&self.folder, place, link, self.bpf.program_mut(place.program()))?;
            }
        }
        Ok(())
    }

    /// Loads the program of a place, and tells it what to call.
    fn prepare(&mut self, place: Place) -> Result<(), Error> {
        let failed = |error: &dyn std::error::Error| load_error("what the capture calls", error);
        stages::load_program(&mut self.bpf, place.program())?;
        let path = self.folder.path(place.pinned());
        let map = self.bpf.map_mut(place.entry()).ok_or_else(|| stages::missing(place.entry()))?;
        let mut entry = ProgramArray::try_from(&mut *map).map_err(|error| failed(&error))?;
        match place {
            Place::Xdp => {
                let program = Xdp::from_pin(path, XdpAttachType::Interface);
                let program = program.map_err(|error| failed(&error))?;
                entry.set(0, program.fd().map_err(|error| failed(&error))?, 0)
            }
            Place::Tc | Place::Out => {
                let program = SchedClassifier::from_pin(path).map_err(|error| failed(&error))?;
                entry.set(0, program.fd().map_err(|error| failed(&error))?, 0)
            }
        }
        .map_err(|error| failed(&error))?;
        // From now on links of this place are given back.
        map.pin(self.folder.path(&pin_name(place))).map_err(|error| failed(&error))
    }

    /// Returns the next packet that has been written down.
    pub fn read(&mut self) -> Option<Taken> {
        loop {
            let bytes = self.ring.next()?;
            if let Some(taken) = Taken::read(&bytes) {
                return Some(taken);
            }
        }
    }

    /// Returns how many packets were wanted but not written down, for want of room.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn lost(&self) -> Result<u64, Error> {
        let [lost] = sys::lookup::<1>(map(&self.bpf, "lost")?, 0)
            .map_err(Error::io("counting what was lost"))?;
        Ok(lost)
    }

    /// Returns what becomes readable when there is a packet.
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let ended = self.folder.lock().and_then(|_lock| tidy(&self.folder));
        if let Err(error) = ended {
            eprintln!("rlvs: {error}");
        }
    }
}

/// Tidies up after a capture that was killed.
pub(super) fn collect(folder: &Folder) -> Result<(), Error> {
    if !folder.path(FOLDER).exists() {
        return Ok(());
    }
    let _lock = folder.lock()?;
    settle(folder).map(drop)
}

/// Tidies up after a capture that was killed; the caller holds the folder's lock. Returns whether none
/// runs.
pub(super) fn settle(folder: &Folder) -> Result<bool, Error> {
    if !folder.path(FOLDER).exists() {
        return Ok(true);
    }
    match live(folder)? {
        Some(_live) => tidy(folder).map(|()| true),
        None => Ok(false),
    }
}

/// Removes all that there is for captures; the caller holds their lock and the folder's.
fn tidy(folder: &Folder) -> Result<(), Error> {
    give_back(folder)?;
    fs::remove_dir(folder.path(FOLDER))
        .map_err(Error::io(format!("removing {}", pins::shown(folder, FOLDER))))
}

/// Takes the lock that whoever captures holds; `None` if somebody does.
fn live(folder: &Folder) -> Result<Option<Flock<File>>, Error> {
    let failed = |error| Error::io(format!("locking {}", pins::shown(folder, FOLDER)))(error);
    let path = folder.path(FOLDER);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let file = File::open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(failed(io::Error::from(error))),
    }
}

/// The links to hang on, by name.
fn chosen(folder: &Folder, interfaces: &[String]) -> Result<Vec<(Place, String)>, Error> {
    let links = Rtnetlink::open()?.links()?;
    let attached = attach::attached(folder)?;
    for name in interfaces {
        if !attached.iter().any(|one| &one.name == name) {
            let reason = "nothing is attached to it, so that packets are the stack's";
            return Err(Error::Attach { interface: name.clone(), reason: reason.to_owned() });
        }
    }
    let is_chosen = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.is_some_and(|link| interfaces.is_empty() || interfaces.contains(&link.name))
    };
    Ok(placed(folder)?
        .filter(|(_, name, index)| is_chosen(*index) && attach::is_live(folder, name, *index))
        .map(|(place, name, _)| (place, name))
        .collect())
}

/// All pinned links: where they are, name, index of the interface.
pub(super) fn placed(folder: &Folder) -> Result<impl Iterator<Item = (Place, String, u32)>, Error> {
    Ok(folder.names()?.into_iter().filter_map(|name| {
        let (kind, index) = attach::pinned_link(&name)?;
        let place = Place::ALL.into_iter().find(|place| place.kind() == kind)?;
        Some((place, name, index))
    }))
}

/// Makes a pinned link run a program instead of the one it runs.
fn hang(
    folder: &Folder,
    place: Place,
    name: &str,
    program: Option<&mut Program>,
) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| load_error(&pins::shown(folder, name), error);
    let link = PinnedLink::from_pin(folder.path(name)).map_err(|error| failed(&error))?;
    let link = FdLink::from(link);
    match (place, program) {
        (Place::Xdp, Some(Program::Xdp(program))) => {
            let link = link.try_into().map_err(|error: LinkError| failed(&error))?;
            program.attach_to_link(link).map(drop)
        }
        (_, Some(Program::SchedClassifier(program))) => {
            let link = link.try_into().map_err(|error: LinkError| failed(&error))?;
            program.attach_to_link(link).map(drop)
        }
        _ => return Err(stages::missing(place.program())),
    }
    .map_err(|error| failed(&error))
}

/// Makes a pinned link run a program that is pinned elsewhere.
pub(super) fn hang_pinned(
    folder: &Folder,
    place: Place,
    name: &str,
    program: PathBuf,
) -> Result<(), Error> {
    let mut program = match place {
        Place::Xdp => Xdp::from_pin(program, XdpAttachType::Interface).map(Program::Xdp),
        Place::Tc | Place::Out => SchedClassifier::from_pin(program).map(Program::SchedClassifier),
    }
    .map_err(|error| load_error(place.pinned(), &error))?;
    hang(folder, place, name, Some(&mut program))
}

/// Makes every link run the balancer's program again, and removes what was pinned for a capture.
fn give_back(folder: &Folder) -> Result<(), Error> {
    let mut pinned = Vec::new();
    for place in Place::ALL {
        if folder.path(&pin_name(place)).exists() {
            pinned.push(place);
        }
    }
    for (place, name, index) in placed(folder)? {
        if pinned.contains(&place) && attach::is_live(folder, &name, index) {
            hang_pinned(folder, place, &name, folder.path(place.pinned()))?;
        }
    }
    // A packet may still be on its way through a program of the capture.
    sys::wait_for_programs();
    for place in pinned {
        let name = pin_name(place);
        fs::remove_file(folder.path(&name))
            .map_err(Error::io(format!("removing {}", pins::shown(folder, &name))))?;
    }
    Ok(())
}

fn pin_name(place: Place) -> String {
    format!("{FOLDER}/{}", place.entry())
}

fn map<'a>(bpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    let map = bpf.map(name).ok_or_else(|| stages::missing(name))?;
    let data: &MapData = match map {
        aya::maps::Map::Array(data) => data,
        _ => return Err(stages::missing(name)),
    };
    Ok(data.fd().as_fd())
}

fn names(indices: &[u32]) -> Result<Vec<String>, Error> {
    let links = Rtnetlink::open()?.links()?;
    let those = links.into_iter().filter(|link| indices.contains(&link.index));
    Ok(those.map(|link| link.name).collect())
}
