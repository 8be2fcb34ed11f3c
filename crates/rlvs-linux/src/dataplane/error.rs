//! What can go wrong between us and the kernel's BPF.

use std::io;

use crate::capability::{Capability, missing, names};

/// What edits of a table that is there need.
pub(super) const EDITING: &[Capability] = &[Capability::Bpf, Capability::NetAdmin];
/// What programs need to be loaded.
pub(super) const LOADING: &[Capability] =
    &[Capability::Bpf, Capability::Perfmon, Capability::NetAdmin];
/// What a first attachment needs.
pub(super) const MOUNTING: &[Capability] =
    &[Capability::Bpf, Capability::Perfmon, Capability::NetAdmin, Capability::SysAdmin];

/// Why the data plane could not be read, made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on a file or folder of pins.
    #[error("{operation}")]
    Io {
        /// What was done, and to what.
        operation: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A capability is missing.
    #[error("{operation} needs {}: run it as root, for example with sudo", names(capabilities))]
    Capability {
        /// What was to be done.
        operation: String,
        /// Those that are missing.
        capabilities: Vec<Capability>,
    },
    /// Everything is permitted but what the owner and mode of a file keep for others.
    #[error(
        "{operation}: whose pins these are, root as a rule, must run this, or give them away (chown -R)"
    )]
    Owner {
        /// What was to be done.
        operation: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No data plane in this network namespace.
    #[error("no interface of this network namespace is attached; `rlvs attach` does that")]
    NotAttached,
    /// Somebody else looks at packets.
    #[error("another `rlvs capture` runs in this network namespace; only one can")]
    Capturing,
    /// Programs cannot be exchanged while somebody looks at packets.
    #[error(
        "the attached programs are another version's, and an `rlvs capture` runs over them; \
         end it, then `rlvs upgrade` exchanges them"
    )]
    Looking,
    /// The pins are of another layout.
    #[error(
        "the pinned maps have layout {found}, this program knows layout {known}; packets are balanced \
         as before, and with the program that made them the table can be shown, saved \
         (`ipvsadm -S -n --full`) and detached; `rlvs upgrade --from` that program takes over all, \
         connections too; `rlvs uninstall` removes all"
    )]
    Layout {
        /// Layout of the pins.
        found: u32,
        /// Layout of this program.
        known: u32,
    },
    /// What is in maps of another layout was not taken over.
    #[error("taking over the maps of layout {found}: {reason}; they are in use as before")]
    Succession {
        /// Layout of those maps.
        found: u32,
        /// What was in the way.
        reason: String,
    },
    /// The kernel did not take the maps or programs.
    #[error("loading {what}: {reason}")]
    Load {
        /// Map or program.
        what: String,
        /// What the loader or the verifier said.
        reason: String,
    },
    /// Somebody has removed a pin.
    #[error(
        "{0} is gone, which somebody must have removed: packets are balanced as before, but the table cannot be \
         read or changed any more; `rlvs detach` takes all off, to be made anew"
    )]
    Unpinned(String),
    /// An interface did not take a program.
    #[error("interface {interface}: {reason}")]
    Attach {
        /// Its name.
        interface: String,
        /// What is in the way, and the way out.
        reason: String,
    },
    /// A question to the kernel's network configuration.
    #[error(transparent)]
    Route(#[from] crate::route::Error),
    /// A sysctl.
    #[error(transparent)]
    Sysctl(#[from] crate::sysctl::Error),
    /// Two attached interfaces whose numbers fall together too often.
    #[error("interface {0}: no room in the interface map; detach another one first")]
    Interfaces(String),
}

impl Error {
    pub(super) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| match source.raw_os_error() {
            Some(code @ (libc::EPERM | libc::EACCES)) => Self::refused(&operation, EDITING)
                .unwrap_or(match code {
                    libc::EACCES => Self::Owner { operation, source },
                    _ => Self::Io { operation, source },
                }),
            _ => Self::Io { operation, source },
        }
    }

    /// Tells why the kernel did not permit something, if a capability is missing for it: without that
    /// it is a file's mode, or a security module.
    pub(super) fn refused(operation: &str, needed: &[Capability]) -> Option<Self> {
        let capabilities = missing(needed);
        let operation = operation.to_owned();
        (!capabilities.is_empty()).then_some(Self::Capability { operation, capabilities })
    }
}

impl From<Error> for rlvs_control::table::Error {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        Self::System(text)
    }
}
