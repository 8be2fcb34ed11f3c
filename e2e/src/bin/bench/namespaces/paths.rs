//! What is measured in namespaces, and what is asked of it.

use crate::paths::short;

/// A way of a packet through a director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Whether clients and servers are behind the same interface of the director.
    pub(super) one_armed: bool,
    pub(super) traffic: Traffic,
    /// Number of connections, to any of which a packet belongs.
    pub(super) flows: u32,
}

/// Forwarding method and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Address translation, from the client.
    Request,
    /// Address translation, to the client.
    Reply,
    /// Direct routing.
    Direct,
}

/// How many times dearer the kernel has to be.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Bound {
    pub(super) must: f64,
    pub(super) aim: f64,
}

impl Path {
    /// Every path, in the order in which they are measured and shown.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for one_armed in [false, true] {
            for flows in [1, 100_000] {
                for traffic in [Traffic::Request, Traffic::Reply] {
                    all.push(Self { one_armed, traffic, flows });
                }
            }
        }
        all.push(Self { one_armed: true, traffic: Traffic::Direct, flows: 1 });
        all
    }

    /// Returns its name, by which it can be chosen.
    pub(crate) fn name(&self) -> String {
        let arms = if self.one_armed { "one-armed" } else { "two-armed" };
        let traffic = match self.traffic {
            Traffic::Request => "nat-request",
            Traffic::Reply => "nat-reply",
            Traffic::Direct => "dr",
        };
        format!("ns/{arms}/{traffic}/{}", short(self.flows))
    }

    /// Returns what is asked of it.
    pub(super) fn bound(&self) -> Option<Bound> {
        match (self.traffic, self.one_armed, self.flows) {
            (Traffic::Direct, ..) => None,
            (_, false, 1) => Some(Bound { must: 2.5, aim: 3.3 }),
            (_, true, 1) => Some(Bound { must: 3.0, aim: 4.0 }),
            _ => Some(Bound { must: 2.0, aim: 2.5 }),
        }
    }
}
