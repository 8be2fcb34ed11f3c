//! What an attempt of a check does.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use rlvs_conf::desired::{CheckerKind, Ends};
use rustls::ClientConfig;

use super::reply::Wanted;
use super::tls;

/// What an attempt of a check does: two that are equal do the same.
#[derive(Clone)]
pub struct Request(Arc<Parts>);

/// Parts of a request.
#[derive(Debug)]
pub struct Parts {
    /// What is done.
    pub kind: CheckerKind,
    /// Ends of its packets.
    pub ends: Ends,
    /// Longest wait for one answer.
    pub patience: Duration,
    /// Who runs its command, if not this process' user.
    pub user: Option<(Uid, Gid)>,
    /// What answers to its URLs must be like.
    pub wanted: Vec<Wanted>,
    /// Tell of every failure.
    pub tell_all: bool,
}

impl Request {
    /// Returns a request of these parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Returns what TLS connections of checks begin with.
    pub fn tls() -> Arc<ClientConfig> {
        static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        CONFIG.get_or_init(tls::config).clone()
    }
}

impl std::ops::Deref for Request {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Self) -> bool {
        (&self.kind, &self.ends, self.patience, self.user, self.tell_all)
            == (&other.kind, &other.ends, other.patience, other.user, other.tell_all)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(to)
    }
}

impl fmt::Display for Request {
    /// Writes the check's kind in the words of the configuration.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match &self.kind {
            CheckerKind::Http(http) if http.tls => "SSL_GET",
            CheckerKind::Http(_) => "HTTP_GET",
            CheckerKind::Tcp => "TCP_CHECK",
            CheckerKind::Misc(_) => "MISC_CHECK",
            CheckerKind::Ping => "PING_CHECK",
            CheckerKind::Udp(_) => "UDP_CHECK",
            CheckerKind::Dns { .. } => "DNS_CHECK",
            CheckerKind::Smtp { .. } => "SMTP_CHECK",
            CheckerKind::Bfd { .. } => "BFD_CHECK",
            CheckerKind::File { .. } => "FILE_CHECK",
        })
    }
}
