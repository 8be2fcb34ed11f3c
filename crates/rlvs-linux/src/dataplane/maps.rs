//! The pinned maps of one network namespace, as memory.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, MapType};
use rlvs_datapath::abi::{
    Base, Connections4, Connections6, Counts, Destination, Endpoints4, Endpoints6, Estimate,
    Favourites, Interfaces, MarkRules, Pool, REASONS, Row, Schedule, Service, Settings,
    SweepCursor, TIMER_BYTES, Totals, Tunnel, Wides,
};

use super::error::Error;
use super::pins::{self, Folder};
use super::sys::{self, Element, Memory};

/// One pinned array map. Where an element of the kernel's holds several of ours, they are elements
/// here, and are not to be [updated](Self::update).
///
/// Its memory is mapped when it is first touched: the kernel enters every page of an array at once,
/// which for the tables of a million connections takes longer than what most commands do.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    map: MapData,
    memory: OnceCell<Memory<T>>,
    map_in: MapIn<T>,
    elements: usize,
    name: &'static str,
    updates: Cell<u64>,
}

type MapIn<T> = fn(BorrowedFd<'_>, usize) -> io::Result<Memory<T>>;

impl<T: Element> Mapped<T> {
    pub(super) fn open(folder: &Folder, name: &'static str) -> Result<Self, Error> {
        Self::open_by(folder, name, Memory::map)
    }

    /// Opens a map to look at: nothing of it can be written by this mapping.
    pub(super) fn look(folder: &Folder, name: &'static str) -> Result<Self, Error> {
        Self::open_by(folder, name, Memory::look)
    }

    fn open_by(folder: &Folder, name: &'static str, map_in: MapIn<T>) -> Result<Self, Error> {
        let failed = |reason: String| Error::Load {
            what: pins::shown(folder, name),
            reason: format!("{reason}; `rlvs detach` and `rlvs attach` make all of it anew"),
        };
        let map = pinned(folder, name)?;
        let info = map.info().map_err(|error| failed(reason(&error)))?;
        if !info.map_type().is_ok_and(|kind| kind == MapType::Array) {
            return Err(failed("it is a map of another kind, not one of ours".to_owned()));
        }
        let (found, known) = (info.value_size() as usize, size_of::<T>());
        if found == 0 || !found.is_multiple_of(known) {
            return Err(failed(format!("its elements have {found} bytes instead of {known}")));
        }
        let elements = info.max_entries() as usize * (found / known);
        let memory = OnceCell::new();
        Ok(Self { map, memory, map_in, elements, name, updates: Cell::new(0) })
    }

    /// Maps the memory now.
    ///
    /// # Errors
    /// The kernel refused.
    fn mapped(self, folder: &Folder) -> Result<Self, Error> {
        let memory = (self.map_in)(self.map.fd().as_fd(), self.elements)
            .map_err(Error::io(format!("mapping {}", pins::shown(folder, self.name))))?;
        self.memory.get_or_init(|| memory);
        Ok(self)
    }

    fn memory(&self) -> &Memory<T> {
        self.memory.get_or_init(|| {
            (self.map_in)(self.map.fd().as_fd(), self.elements).unwrap_or_else(|error| {
                // Others of these maps were mapped: there is no memory, and this is no other end than
                // that of an allocation. What is unsettled the next command settles.
                eprintln!("rlvs: mapping the table `{}`: {error}", self.name);
                std::process::abort()
            })
        })
    }

    /// Returns an element; see [`Memory::get`].
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.memory().get(index as usize)
    }

    /// Copies an element.
    pub(super) fn read(&self, index: u32) -> Option<T> {
        self.memory().read(index as usize)
    }

    /// Writes an element, whole.
    pub(super) fn update(&self, index: u32, value: &T) -> Result<(), Error> {
        self.updates.set(self.updates.get() + 1);
        sys::update(self.map.fd().as_fd(), index, value)
            .map_err(Error::io(format!("writing element {index} of map {}", self.name)))
    }

    /// Writes an element that nobody reads yet, or of which one word changes.
    pub(super) fn write(&self, index: u32, value: T) {
        self.memory().write(index as usize, value);
    }

    /// Returns a word of an element.
    pub(super) fn word(&self, index: u32, field: impl Fn(&T) -> &Cell<u64>) -> Option<&AtomicU64> {
        self.memory().word(index as usize, field)
    }

    pub(super) fn len(&self) -> u32 {
        self.elements as u32
    }
}

/// Opens a map by its pin.
pub(super) fn pinned(folder: &Folder, name: &str) -> Result<MapData, Error> {
    MapData::from_pin(folder.path(name)).map_err(|error| {
        let what = pins::shown(folder, name);
        match (folder.is_removed(), folder.path(name).exists()) {
            (true, _) => Error::NotAttached,
            (false, true) => Error::Load { what, reason: reason(&error) },
            (false, false) => Error::Unpinned(what),
        }
    })
}

/// Puts an error and its causes on one line.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text
}

