//! The kernel's own IPVS, driven by generic netlink (family `IPVS`, `linux/ip_vs.h`).
//!
//! [`table::KernelTable`] is the table behind the trait; it owns the socket. What is sent and
//! what is read is made without it: [`encode`] requests, [`decode`] answers, [`connections`] the
//! lines of `/proc/net/ip_vs_conn`; [`message`] takes messages apart and [`uapi`] has the numbers.

pub mod connections;
pub mod decode;
pub mod encode;
pub mod message;
pub mod table;
#[cfg(test)]
mod tests;
pub mod uapi;
