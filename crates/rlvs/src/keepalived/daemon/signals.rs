//! Signals, as what they ask for.

use std::io;
use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::Happening;

/// Asks the real one for JSON. It must not end us.
const JSON: i32 = 36;
/// Asks the real one to count anew. It must not end us.
const CLEAR: i32 = 63;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// An orderly end.
    End,
    /// What the file says now.
    Reload,
    /// `/tmp/keepalived.data`
    Data,
    /// `/tmp/keepalived.stats`
    Statistics,
}

/// Tells of every signal from now on.
///
/// # Errors
/// The kernel refused a handler or a thread.
pub(super) fn listen(ignore_interrupt: bool, to: Sender<Happening>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, JSON, CLEAR])?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || {
        for signal in signals.forever() {
            let wish = match signal {
                SIGHUP => Wish::Reload,
                SIGUSR1 => Wish::Data,
                SIGUSR2 => Wish::Statistics,
                SIGINT if ignore_interrupt => continue,
                SIGINT | SIGTERM => Wish::End,
                _ => continue,
            };
            if to.send(Happening::Wish(wish)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
