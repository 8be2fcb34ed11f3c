//! Our own virtual-server table: BPF maps that are pinned, programs that hang on pinned links or filters.
//!
//! [`pins`] knows where things are pinned, [`load`] makes a namespace's maps and programs,
//! [`attach`] hangs the programs on interfaces, [`look`] reads beside whoever edits, [`capture`] looks at packets, [`shadow`] finds out what would become of a packet, [`upgrade`] exchanges the programs while packets flow, `clsact` the TC program where there is no TCX, `sysctls` what of the host's settings is changed, [`maps`] is the memory that they share with us, and
//! [`table`] edits it as IPVS would.
//!
//! Invariant: whoever writes holds the lock of its namespace's folder, and whatever instant it is
//! killed at, the next one that takes the lock finds or restores a whole table.

pub mod access;
pub mod attach;
pub mod capture;
pub mod carry;
mod clsact;
mod connections;
mod endpoints;
pub mod error;
pub mod hold;
mod learn;
pub mod load;
mod local;
pub mod look;
pub mod maps;
pub mod marks;
mod neighbours;
pub mod note;
pub mod parameters;
pub mod pins;
pub mod pool;
mod records;
pub mod shadow;
pub mod stages;
pub mod succession;
pub mod sync;
#[expect(unsafe_code, reason = "bpf(2) and mmap(2) have no safe wrapper for what is done here")]
mod sys;
mod sysctls;
pub mod table;
mod tell;
pub mod upgrade;

pub use error::Error;