/// The maps that commands read and write.
#[derive(Debug)]
pub struct Maps {
    pub(super) settings: Mapped<Settings>,
    pub(super) services: Mapped<Service>,
    pub(super) schedules: Mapped<Schedule>,
    pub(super) totals: Mapped<Totals>,
    pub(super) estimates: Mapped<Estimate>,
    pub(super) bases: Mapped<Base>,
    pub(super) rings: Mapped<u64>,
    pub(super) destinations: Mapped<Destination>,
    pub(super) tunnels: Mapped<Tunnel>,
    pub(super) counts: Mapped<Counts>,
    pub(super) overloads: Mapped<Cell<u64>>,
    pub(super) favourites: Mapped<Favourites>,
    pub(super) rows: Mapped<Row>,
    pub(super) endpoints4: Mapped<Endpoints4>,
    pub(super) endpoints6: Mapped<Endpoints6>,
    pub(super) presence: Mapped<Cell<u64>>,
    pub(super) connections4: Mapped<Connections4>,
    pub(super) connections6: Mapped<Connections6>,
    pub(super) wide: Mapped<Wides>,
    pub(super) marks: Mapped<MarkRules>,
    pub(super) pools: Mapped<Pool>,
    pub(super) interfaces: Mapped<Interfaces>,
    pub(super) book: MapData,
    /// Where they are pinned.
    pub(super) folder: Folder,
    reasons: Mapped<Cell<u64>>,
    sweep: MapData,
}

impl Maps {
    /// Opens the maps that are pinned in a folder.
    ///
    /// # Errors
    /// A missing capability, or maps of another layout.
    pub fn open(folder: &Folder) -> Result<Self, Error> {
        let maps = Self::open_unchecked(folder)?;
        match maps.settings().layout {
            known if known == pins::layout() => Ok(maps),
            found => Err(Error::Layout { found, known: pins::layout() }),
        }
    }

    /// Opens the maps before anything is in them.
    pub(super) fn open_unchecked(folder: &Folder) -> Result<Self, Error> {
        Ok(Self {
            // At once: a kernel that lets nothing be mapped says so here.
            settings: Mapped::open(folder, "settings")?.mapped(folder)?,
            services: Mapped::open(folder, "services")?,
            schedules: Mapped::open(folder, "schedules")?,
            totals: Mapped::open(folder, "totals")?,
            estimates: Mapped::open(folder, "estimates")?,
            bases: Mapped::open(folder, "bases")?,
            rings: Mapped::open(folder, "rings")?,
            destinations: Mapped::open(folder, "destinations")?,
            tunnels: Mapped::open(folder, "tunnels")?,
            counts: Mapped::open(folder, "counts")?,
            overloads: Mapped::open(folder, "overloads")?,
            favourites: Mapped::open(folder, "favourites")?,
            rows: Mapped::open(folder, "rows")?,
            endpoints4: Mapped::open(folder, "endpoints4")?,
            endpoints6: Mapped::open(folder, "endpoints6")?,
            presence: Mapped::open(folder, "presence")?,
            connections4: Mapped::open(folder, "connections4")?,
            connections6: Mapped::open(folder, "connections6")?,
            wide: Mapped::open(folder, "wide")?,
            marks: Mapped::open(folder, "marks")?,
            pools: Mapped::open(folder, "pools")?,
            interfaces: Mapped::open(folder, "interfaces")?,
            book: pinned(folder, "book")?,
            folder: folder.again()?,
            reasons: Mapped::open(folder, "reasons")?,
            sweep: open_sweep(folder)?,
        })
    }

    /// Returns how many elements have been written by a system call.
    pub(super) fn updates(&self) -> u64 {
        let tables = [&self.services.updates, &self.destinations.updates, &self.tunnels.updates];
        let others = [
            &self.settings.updates,
            &self.totals.updates,
            &self.schedules.updates,
            &self.bases.updates,
            &self.rows.updates,
        ];
        let endpoints = [&self.endpoints4.updates, &self.endpoints6.updates];
        tables.into_iter().chain(others).chain(endpoints).map(Cell::get).sum()
    }

    /// Copies the settings.
    pub fn settings(&self) -> Settings {
        self.settings.read(0).unwrap_or_default()
    }

    /// Returns the sweep's cursor.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn sweep(&self) -> Result<SweepCursor, Error> {
        sweep(&self.sweep)
    }

    /// Returns the coarse time, as of a few milliseconds ago.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn now(&self) -> Result<u32, Error> {
        Ok(self.sweep()?.now.get() as u32)
    }

    /// Returns how many packets every CPU has counted under a reason.
    pub fn reason(&self, reason: u32) -> u64 {
        counted(&self.reasons, self.settings().cpus, reason)
    }
}

/// Returns how many packets every CPU has counted under a reason.
pub(super) fn counted(reasons: &Mapped<Cell<u64>>, cpus: u32, reason: u32) -> u64 {
    (0..cpus)
        .filter_map(|cpu| reasons.word(cpu * REASONS + reason, |word| word))
        .map(|word| word.load(Ordering::Relaxed))
        .sum()
}

/// Opens the map of the sweep.
pub(super) fn open_sweep(folder: &Folder) -> Result<MapData, Error> {
    pinned(folder, "sweep")
}

/// Returns the sweep's cursor.
pub(super) fn sweep(map: &MapData) -> Result<SweepCursor, Error> {
    const WORDS: usize = (TIMER_BYTES + size_of::<SweepCursor>()) / 8;
    let words: [u64; WORDS] =
        sys::lookup(map.fd().as_fd(), 0).map_err(Error::io("reading where the sweep is"))?;
    let [.., word, passes, removed, now, estimated, round_ns, of4, of6, of_wide] = words;
    let cell = Cell::new;
    Ok(SweepCursor {
        word: cell(word),
        passes: cell(passes),
        removed: cell(removed),
        now: cell(now),
        estimated: cell(estimated),
        round_ns: cell(round_ns),
        filled: [cell(of4), cell(of6), cell(of_wide)],
    })
}
