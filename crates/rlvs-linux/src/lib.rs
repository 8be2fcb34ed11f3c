//! The only crate that talks to the kernel.
//!
//! [`netns`] and [`process`] hold namespaces and child processes, [`netlink`] the one request loop
//! that every netlink family here goes through, [`route`] links, addresses, routes and neighbours,
//! [`ethtool`] and [`sysctl`] the switches that netlink does not have, [`xdp_pass`] what a veth peer
//! of native XDP needs, [`probe`] what only packets tell of the network, [`decap`] what a real server without tunnel devices needs, [`names`] the names
//! of hosts and ports, [`capability`] what this process may do, [`dataplane`] our own table, [`ipvs`] the kernel's, [`vrrp`] the thread that moves addresses.

pub mod capability;
pub mod dataplane;
#[expect(unsafe_code, reason = "one kind of attachment that the loader does not have")]
pub mod decap;
#[expect(unsafe_code, reason = "SIOCETHTOOL has no safe wrapper")]
pub mod ethtool;
pub mod features;
pub mod ipvs;
pub mod names;
pub mod netlink;
#[expect(unsafe_code, reason = "work between fork and exec, and one socket option")]
pub mod netns;
#[expect(unsafe_code, reason = "packet sockets have no safe wrapper for what is asked of them")]
pub mod probe;
#[expect(unsafe_code, reason = "work between fork and exec, and pidfds")]
pub mod process;
pub mod route;
pub mod sysctl;
pub mod vrrp;
#[expect(unsafe_code, reason = "one program load that needs no loader")]
pub mod xdp_pass;
