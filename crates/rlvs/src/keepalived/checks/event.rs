//! What an operator is told: values, made into a line at the very end.

use std::fmt;

use rlvs_conf::desired::Script;

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A server is good.
    ServerUp,
    /// A server is bad.
    ServerDown,
    /// A check has set a server's weight.
    Weight,
    /// The quorum is gained.
    QuorumUp,
    /// The quorum is lost.
    QuorumDown,
    /// An attempt failed, and nothing follows from it yet.
    Failed,
    /// An attempt could not be made.
    NotAsked,
    /// Something in the configuration is not carried out.
    Unsupported,
    /// The table differed from how it was left.
    Foreign,
    /// The table refused a change, or could not be opened.
    Refused,
}

impl Kind {
    /// Returns its name in the daemon's state and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ServerUp => "server_up",
            Self::ServerDown => "server_down",
            Self::Weight => "weight",
            Self::QuorumUp => "quorum_up",
            Self::QuorumDown => "quorum_down",
            Self::Failed => "check_failed",
            Self::NotAsked => "not_asked",
            Self::Unsupported => "unsupported",
            Self::Foreign => "table_changed",
            Self::Refused => "table_refused",
        }
    }
}

/// Something that an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind of thing.
    pub kind: Kind,
    /// The service concerned.
    pub service: String,
    /// The server concerned, if it is one.
    pub server: Option<String>,
    /// Why.
    pub cause: String,
    /// What follows.
    pub consequence: String,
    /// What the configuration wants run.
    pub script: Option<Script>,
    /// Whether the configuration wants a mail.
    pub mail: bool,
}

impl fmt::Display for Event {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(server) = &self.server {
            write!(to, "{server} of ")?;
        }
        write!(to, "VS {}: {}", self.service, self.cause)?;
        if self.consequence.is_empty() { Ok(()) } else { write!(to, ": {}", self.consequence) }
    }
}
