//! The rules of who may open connections, in force.
//!
//! They are one map, the book, which is made anew for each change, with the rules as text behind what
//! the programs read, and put into the map of books by one store. A command that is killed before leaves
//! the old book, and the kernel frees the unfinished one. What services say of the book is set so that it
//! suits both before that store, and is put right after it; a number that the old book uses means the
//! same service in the new one or nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::MapData;
use rlvs_control::access::{self, Access, BYTES_WORD, PREFIXES_MAX, TEXT_WORD};
use rlvs_control::model::ServiceId;
use rlvs_datapath::abi::{Line, Service, service_flag, settings_flag};
use rlvs_datapath::book::{Rules, rules_flag};

use super::error::Error;
use super::load;
use super::maps::{Maps, reason};
use super::pins;
use super::records::service_id;
use super::stages::Group;
use super::sys::{self, Memory};

/// Lines of services' own rules, by service.
type Numbers = BTreeMap<ServiceId, u32>;

/// The pin of the book in force. The map of books tells its id alone, which only `CAP_SYS_ADMIN` may open.
const BOOK: &str = "book_inner";
/// The pin of the one that is being put in force.
const NEXT: &str = "book_next";

/// Puts a book in force, of at least one line, in the map of books.
///
/// # Errors
/// No memory, or a missing capability.
pub fn write_book(books: BorrowedFd<'_>, lines: &[Line]) -> io::Result<()> {
    sys::update_map(books, make_book(lines)?.as_fd())
}

fn make_book(lines: &[Line]) -> io::Result<OwnedFd> {
    let book = sys::create_lines(lines.len() as u32)?;
    let memory = Memory::map(book.as_fd(), lines.len())?;
    for (at, line) in lines.iter().enumerate() {
        memory.write(at, *line);
    }
    Ok(book)
}

fn failed(error: &dyn std::error::Error) -> Error {
    Error::Load { what: "the book of access".to_owned(), reason: reason(error) }
}

/// Puts a book in force, pinned: whoever is killed in between leaves one of the two pins to be it.
fn put_in_force(maps: &Maps, lines: &[Line]) -> Result<(), Error> {
    let io_failed = || Error::io("writing the book of access");
    let book = make_book(lines).map_err(io_failed())?;
    let (pin, next) = (maps.folder.path(BOOK), maps.folder.path(NEXT));
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_failed()(error)),
        _ => {}
    }
    let held = book.try_clone().map_err(io_failed())?;
    let held = MapData::from_fd(held).map_err(|error| failed(&error))?;
    held.pin(&next).map_err(|error| failed(&error))?;
    sys::update_map(maps.book.fd().as_fd(), book.as_fd()).map_err(io_failed())?;
    fs::rename(&next, &pin).map_err(io_failed())
}

/// The book in force, mapped; `None` if there has never been one.
fn open_book(maps: &Maps) -> Result<Option<Memory<Line>>, Error> {
    let id = match sys::lookup_id(maps.book.fd().as_fd(), 0) {
        Ok(id) => id,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("asking for the book of access")(error)),
    };
    let pinned = [BOOK, NEXT].into_iter().find_map(|name| {
        let book = MapData::from_pin(maps.folder.path(name)).ok()?;
        book.info().is_ok_and(|info| info.id() == id).then_some(book)
    });
    // A version before this one has pinned none.
    let book = match pinned {
        Some(book) => book,
        None => MapData::from_id(id).map_err(|error| failed(&error))?,
    };
    let info = book.info().map_err(|error| failed(&error))?;
    let memory = Memory::map(book.fd().as_fd(), info.max_entries() as usize);
    memory.map(Some).map_err(Error::io("mapping the book of access"))
}

/// Returns the text behind a book.
fn text_of(book: &Memory<Line>) -> String {
    let head = book.read(0).unwrap_or_default();
    let (first, bytes) = (head.words[TEXT_WORD] as usize, head.words[BYTES_WORD] as usize);
    let lines = (first..book.len()).filter_map(|at| book.read(at));
    let mut text: Vec<u8> = lines.flat_map(|line| line.words).flat_map(u64::to_le_bytes).collect();
    text.truncate(bytes);
    String::from_utf8(text).unwrap_or_default()
}

fn current(maps: &Maps) -> Result<(Access, Numbers), Error> {
    let Some(book) = open_book(maps)? else { return Ok(Default::default()) };
    access::read(&text_of(&book)).ok_or_else(|| Error::Load {
        what: "the book of access".to_owned(),
        reason: "it is not one that this program has written".to_owned(),
    })
}

/// Returns the rules in force in the calling thread's network namespace.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn get() -> Result<Access, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    Ok(current(&Maps::open(&folder)?)?.0)
}

/// Why rules were not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// What the change itself said.
    #[error("{0}")]
    Change(String),
    /// Too many prefixes.
    #[error("{0} prefixes are more than the {PREFIXES_MAX} that there may be")]
    TooMany(usize),
    /// The data plane.
    #[error(transparent)]
    Dataplane(#[from] Error),
}

