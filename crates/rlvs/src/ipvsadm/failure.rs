//! Why a command line failed, and with which exit status.

use rlvs_control::table;

/// Why a command line failed. The kinds are those that upstream tells apart by exit status and
/// by whether `-R` goes on with the next line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The first word is not a command.
    #[error("{0}")]
    NoCommand(String),
    /// A word is no option that we have, or lacks its value.
    #[error("{0}")]
    BadOption(String),
    /// A value, or options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The table refused an edit.
    #[error("{0}")]
    Refused(String),
    /// The table could not be read.
    #[error("{0}")]
    Unreadable(#[source] table::Error),
    /// The table could not be opened.
    #[error("{0}")]
    Unavailable(#[source] table::Error),
    /// The answer could not be written.
    #[error("writing to standard output: {0}")]
    Output(#[source] std::io::Error),
    /// The lines to restore could not be read.
    #[error("reading standard input: {0}")]
    Input(#[source] std::io::Error),
}

impl Failure {
    /// Returns the exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::NoCommand(_) | Self::BadOption(_) | Self::Refused(_) => 255,
            Self::Usage(_) | Self::Unavailable(_) => 2,
            Self::Unreadable(_) | Self::Output(_) | Self::Input(_) => 1,
        }
    }

    /// Returns whether a restore reads no further.
    pub(crate) fn ends_restore(&self) -> bool {
        !matches!(self, Self::BadOption(_) | Self::Refused(_))
    }
}
