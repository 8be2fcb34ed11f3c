//! What an attempt of a check does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use rlvs_conf::desired::{Checker, CheckerKind};
use rustls::ClientConfig;

use super::reply::Wanted;
use super::tls;

/// What an attempt of a check does: two that are equal do the same.
#[derive(Clone)]
pub struct Request {
    /// The configuration's own: there may be very many.
    checker: Arc<Checker>,
    /// Address and port that it looks at.
    at: (IpAddr, u16),
    /// What most checks do without.
    found: Option<Arc<Found>>,
}

/// What was found out for a check beforehand.
#[derive(Debug)]
pub struct Found {
    /// Who runs its command, if not this process' user.
    pub user: Option<(Uid, Gid)>,
    /// What answers to its URLs must be like.
    pub wanted: Vec<Wanted>,
}

impl Request {
    /// Returns the request of a checker of the server with this address and port.
    pub fn new(checker: Arc<Checker>, server: SocketAddr, found: Found) -> Self {
        let at = checker.at.as_ref().map_or(server, |at| **at);
        let at = (at.ip(), at.port());
        let found = (found.user.is_some() || !found.wanted.is_empty()).then(|| Arc::new(found));
        Self { checker, at, found }
    }

    /// Returns the address and port that it looks at.
    pub fn at(&self) -> SocketAddr {
        self.at.into()
    }

    /// Returns the longest wait for one answer, which is no longer than that for all.
    pub fn patience(&self) -> Duration {
        let timing = &self.checker.timing;
        timing.timeout.map_or(timing.connect_timeout, |whole| whole.min(timing.connect_timeout))
    }

    /// Returns who runs its command, if not this process' user.
    pub fn user(&self) -> Option<(Uid, Gid)> {
        self.found.as_ref().and_then(|found| found.user)
    }

    /// Returns what answers to its URLs must be like.
    pub fn wanted(&self) -> &[Wanted] {
        self.found.as_ref().map_or(&[], |found| &found.wanted)
    }

    /// Returns what TLS connections of checks begin with.
    pub fn tls() -> Arc<ClientConfig> {
        static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        CONFIG.get_or_init(tls::config).clone()
    }
}

impl Deref for Request {
    type Target = Checker;

    fn deref(&self) -> &Checker {
        &self.checker
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Self) -> bool {
        let parts = |it: &Self| (it.at, it.patience(), it.user(), it.log_all_failures);
        (&self.kind, &self.origin, parts(self)) == (&other.kind, &other.origin, parts(other))
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.checker.fmt(to)
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
            CheckerKind::Dns(_) => "DNS_CHECK",
            CheckerKind::Smtp { .. } => "SMTP_CHECK",
            CheckerKind::Bfd { .. } => "BFD_CHECK",
            CheckerKind::File { .. } => "FILE_CHECK",
        })
    }
}
