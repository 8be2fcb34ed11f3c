//! The control plane without IO: values in, values out.
//!
//! [`model`] holds the words of LVS as types, [`table`] the one interface through which every
//! front end reads and edits a virtual-server table, [`check`] what every table refuses,
//! [`memory`] the plain table that tests use, [`scheduler`] what each scheduler has laid out for the
//! data plane, [`ring`] the order in which rr and wrr take destinations,
//! [`routing`] routes and rules that come and go, [`plan`] what makes one table
//! of another, [`access`] who may open connections, [`checks`] health of real servers, [`upkeep`] a table kept as it should be, [`vrrp`] the
//! virtual routers that move addresses. Nothing here opens a socket or a file.
#![forbid(unsafe_code)]

pub mod access;
pub mod check;
pub mod checks;
mod maglev;
pub mod memory;
pub mod model;
pub mod plan;
pub mod ring;
pub mod routing;
pub mod scheduler;
pub mod table;
pub mod upkeep;
pub mod vrrp;
