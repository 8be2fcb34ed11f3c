//! VRRP, versions 2 and 3, IPv4 and IPv6, as a value.
//!
//! A [`Router`] has all virtual routers of a host. It owns no socket, clock or thread: what happens
//! goes in by [`Router::handle`] and [`Router::handle_timeout`], what is to be done comes out of
//! [`Router::poll_output`]. What the edge promises: it drains the outputs after each call and carries
//! them out in order; time does not run backwards; at [`Output::ReadFirst`] it hands over every
//! packet that waits in its sockets and then says [`Input::AllRead`]. So a process that was frozen
//! hears who has taken over before it speaks.
//!
//! Absent: authentication by AH and by trailer (`auth_hmac`).

mod announce;
pub mod config;
mod event;
mod hear;
mod instance;
mod receive;
mod router;
mod routing;
mod speak;
#[cfg(test)]
mod tests;
mod track;

pub use event::{Event, Input, LinkState, Output, Received, State, Who, Why};
pub use receive::{Counters, Rejection};
pub use router::{Router, Status};
