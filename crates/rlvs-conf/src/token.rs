//! Words and braces of a line.

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::source::{FileId, Span};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A word without quotes.
    Word,
    /// A word in double quotes.
    Quoted,
    /// `{`
    Open,
    /// `}`
    Close,
}

/// A word or brace.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// The first of its line.
    pub(crate) first: bool,
    /// The word; empty for a brace.
    pub(crate) text: String,
    pub(crate) span: Span,
}

impl Token {
    /// Returns it as it was written, but for quotes.
    pub(crate) fn as_str(&self) -> &str {
        match self.kind {
            Kind::Open => "{",
            Kind::Close => "}",
            Kind::Word | Kind::Quoted => &self.text,
        }
    }

    /// Returns whether it is a word, with or without quotes.
    pub(crate) fn is_word(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Quoted)
    }
}

/// Where the bytes of a line come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    /// They stand in the file from this offset.
    File(u32),
    /// They stand for what is here.
    Instead(Span),
}

/// A line of which parts may have been put in for other words.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) file: FileId,
    pub(crate) text: String,
    /// Offsets in the text, ascending, and what begins there.
    pub(crate) pieces: Vec<(usize, Origin)>,
}

impl Line {
    /// Returns an empty line.
    pub(crate) fn new(file: FileId) -> Self {
        Self { file, text: String::new(), pieces: Vec::new() }
    }

    /// Adds text.
    pub(crate) fn push(&mut self, text: &str, origin: Origin) {
        if !text.is_empty() {
            self.pieces.push((self.text.len(), origin));
            self.text.push_str(text);
        }
    }

    /// Adds bytes of another line.
    pub(crate) fn push_from(&mut self, other: &Self, range: std::ops::Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let (origin, until) = other.piece(at);
            let end = until.min(range.end);
            self.push(&other.text[at..end], origin);
            at = end;
        }
    }

    /// Returns what the byte at `at` comes from, and where that ends.
    fn piece(&self, at: usize) -> (Origin, usize) {
        let next = self.pieces.partition_point(|&(start, _)| start <= at);
        let until = self.pieces.get(next).map_or(self.text.len(), |&(start, _)| start);
        let (start, origin) = self.pieces[next.saturating_sub(1)];
        match origin {
            Origin::File(offset) => (Origin::File(offset + (at - start) as u32), until.max(at + 1)),
            instead => (instead, until.max(at + 1)),
        }
    }

    /// Returns the place of bytes of this line.
    pub(crate) fn span(&self, range: std::ops::Range<usize>) -> Span {
        let Some(last) = range.end.checked_sub(1).filter(|_| !self.pieces.is_empty()) else {
            return Span { file: self.file, start: 0, end: 0 };
        };
        let of = |at| match self.piece(at).0 {
            Origin::File(offset) => Span { file: self.file, start: offset, end: offset + 1 },
            Origin::Instead(span) => span,
        };
        of(range.start).to(of(last.max(range.start)))
    }

    /// Cuts the line into words and braces.
    pub(crate) fn tokens(&self, into: &mut Vec<Token>, diagnostics: &mut Diagnostics) {
        let span = |range: std::ops::Range<usize>| self.span(range);
        tokens(&self.text, &span, into, diagnostics);
    }
}

/// Cuts a line into words and braces. A brace is one at the edge of a word only: `a{2}b` is a word.
pub(crate) fn tokens(
    text: &str,
    span: &dyn Fn(std::ops::Range<usize>) -> Span,
    into: &mut Vec<Token>,
    diagnostics: &mut Diagnostics,
) {
    let bytes = text.as_bytes();
    let mut first = true;
    let mut at = 0;
    while at < bytes.len() {
        if is_blank(bytes[at]) {
            at += 1;
            continue;
        }
        let (kind, end, word) = match bytes[at] {
            b'{' => (Kind::Open, at + 1, String::new()),
            b'}' => (Kind::Close, at + 1, String::new()),
            b'"' => quoted(text, at, span, diagnostics),
            _ => {
                let end = word_end(bytes, at);
                (Kind::Word, end, unescaped(&text[at..end]))
            }
        };
        into.push(Token { kind, first, text: word, span: span(at..end) });
        first = false;
        at = end;
    }
}

/// Reads a word in quotes, to the end of the line if its end is missing.
fn quoted(
    text: &str,
    start: usize,
    span: &dyn Fn(std::ops::Range<usize>) -> Span,
    diagnostics: &mut Diagnostics,
) -> (Kind, usize, String) {
    let (end, closed) = quote_end(text.as_bytes(), start);
    let inner = &text[start + 1..end - usize::from(closed)];
    if !closed {
        let found = Diagnostic::error(span(start..end), "a quotation mark is never closed");
        diagnostics.push(found.expected("expected another `\"` on this line"));
    }
    (Kind::Quoted, end, inner.replace("\\\"", "\""))
}

/// Returns the offset behind the quotation that starts at `start`, and whether it is closed.
fn quote_end(bytes: &[u8], start: usize) -> (usize, bool) {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if bytes.get(at + 1) == Some(&b'"') => at += 2,
            b'"' => return (at + 1, true),
            _ => at += 1,
        }
    }
    (bytes.len(), false)
}

fn word_end(bytes: &[u8], start: usize) -> usize {
    let mut open = 0usize;
    let mut at = start;
    while at < bytes.len() && !is_blank(bytes[at]) {
        let at_edge = bytes.get(at + 1).is_none_or(|&next| is_blank(next) || next == b'}');
        match bytes[at] {
            b'{' if at_edge => break,
            b'{' => open += 1,
            b'}' if open == 0 => break,
            b'}' => open -= 1,
            _ => {}
        }
        at += 1;
    }
    at.max(start + 1)
}

fn unescaped(word: &str) -> String {
    if word.contains('\\') { word.replace("\\#", "#").replace("\\!", "!") } else { word.to_owned() }
}

pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// Returns where the comment of a line starts. `#` and `!` start one anywhere outside quotes.
pub(crate) fn comment_start(line: &str) -> usize {
    let bytes = line.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'#' | b'!')) {
        return bytes.len();
    }
    let mut at = 0;
    let mut between = true;
    while at < bytes.len() {
        match bytes[at] {
            b'"' if between => {
                at = quote_end(bytes, at).0;
                continue;
            }
            b'\\' if matches!(bytes.get(at + 1), Some(b'#' | b'!')) => at += 1,
            b'#' | b'!' => return at,
            _ => {}
        }
        between = bytes.get(at).copied().is_some_and(is_blank);
        at += 1;
    }
    bytes.len()
}
