//! Kernel parameters of the calling thread's network namespace, through /proc/sys.

use std::io;
use std::path::{Component, Path, PathBuf};

/// Why a kernel parameter could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path leads out of the network's parameters.
    #[error("`{0}` is not the path of a network parameter, such as net/ipv4/ip_forward")]
    Path(String),
    /// The operating system refused.
    #[error("{operation}")]
    System {
        /// What was tried, and on what.
        operation: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Writes the parameter `path`, such as `net/ipv4/ip_forward`, of the calling thread's namespace.
///
/// # Errors
/// No such parameter, a value that it does not take, or no right to.
pub fn write(path: &str, value: &str) -> Result<(), Error> {
    let file = file_of(path)?;
    std::fs::write(&file, value).map_err(|source| Error::System {
        operation: format!("writing {value} to {}", file.display()),
        source,
    })
}

/// Reads the parameter `path` of the calling thread's namespace, without the line's end.
///
/// # Errors
/// No such parameter, or no right to.
pub fn read(path: &str) -> Result<String, Error> {
    let file = file_of(path)?;
    let text = std::fs::read_to_string(&file).map_err(|source| Error::System {
        operation: format!("reading {}", file.display()),
        source,
    })?;
    Ok(text.trim_end().to_owned())
}

fn file_of(path: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && relative.starts_with("net") {
        return Ok(Path::new("/proc/sys").join(relative));
    }
    Err(Error::Path(path.to_owned()))
}
