//! The decapsulator of real servers whose kernel has no tunnel devices.
//!
//! A program at TC ingress (TCX, Linux 6.6) takes IP in IP, GRE and GUE off packets to addresses of
//! this host. It is attached without a link: it stays until the interface goes, whatever becomes of
//! the process, and its counters can be read while a [`Decapsulator`] is held. That the host holds
//! the virtual address, and takes packets from where the routing table would not expect them
//! (`rp_filter`), is the affair of whoever sets the host up.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use aya::maps::{Array, HashMap, MapError};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};

use crate::route::{self, Rtnetlink};

#[expect(dead_code, unreachable_pub, reason = "shared with the program, which needs more")]
#[path = "../../rlvs-ebpf/src/tunnel.rs"]
mod tunnel;

pub use tunnel::{ADDRESSES_MAX, Encapsulation, Kind, Refusal};

/// The program, compiled to BPF; kept beside its source.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../rlvs-ebpf/object/decap.bpf.o");
/// Names another folder of objects, for tests of a rebuilt one.
const OBJECT_FOLDER: &str = "RLVS_BPF_OBJECT_DIR";
const PROGRAM: &str = "decap";

/// Why the decapsulator could not be loaded, attached or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The object of the folder that `RLVS_BPF_OBJECT_DIR` names cannot be read.
    #[error("reading {}", path.display())]
    Object {
        /// The object.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did not take the maps.
    #[error("making the decapsulator's maps needs CAP_BPF")]
    Maps(#[source] Box<EbpfError>),
    /// The kernel did not take the program.
    #[error("loading the decapsulator needs CAP_BPF and CAP_NET_ADMIN")]
    Program(#[source] Box<ProgramError>),
    /// The object is not the decapsulator's.
    #[error("the decapsulator's object has no {0}")]
    Missing(&'static str),
    /// A map cannot be read or written, or does not hold so many addresses.
    #[error("the decapsulator's map {name}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        source: Box<MapError>,
    },
    /// The interface did not take the program.
    #[error("attaching the decapsulator to {interface}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interfaces cannot be listed.
    #[error(transparent)]
    Route(#[from] route::Error),
}

/// What a decapsulator has counted, without what has not occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets taken out.
    pub taken_out: BTreeMap<Kind, u64>,
    /// Tunnel packets dropped.
    pub refused: BTreeMap<Refusal, u64>,
}

/// A loaded decapsulator.
#[derive(Debug)]
pub struct Decapsulator {
    ebpf: Ebpf,
}

impl Decapsulator {
    /// Loads the program and attaches it to interfaces of the calling thread's network namespace,
    /// for tunnel packets to the addresses that the namespace has at this moment. GUE comes to
    /// UDP port `gue_port`.
    ///
    /// # Errors
    /// A missing capability, no such interface.
    pub fn attach(interfaces: &[&str], gue_port: u16) -> Result<Self, Error> {
        let mut rtnetlink = Rtnetlink::open()?;
        let links = rtnetlink.links()?;
        let prefixes = links.iter().flat_map(|link| &link.addresses);
        let addresses: Vec<IpAddr> = prefixes.map(|prefix| prefix.address).collect();
        let decapsulator = Self::load(&addresses, gue_port)?;
        let program = decapsulator.program()?;
        let program = program.fd().map_err(|error| Error::Program(Box::new(error)))?;
        for &interface in interfaces {
            let link = links.iter().find(|link| link.name == interface);
            let failed = |source| Error::Attach { interface: interface.to_owned(), source };
            let absent = || failed(io::Error::from_raw_os_error(libc::ENODEV));
            let index = link.ok_or_else(absent)?.index;
            match attach(program, index) {
                // A kernel without TCX: a filter, which the interface alone holds too.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    rtnetlink.add_clsact(index)?;
                    rtnetlink.set_ingress_filter(index, 1, program.as_fd())?;
                }
                done => done.map_err(failed)?,
            }
        }
        Ok(decapsulator)
    }

    /// Loads the program for tunnel packets to some addresses, and attaches it to nothing.
    ///
    /// # Errors
    /// A missing capability, or more than [`ADDRESSES_MAX`] addresses.
    pub fn load(addresses: &[IpAddr], gue_port: u16) -> Result<Self, Error> {
        let object = object()?;
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .load(&object)
            .map_err(|error| Error::Maps(Box::new(error)))?;
        let map = ebpf.map_mut(PORT).ok_or(Error::Missing(PORT))?;
        Array::<_, u64>::try_from(map)
            .and_then(|mut map| map.set(0, u64::from(gue_port), 0))
            .map_err(in_map(PORT))?;
        let map = ebpf.map_mut(ADDRESSES).ok_or(Error::Missing(ADDRESSES))?;
        let mut map = HashMap::<_, [u32; 4], u64>::try_from(map).map_err(in_map(ADDRESSES))?;
        for &address in addresses {
            map.insert(key(address), 1, 0).map_err(in_map(ADDRESSES))?;
        }
        let program = ebpf.program_mut(PROGRAM).and_then(|program| program.try_into().ok());
        let program: &mut SchedClassifier = program.ok_or(Error::Missing(PROGRAM))?;
        program.load().map_err(|error| Error::Program(Box::new(error)))?;
        Ok(Self { ebpf })
    }

    /// Returns the loaded program, for test runs.
    ///
    /// # Errors
    /// Never after [`Self::load`].
    pub fn program(&self) -> Result<&SchedClassifier, Error> {
        let program = self.ebpf.program(PROGRAM).and_then(|program| program.try_into().ok());
        program.ok_or(Error::Missing(PROGRAM))
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// A missing capability.
    pub fn counters(&self) -> Result<Counters, Error> {
        let map = self.ebpf.map(COUNTERS).ok_or(Error::Missing(COUNTERS))?;
        let map = Array::<_, u64>::try_from(map).map_err(in_map(COUNTERS))?;
        let count = |counter| map.get(&counter, 0).map_err(in_map(COUNTERS));
        let mut counters = Counters::default();
        for encapsulation in Encapsulation::ALL {
            for (outer_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let kind = Kind { encapsulation, outer_v6, inner_v6 };
                counters.taken_out.insert(kind, count(kind.counter())?);
            }
        }
        for refusal in Refusal::ALL {
            counters.refused.insert(refusal, count(refusal.counter())?);
        }
        counters.taken_out.retain(|_, count| *count > 0);
        counters.refused.retain(|_, count| *count > 0);
        Ok(counters)
    }
}

const PORT: &str = "port";
const ADDRESSES: &str = "addresses";
const COUNTERS: &str = "counters";

fn in_map(name: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { name, source: Box::new(source) }
}

fn object() -> Result<std::borrow::Cow<'static, [u8]>, Error> {
    let Some(folder) = std::env::var_os(OBJECT_FOLDER) else { return Ok(OBJECT.into()) };
    let path = PathBuf::from(folder).join("decap.bpf.o");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(bytes.into()),
        Err(source) => Err(Error::Object { path, source }),
    }
}

/// Returns the address as the map has it: as an IPv6 one, in words of network order.
fn key(address: IpAddr) -> [u32; 4] {
    let address: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut key = [0; 4];
    for (word, bytes) in key.iter_mut().zip(address.octets().as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    key
}

/// Attaches without a link, so that the interface alone holds the program.
fn attach(program: impl AsFd, index: u32) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_TCX_INGRESS: u32 = 46;

    /// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct AttachRequest {
        interface: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
        replaced: u32,
        relative: u32,
        revision: u64,
    }

    let request = AttachRequest {
        interface: index,
        program: program.as_fd().as_raw_fd() as u32,
        attach_type: BPF_TCX_INGRESS,
        flags: 0,
        replaced: 0,
        relative: 0,
        revision: 0,
    };
    // SAFETY: the kernel reads the request, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const request,
            size_of::<AttachRequest>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
