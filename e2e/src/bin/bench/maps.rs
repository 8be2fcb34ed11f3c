//! BPF array maps as memory of this process.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::Map;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An array map whose elements are `T`s, or several of them each.
pub(crate) struct Mapped<T> {
    start: NonNull<c_void>,
    length: usize,
    elements: usize,
    elements_are: PhantomData<T>,
}

impl<T> Mapped<T> {
    /// The kernel gives each element a multiple of eight bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps the map of this name.
    pub(crate) fn new(ebpf: &Ebpf, name: &str) -> Result<Self> {
        let map = ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        let Map::Array(data) = map else { bail!("map {name} is not an array") };
        let info = data.info()?;
        let several = info.value_size() as usize / size_of::<T>().max(1);
        ensure!(
            info.value_size() as usize == several.max(1) * size_of::<T>(),
            "the elements of map {name} have {} bytes and not {}",
            info.value_size(),
            size_of::<T>()
        );
        let elements = info.max_entries() as usize * several;
        let length = Self::STRIDE * elements;
        let size = NonZeroUsize::new(length).context("the map is empty")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, data.fd().as_fd(), 0) }
            .with_context(|| format!("mapping map {name}"))?;
        Ok(Self { start, length, elements, elements_are: PhantomData })
    }

    /// Returns a copy of an element.
    ///
    /// # Panics
    /// No such element.
    pub(crate) fn get(&self, index: u32) -> T
    where
        T: Copy,
    {
        // SAFETY: `place` is an element of plain numbers; programs run only when this process asks.
        unsafe { self.place(index).read_volatile() }
    }

    /// Replaces an element.
    ///
    /// # Panics
    /// No such element.
    pub(crate) fn set(&mut self, index: u32, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.place(index).write_volatile(value) }
    }

    /// Returns all of it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the whole mapping, which only this value refers to, and no program runs.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length) }
    }

    fn place(&self, index: u32) -> *mut T {
        let index = index as usize;
        assert!(index < self.elements, "element {index} of {}", self.elements);
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.start.as_ptr().byte_add(index * Self::STRIDE).cast() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing refers to it any more.
        unsafe { munmap(self.start, self.length) }.ok();
    }
}
