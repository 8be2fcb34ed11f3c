//! What a configuration asks of the machine that it is read on.

use std::path::{Path, PathBuf};

/// Why a file was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// There is none.
    Missing,
    /// It is a folder, a pipe, or may be executed: no configuration.
    NotConfiguration,
    /// It is longer than the bytes that were asked for at most.
    TooLong,
    /// Something else, in the words of the system.
    Failed(String),
}

/// The machine, as far as a configuration sees it. What an implementation does not know it answers
/// with `None`, and nothing is checked.
pub trait Surroundings {
    /// Reads a file of at most `bytes_max`.
    ///
    /// # Errors
    /// Why it was not read.
    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unread>;
    /// Returns the files whose paths match a pattern (`* ? [] {a,b} ~`), in order.
    fn matching(&mut self, pattern: &str) -> Vec<PathBuf>;
    /// Returns a variable of the environment.
    fn variable(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }
    /// Returns whether there is such a network interface.
    fn has_interface(&self, name: &str) -> Option<bool> {
        let _ = name;
        None
    }
    /// Returns whether there is such a program, and it may be run.
    fn has_program(&self, path: &str) -> Option<bool> {
        let _ = path;
        None
    }
    /// Returns the number of a name in a table of routing: `rt_tables`, `rt_protos`, `rt_scopes`,
    /// `rt_dsfield`.
    fn routing_number(&self, table: &str, name: &str) -> Option<u32> {
        let _ = (table, name);
        None
    }
    /// Returns whether there is such a user.
    fn has_user(&self, name: &str) -> Option<bool> {
        let _ = name;
        None
    }
}

/// One text and no machine around it.
#[derive(Clone, Debug)]
pub struct Alone<'t>(pub &'t [u8]);

impl Surroundings for Alone<'_> {
    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unread> {
        if path != Path::new(ALONE) {
            return Err(Unread::Missing);
        }
        if self.0.len() > bytes_max {
            return Err(Unread::TooLong);
        }
        Ok(self.0.to_vec())
    }

    fn matching(&mut self, _: &str) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// The path of the text in [`Alone`].
pub const ALONE: &str = "keepalived.conf";
