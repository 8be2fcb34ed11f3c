//! Reads command lines from standard input and carries them out, one by one.
//!
//! A restore is not atomic: what was carried out before a line that ends it stays, as upstream.

use std::io::ErrorKind;

use super::Session;
use super::failure::Failure;
use super::parse::{self, Request};

/// The longest line; the longest that `-S` writes has about 700 bytes, with two host names.
const LINE_BYTES_MAX: u64 = 65_536;

/// A word that stands for the program's name and is left out wherever it stands.
const PROGRAM: &str = "ipvsadm";

impl Session<'_> {
    /// Carries out every line of standard input and returns the exit status.
    ///
    /// A line that the table refuses is reported and the next one read, and the status is that
    /// of the last line. A line that makes no sense ends the restore, and so does `--help`.
    pub(super) fn restore(&mut self) -> u8 {
        self.restores = true;
        let status = self.restore_lines();
        match self.close() {
            Ok(()) => status,
            Err(failure) => self.report(&failure, None),
        }
    }

    fn restore_lines(&mut self) -> u8 {
        if let Err(failure) = self.table() {
            return self.report(&failure, None);
        }
        let mut status = 0;
        let mut buffered = 0;
        for number in 1.. {
            let outcome = match self.next_words(&mut buffered) {
                Ok(None) => break,
                Ok(Some(words)) if words.is_empty() => continue,
                Ok(Some(words)) => self.restore_line(&words),
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(true) => status = 0,
                Ok(false) => return 0,
                Err(failure) => {
                    status = self.report(&failure, Some(number));
                    if failure.ends_restore() {
                        break;
                    }
                }
            }
        }
        status
    }

    /// Puts in force what waits, and closes the table.
    pub(super) fn close(&mut self) -> Result<(), Failure> {
        match self.table.take() {
            Some(mut table) => table.commit().map_err(|error| Failure::Refused(error.to_string())),
            None => Ok(()),
        }
    }

    /// Carries out a line and returns whether the next one is to be read.
    fn restore_line(&mut self, words: &[String]) -> Result<bool, Failure> {
        let request = parse::request(words, self.program, self.environment.names)?;
        if matches!(request, Request::Restore { .. }) {
            let text = "a line that is to be restored cannot be a restore itself";
            return Err(Failure::NoCommand(text.to_owned()));
        }
        let goes_on = !matches!(request, Request::Help | Request::Version);
        self.carry_out(request)?;
        Ok(goes_on)
    }

    /// Returns the words of the next line, none of them for a blank one. `buffered` is how much of
    /// the input is there already: the table is closed before there can be a wait, for as long as
    /// it is open nobody else can use it.
    pub(super) fn next_words(
        &mut self,
        buffered: &mut usize,
    ) -> Result<Option<Vec<String>>, Failure> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if *buffered == 0 {
                self.close()?;
            }
            let bytes = match self.environment.stdin.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                bytes => bytes.map_err(Failure::Input)?,
            };
            if bytes.is_empty() {
                break;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            let length = part.len();
            line.extend_from_slice(part);
            *buffered = rest.len();
            self.environment.stdin.consume(length);
            if line.len() as u64 > LINE_BYTES_MAX {
                return Err(Failure::Usage(format!("longer than {LINE_BYTES_MAX} bytes")));
            }
        }
        let read = line.len();
        let line = String::from_utf8_lossy(&line);
        let words = line.split([' ', '\t', '\n', '\r']);
        let words = words.filter(|word| !word.is_empty() && *word != PROGRAM);
        Ok((read > 0).then(|| words.map(str::to_owned).collect()))
    }
}