/// Changes the rules as a whole: packets meet the old ones or the new ones. Returns what the change did.
///
/// # Errors
/// What the change said, too many prefixes, nothing attached, a missing capability, or programs that the
/// kernel does not take; then nothing is changed.
pub fn edit<R>(change: impl FnOnce(&mut Access) -> Result<R, String>) -> Result<R, Refused> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    let maps = Maps::open(&folder)?;
    let (old, old_numbers) = current(&maps)?;
    let mut new = old.clone();
    let result = change(&mut new).map_err(Refused::Change)?;
    new.tidy();
    if new.prefixes() > PREFIXES_MAX {
        return Err(Refused::TooMany(new.prefixes()));
    }
    if new != old {
        replace(&maps, (&old, &old_numbers), &new)?;
    }
    Ok(result)
}

fn replace(
    maps: &Maps,
    (old, old_numbers): (&Access, &Numbers),
    new: &Access,
) -> Result<(), Error> {
    load::ensure_group(Group::Guard)?;
    let numbers = numbers(old_numbers, new);
    let (_, unit_ns) = load::clock()?;
    let text = access::text(new, &numbers);
    let lines = access::book(new, &numbers, unit_ns, &text);
    // What suits both.
    announce(maps, |id| {
        let number = old_numbers.get(&id).or_else(|| numbers.get(&id)).copied();
        (number, old.guards(id) || new.guards(id))
    })?;
    number_sources(maps, old.is_numbered() || new.is_numbered())?;
    put_in_force(maps, &lines)?;
    announce(maps, |id| (numbers.get(&id).copied(), new.guards(id)))?;
    number_sources(maps, new.is_numbered())
}

/// Gives each service with rules a line: the one it has, else one that nobody has.
fn numbers(old: &Numbers, new: &Access) -> Numbers {
    let taken: BTreeSet<u32> = old.values().copied().collect();
    let mut free = (1..).filter(|number| !taken.contains(number));
    let number = |id: &ServiceId| old.get(id).copied().or_else(|| free.next());
    let number = new.services.keys().map(number).collect::<Vec<_>>();
    new.services.keys().copied().zip(number.into_iter().flatten()).collect()
}

/// Tells each service the line of its own rules, and whether it is guarded.
fn announce(maps: &Maps, what: impl Fn(ServiceId) -> (Option<u32>, bool)) -> Result<(), Error> {
    for id in 1..maps.settings().services {
        let before = maps.services.read(id).unwrap_or_default();
        if before.family == 0 {
            continue;
        }
        let mut record = before;
        mark(&mut record, what(service_id(&before)));
        if record != before {
            maps.services.update(id, &record)?;
        }
    }
    Ok(())
}

fn mark(record: &mut Service, (number, guarded): (Option<u32>, bool)) {
    record.access = number.unwrap_or(0);
    record.flags &= !service_flag::GUARDED;
    record.flags |= if guarded { service_flag::GUARDED } else { 0 };
}

/// Has the sweep count connections for the networks of their clients, or not.
fn number_sources(maps: &Maps, on: bool) -> Result<(), Error> {
    let mut settings = maps.settings();
    let before = settings.flags;
    settings.flags &= !settings_flag::NUMBERED;
    settings.flags |= if on { settings_flag::NUMBERED } else { 0 };
    if settings.flags == before { Ok(()) } else { maps.settings.update(0, &settings) }
}

/// Which services are guarded, for services that are added.
#[derive(Debug, Default)]
pub(super) struct Guards {
    all: bool,
    numbers: Numbers,
}

impl Guards {
    pub(super) fn of(maps: &Maps) -> Result<Self, Error> {
        let Some(book) = open_book(maps)? else { return Ok(Self::default()) };
        let rules = Rules::of(&book.read(0).unwrap_or_default());
        // Most texts are of prefixes, which are not looked at.
        let numbers =
            if rules.lines > 1 { access::numbers(&text_of(&book)) } else { Numbers::new() };
        Ok(Self { all: rules.flags & rules_flag::PRESENT != 0, numbers })
    }

    /// Marks the record of a service.
    pub(super) fn mark(&self, record: &mut Service, id: ServiceId) {
        let number = self.numbers.get(&id).copied();
        mark(record, (number, self.all || number.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use rlvs_control::access::Verdict;
    use rlvs_control::model::Family;

    use super::*;

    #[test]
    fn a_number_never_means_two_services() {
        let id = |mark| ServiceId::Mark { family: Family::V4, mark };
        let access = |marks: &[u32]| {
            let mut access = Access::default();
            for mark in marks {
                let prefix = "10.0.0.0/8".parse().unwrap();
                access.rules_mut(Some(id(*mark))).prefixes.insert(prefix, Verdict::Deny);
            }
            access
        };
        let first = numbers(&Numbers::new(), &access(&[1, 2, 3]));
        assert_eq!(first, Numbers::from([(id(1), 1), (id(2), 2), (id(3), 3)]));
        let second = numbers(&first, &access(&[2, 9]));
        assert_eq!(second, Numbers::from([(id(2), 2), (id(9), 4)]), "1 and 3 are of the old book");
        let third = numbers(&second, &access(&[5, 9]));
        assert_eq!(third, Numbers::from([(id(5), 1), (id(9), 4)]));
    }
}
