//! The texts that a configuration is made of, and places in them.

use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One text of a configuration, by the order in which they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub(crate) u32);

/// Bytes of one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Which text.
    pub file: FileId,
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// Returns the bytes from the start of this to the end of `last`, if both are of one text.
    pub(crate) fn to(self, last: Self) -> Self {
        if self.file == last.file && last.end >= self.start {
            Self { end: last.end, ..self }
        } else {
            self
        }
    }
}

/// One text with its lines.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: Rc<str>,
    line_starts: Vec<u32>,
}

/// A place as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// Every text of a configuration.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
    /// Files that were to be included and could not be read.
    unread: Vec<PathBuf>,
    /// Words that nobody may see.
    secrets: Vec<Span>,
}

impl Sources {
    /// Adds a text. One that was added under the same path before is not stored again.
    pub(crate) fn add(&mut self, path: &Path, bytes: &[u8]) -> FileId {
        let known = self.files.iter().position(|source| source.path == path);
        if let Some(index) = known {
            return FileId(index as u32);
        }
        let text: Rc<str> = String::from_utf8_lossy(bytes).into();
        let ends = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n');
        let line_starts = std::iter::once(0).chain(ends.map(|(at, _)| at as u32 + 1)).collect();
        self.files.push(Source { path: path.to_owned(), text, line_starts });
        FileId(self.files.len() as u32 - 1)
    }

    /// Takes note of a file that was to be included and could not be read.
    pub(crate) fn add_unread(&mut self, path: &Path) {
        self.unread.push(path.to_owned());
    }

    /// Returns the files that were read, as they were named, and what else there is text from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|source| &*source.path)
    }

    /// Returns the files that were to be included and could not be read.
    pub fn unread(&self) -> &[PathBuf] {
        &self.unread
    }

    /// Returns a text.
    pub(crate) fn text(&self, file: FileId) -> Rc<str> {
        Rc::clone(&self.files[file.0 as usize].text)
    }

    /// Notes that the word at `span` is a password.
    pub(crate) fn hide(&mut self, span: Span) {
        self.secrets.push(span);
    }

    /// Returns the place where `span` starts.
    pub fn place(&self, span: Span) -> Place {
        let source = &self.files[span.file.0 as usize];
        let (line, start) = source.line_of(span.start);
        let before = source.text.get(start as usize..span.start as usize).unwrap_or_default();
        let column = before.chars().count() as u32 + 1;
        Place { path: source.path.clone(), line, column }
    }

    /// Returns the line on which `span` starts, without passwords, and the bytes of it that `span`
    /// covers.
    pub(crate) fn marked_line(&self, span: Span) -> (String, std::ops::Range<usize>) {
        let source = &self.files[span.file.0 as usize];
        let (line, start) = source.line_of(span.start);
        let end =
            source.line_starts.get(line as usize).map_or(source.text.len(), |&next| next as usize);
        let start = start as usize;
        let text = source.text.get(start..end).unwrap_or_default().trim_end();
        let clip = |at: u32| (at as usize).saturating_sub(start).min(text.len());
        let mut range = clip(span.start)..clip(span.end);
        let mut shown = text.as_bytes().to_vec();
        for secret in self.secrets.iter().filter(|secret| secret.file == span.file) {
            shown[clip(secret.start)..clip(secret.end)].fill(b'*');
        }
        hide_after_names(text, &mut shown);
        let mut shown = String::from_utf8_lossy(&shown).into_owned();
        if shown.len() != text.len() {
            // Asterisks for half a character have made others of it.
            range = 0..0;
        }
        if shown.len() > SHOWN_BYTES_MAX {
            let (short, moved) = clipped(&shown, range);
            (shown, range) = (short, moved);
        }
        let range = whole_characters(&shown, range);
        (shown, range)
    }
}

/// Widens a range so that it begins and ends between characters.
fn whole_characters(text: &str, range: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let (mut start, mut end) = (range.start.min(text.len()), range.end.min(text.len()));
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

impl Source {
    /// Returns the number of the line that holds this offset, and where it starts.
    fn line_of(&self, offset: u32) -> (u32, u32) {
        let line = self.line_starts.partition_point(|&start| start <= offset).max(1);
        (line as u32, self.line_starts[line - 1])
    }
}

/// Longer lines are shown around what is marked.
const SHOWN_BYTES_MAX: usize = 200;

/// Cuts a long line to what surrounds the marked bytes.
fn clipped(line: &str, range: std::ops::Range<usize>) -> (String, std::ops::Range<usize>) {
    let from = range.start.saturating_sub(SHOWN_BYTES_MAX / 2);
    let shown = whole_characters(line, from..from + SHOWN_BYTES_MAX);
    let (from, to) = (shown.start, shown.end);
    let end = range.end.min(to);
    (line[from..to].to_owned(), range.start - from..end.max(range.start) - from)
}

/// Hides what follows a word that looks like the name of a password, however misspelt: what the
/// parser did not understand, it cannot have marked.
fn hide_after_names(text: &str, shown: &mut [u8]) {
    let mut from = 0;
    for word in text.split_whitespace() {
        let at = from + text[from..].find(word).unwrap_or(0);
        from = at + word.len();
        let name = word.trim_matches(|c: char| !c.is_alphanumeric()).to_ascii_lowercase();
        let close = |known: &str| crate::nearest::distance(&name, known) <= 2;
        if close("auth_pass") || close("password") || name.ends_with("_pass") {
            let rest = &mut shown[from..];
            for byte in rest.iter_mut().filter(|byte| !b" \t{}".contains(byte)) {
                *byte = b'*';
            }
            return;
        }
    }
}
