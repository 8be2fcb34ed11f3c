//! `rlvs top`: status, live.
//!
//! What is shown and what a key does is `view`, a value; here are the terminal and the clock.

mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::drain;
use crate::status::snapshot::Snapshot;
use view::{Act, View};

/// How often everything is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs `rlvs top`.
///
/// # Errors
/// No terminal, a missing capability, or nothing attached.
pub fn run() -> Result<ExitCode> {
    ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "top needs a terminal; `rlvs status --json` does not"
    );
    let snapshot = look()?;
    let mut terminal = ratatui::try_init().context("preparing the terminal")?;
    let outcome = show(&mut terminal, View::new(snapshot));
    ratatui::restore();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn look() -> Result<Snapshot> {
    Snapshot::take(false)?.context("not attached: no interface of this network namespace balances")
}

fn show(terminal: &mut DefaultTerminal, mut view: View) -> Result<()> {
    let mut look_at = Instant::now() + LOOK_INTERVAL;
    loop {
        terminal.draw(|frame| view.render(frame))?;
        if event::poll(look_at.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match view.key(key) {
                Act::Quit => return Ok(()),
                Act::None => continue,
                Act::Drain(service, id) => {
                    let done = drain::open().and_then(|mut table| Ok(table.drain(service, id)?));
                    view.told(done.err().map(|error| format!("{error:#}")));
                }
                Act::Undrain(service, id) => {
                    let done = drain::open().and_then(|mut table| Ok(table.undrain(service, id)?));
                    view.told(done.err().map(|error| format!("{error:#}")));
                }
            }
            look_at = Instant::now();
        }
        if Instant::now() >= look_at {
            view.see(look()?);
            look_at = Instant::now() + LOOK_INTERVAL;
        }
    }
}
