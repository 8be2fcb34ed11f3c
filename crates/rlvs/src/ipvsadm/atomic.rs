//! `-R --atomic`: all lines or none.
//!
//! The lines are carried out on a copy of the table in memory, which refuses what IPVS would; only
//! then the difference is applied to the table itself. What both have alike is left alone, even if
//! the lines begin with `-C`. A change that the table refuses takes back those before it.

use rlvs_control::memory::MemoryTable;
use rlvs_control::model::ServiceId;
use rlvs_control::plan::{Change, plan};
use rlvs_control::table::{Error, Table};

use super::failure::Failure;
use super::parse::{self, Request};
use super::{Session, edit};

impl Session<'_> {
    /// Carries out every line of standard input or none, and returns the exit status.
    pub(super) fn restore_whole(&mut self) -> u8 {
        let (requests, number) = match self.requests() {
            Ok(requests) => requests,
            Err((failure, number)) => return self.report(&failure, Some(number)),
        };
        let done = self.carry_out_whole(&requests);
        self.table = None;
        match done {
            Ok(()) => 0,
            // The line is known unless it was the table that refused the difference.
            Err((failure, line)) => {
                let line = line.and_then(|line| number.get(line).copied());
                self.report(&failure, line)
            }
        }
    }

    /// Reads all lines, before anything is done, with their numbers.
    fn requests(&mut self) -> Result<(Vec<Request>, Vec<usize>), (Failure, usize)> {
        let (mut requests, mut numbers) = (Vec::new(), Vec::new());
        let mut buffered = 0;
        for number in 1.. {
            let failed = |failure| (failure, number);
            let Some(words) = self.next_words(&mut buffered).map_err(failed)? else { break };
            if words.is_empty() {
                continue;
            }
            let names = self.environment.names;
            let request = parse::request(&words, self.program, names).map_err(failed)?;
            if !is_edit(&request) {
                let text = "with --atomic only edits of the table can be restored".to_owned();
                return Err((Failure::Usage(text), number));
            }
            requests.push(request);
            numbers.push(number);
        }
        Ok((requests, numbers))
    }

    /// On failure returns which request it was, if it was one.
    fn carry_out_whole(&mut self, requests: &[Request]) -> Result<(), (Failure, Option<usize>)> {
        let refused = |error: Error| (Failure::Refused(error.to_string()), None);
        let table = self.table().map_err(|failure| (failure, None))?.as_mut();
        let before = table.services().map_err(refused)?;
        let timeouts = table.timeouts().map_err(refused)?;
        let mut copy = MemoryTable::with(before.clone(), timeouts);
        let mut zeroed = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            if let Request::Zero(service) = request {
                zeroed.push(*service);
            }
            edit(&mut copy, request)
                .map_err(|error| (Failure::Refused(error.to_string()), Some(number)))?;
        }
        let after = copy.services().map_err(refused)?;
        table.batch();
        apply(table, &plan(&before, &after)).map_err(|error| {
            let text = match undo(table, &before) {
                Ok(()) => format!("{error}; nothing was changed"),
                Err(more) => format!("{error}, and it could not be taken back: {more}"),
            };
            (Failure::Refused(text), None)
        })?;
        table.set_timeouts(copy.timeouts().map_err(refused)?).map_err(refused)?;
        zero(table, &zeroed).map_err(refused)
    }
}

fn is_edit(request: &Request) -> bool {
    use Request as R;
    match request {
        R::AddService(_) | R::EditService(_) | R::DeleteService(_) => true,
        R::AddDestination(..) | R::EditDestination(..) | R::DeleteDestination(..) => true,
        R::Flush | R::Zero(_) | R::SetTimeouts(_) => true,
        R::Help | R::Version | R::List(_) | R::Save(_) | R::Restore { .. } => false,
        R::StartSyncDaemon(_) | R::StopSyncDaemon(_) => false,
    }
}

fn apply(table: &mut dyn Table, changes: &[Change]) -> Result<(), Error> {
    changes.iter().try_for_each(|change| change.apply(table))?;
    table.commit()
}

/// Makes the table what it was.
fn undo(table: &mut dyn Table, before: &[rlvs_control::model::ServiceEntry]) -> Result<(), Error> {
    let now = table.services()?;
    apply(table, &plan(&now, before))
}

fn zero(table: &mut dyn Table, services: &[Option<ServiceId>]) -> Result<(), Error> {
    for &service in services {
        match table.zero(service) {
            // A later line has removed it.
            Ok(()) | Err(Error::NoService) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
