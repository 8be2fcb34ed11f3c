//! From files to words: comments, conditions, definitions, repetitions, includes.
//!
//! Everything has a limit, so that no text makes it run or grow without end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::diagnostic::{Diagnostic, Diagnostics, Objection};
use crate::expand;
use crate::source::{FileId, Sources, Span};
use crate::surroundings::{Surroundings, Unread};
use crate::token::{Kind, Line, Origin, Token, comment_start, is_blank, tokens};

/// Bytes of all files and of all that definitions and repetitions stand for.
const BYTES_MAX: usize = 64 << 20;
/// Words and braces.
const TOKENS_MAX: usize = 4 << 20;
/// Files, one that is included twice counted twice.
const FILES_MAX: usize = 4096;
/// Files that include each other.
const INCLUDE_DEPTH_MAX: usize = 16;
/// Definitions within definitions.
const EXPANSION_DEPTH_MAX: usize = 32;
/// Definitions put in and lines repeated.
const STEPS_MAX: usize = 1 << 20;
/// Kinds of `include` whose wildcards must match a file.
const WILDCARDS_MATCH: &[&str] = &["includew", "includeb", "includea"];
/// Kinds of `include` whose file must be there.
const MATCH: &[&str] = &["includem", "includew", "includeb", "includea"];
/// Kinds of `include` whose file must be readable if it is there.
const READABLE: &[&str] = &["includer", "includea"];
/// What the real one reads of a line.
const FOREIGN_LINE_BYTES_MAX: usize = 1023;

/// How a configuration is read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What `@word` at the start of a line is compared with (`-i`, else the host's name).
    pub id: String,
    /// What `${_INSTANCE}` stands for.
    pub instance: String,
    /// Seed of `${_RANDOM}`.
    pub seed: u64,
    /// Every included file must be there (`-e`).
    pub includes_required: bool,
}

/// Reads files and cuts them into words.
pub(crate) struct Lexer<'a> {
    pub(crate) options: &'a Options,
    pub(crate) surroundings: &'a mut dyn Surroundings,
    pub(crate) sources: &'a mut Sources,
    pub(crate) diagnostics: &'a mut Diagnostics,
    pub(crate) definitions: BTreeMap<String, String>,
    pub(crate) random: u64,
    tokens: Vec<Token>,
    /// A definition whose next line is still to come.
    open_definition: Option<String>,
    folders: Vec<PathBuf>,
    includes_required: bool,
    files: usize,
    bytes: usize,
    steps: usize,
    stopped: bool,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(
        options: &'a Options,
        surroundings: &'a mut dyn Surroundings,
        sources: &'a mut Sources,
        diagnostics: &'a mut Diagnostics,
    ) -> Self {
        Self {
            options,
            surroundings,
            sources,
            diagnostics,
            definitions: BTreeMap::new(),
            random: options.seed,
            tokens: Vec::new(),
            open_definition: None,
            folders: Vec::new(),
            includes_required: options.includes_required,
            files: 0,
            bytes: 0,
            steps: 0,
            stopped: false,
        }
    }

    /// Returns the words of the file at `path` and of all that it includes.
    pub(crate) fn run(mut self, path: &Path) -> Vec<Token> {
        if let Err(why) = self.file(path) {
            let text = format!("{}: {}", path.display(), told(&why));
            let found = Diagnostic::error(None, text).objection(Objection::File);
            self.diagnostics.push(found);
        }
        // What is cut off somewhere may mean anything.
        if self.stopped { Vec::new() } else { self.tokens }
    }

    fn file(&mut self, path: &Path) -> Result<(), Unread> {
        let bytes = self.surroundings.read(path, BYTES_MAX)?;
        self.files += 1;
        let file = self.sources.add(path, &bytes);
        let text = self.sources.text(file);
        self.folders.push(path.parent().unwrap_or(Path::new("")).to_owned());
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if self.stopped {
                break;
            }
            self.file_line(file, at, line.trim_end_matches(['\n', '\r']));
            at += line.len() as u32;
        }
        self.finish_definition();
        self.folders.pop();
        Ok(())
    }

    /// Takes a line as it stands in a file.
    fn file_line(&mut self, file: FileId, at: u32, line: &str) {
        let here =
            |from: usize, to: usize| Span { file, start: at + from as u32, end: at + to as u32 };
        if !self.spend(line.len(), here(0, line.len())) {
            return;
        }
        if line.len() > FOREIGN_LINE_BYTES_MAX {
            let text = "a line that keepalived cuts: it reads 1023 bytes and takes the rest for another line";
            let found = Diagnostic::warning(here(FOREIGN_LINE_BYTES_MAX, line.len()), text);
            self.diagnostics.push(found.objection(Objection::General));
        }
        let code = &line[..comment_start(line)];
        if self.open_definition.is_some() {
            return self.continue_definition(code);
        }
        let start = code.len() - code.trim_start_matches(|c: char| is_blank_char(c)).len();
        let Some((start, code)) = self.conditional(start, code.trim_end()) else { return };
        if let Some((name, value)) = expand::definition(&code[start..]) {
            return self.define(name, value);
        }
        if code.contains(['$', '~']) {
            let mut whole = Line::new(file);
            whole.push(&code[start..], Origin::File(at + start as u32));
            return self.line(&whole, 0);
        }
        let span = |range: std::ops::Range<usize>| here(start + range.start, start + range.end);
        let before = self.tokens.len();
        tokens(&code[start..], &span, &mut self.tokens, self.diagnostics);
        self.after_tokens(before);
    }

    /// Returns where the text behind `@id` starts, or nothing if the line is not for us.
    fn conditional<'l>(&self, start: usize, code: &'l str) -> Option<(usize, &'l str)> {
        let Some(rest) = code.get(start..).and_then(|text| text.strip_prefix('@')) else {
            return Some((start.min(code.len()), code));
        };
        let word = rest.split(is_blank_char).next().unwrap_or_default();
        let (wanted, id) = match word.strip_prefix('^') {
            Some(id) => (false, id),
            None => (true, word),
        };
        ((id == self.options.id) == wanted).then(|| {
            let behind = start + 1 + word.len();
            let blank =
                code[behind..].len() - code[behind..].trim_start_matches(is_blank_char).len();
            (behind + blank, code)
        })
    }

    fn define(&mut self, name: &str, value: &str) {
        match value.strip_suffix('\\') {
            Some(first) => {
                self.open_definition = Some(name.to_owned());
                self.definitions.insert(name.to_owned(), first.trim_end().to_owned());
            }
            None => drop(self.definitions.insert(name.to_owned(), value.to_owned())),
        }
    }

    fn continue_definition(&mut self, code: &str) {
        let code = code.trim_end();
        let (code, last) = code.strip_suffix('\\').map_or((code, true), |code| (code, false));
        let Some(name) = &self.open_definition else { return };
        let value = self.definitions.entry(name.clone()).or_default();
        value.push('\n');
        value.push_str(code);
        if last {
            self.open_definition = None;
        }
    }

    fn finish_definition(&mut self) {
        self.open_definition = None;
    }

    /// Takes a line in which there may be definitions and repetitions.
    pub(crate) fn line(&mut self, line: &Line, depth: usize) {
        let whole = line.span(0..line.text.len());
        if self.stopped || !self.step(whole) {
            return;
        }
        if depth > EXPANSION_DEPTH_MAX {
            let text =
                format!("definitions within definitions, more than {EXPANSION_DEPTH_MAX} deep");
            return self.stop(whole, &text);
        }
        if let Some(found) = expand::repetition(self, line) {
            return self.repeat(line, &found, depth);
        }
        let (expanded, changed) = self.expand(line, whole, 0);
        if !changed {
            let before = self.tokens.len();
            expanded.tokens(&mut self.tokens, self.diagnostics);
            return self.after_tokens(before);
        }
        let text = expanded.text.clone();
        let mut at = 0;
        for part in text.split('\n') {
            self.expanded_line(&expanded, at, part, depth);
            at += part.len() + 1;
        }
    }

    /// Takes one of the lines that a line with definitions became.
    fn expanded_line(&mut self, whole: &Line, at: usize, part: &str, depth: usize) {
        let start = part.len() - part.trim_start_matches(is_blank_char).len();
        let Some((start, part)) = self.conditional(start, part.trim_end()) else { return };
        let text = &part[start..];
        if let Some((name, value)) = expand::definition(text) {
            return self.define(name, value);
        }
        let mut line = Line::new(whole.file);
        line.push_from(whole, at + start..at + part.len());
        if text.contains('~') && text != whole.text {
            return self.line(&line, depth + 1);
        }
        let before = self.tokens.len();
        line.tokens(&mut self.tokens, self.diagnostics);
        self.after_tokens(before);
    }

    fn repeat(&mut self, line: &Line, found: &expand::Repetition, depth: usize) {
        let mut rest = Line::new(line.file);
        rest.push_from(line, 0..found.start);
        rest.push_from(line, found.end..line.text.len());
        let names = found.names.iter();
        let before: Vec<_> =
            names.map(|name| (name, self.definitions.get(name).cloned())).collect();
        for values in found.rounds() {
            if self.stopped {
                break;
            }
            for (name, value) in found.names.iter().zip(values) {
                self.definitions.insert(name.clone(), value);
            }
            self.line(&rest, depth + 1);
        }
        for (name, value) in before {
            match value {
                Some(value) => self.definitions.insert(name.clone(), value),
                None => self.definitions.remove(name),
            };
        }
    }

    /// Puts in what definitions stand for, also in what they stand for.
    fn expand(&mut self, line: &Line, whole: Span, depth: usize) -> (Line, bool) {
        let mut out = Line::new(line.file);
        let mut changed = false;
        let mut at = 0;
        while let Some(found) = expand::reference(&line.text, at) {
            let span = line.span(found.range.clone());
            out.push_from(line, at..found.range.start);
            at = found.range.end;
            match expand::value(self, found.name, found.arguments) {
                Some(value) if depth < EXPANSION_DEPTH_MAX && !self.stopped => {
                    changed = true;
                    if !self.spend(value.len(), span) || !self.step(span) {
                        break;
                    }
                    let mut inner = Line::new(line.file);
                    inner.push(&value, Origin::Instead(span));
                    if value.contains('$') {
                        inner = self.expand(&inner, whole, depth + 1).0;
                    }
                    out.push_from(&inner, 0..inner.text.len());
                }
                Some(_) => {
                    let text = format!(
                        "a definition that stands for itself, or more than {EXPANSION_DEPTH_MAX} deep"
                    );
                    self.stop(whole, &text);
                    break;
                }
                None => out.push_from(line, found.range),
            }
        }
        out.push_from(line, at..line.text.len());
        (out, changed)
    }

    /// Looks whether the new words are an `include`.
    fn after_tokens(&mut self, from: usize) {
        let Some(first) = self.tokens.get(from) else { return };
        if self.tokens.len() > TOKENS_MAX {
            let text = format!("more than {TOKENS_MAX} words");
            return self.stop(first.span, &text);
        }
        if first.kind != Kind::Word {
            return;
        }
        match first.text.as_str() {
            "include_check" => {
                let options = ["match", "read", "readable", "wildcard_match", "brace_match"];
                let given = self.tokens[from + 1..].iter();
                let strict = given.clone().any(|word| options.contains(&word.text.as_str()));
                self.includes_required = strict || given.len() == 0;
            }
            "include" | "includer" | "includem" | "includew" | "includeb" | "includea" => {
                let words: Vec<Token> = self.tokens.drain(from..).collect();
                self.include(&words);
            }
            _ => {}
        }
    }

    fn include(&mut self, words: &[Token]) {
        let [keyword, rest @ ..] = words else { return };
        let Some(pattern) =
            rest.first().map(|_| rest.iter().map(Token::as_str).collect::<String>())
        else {
            let found = Diagnostic::error(keyword.span, "`include` without a file");
            return self.diagnostics.push(found.objection(Objection::Parameter));
        };
        let span = rest[0].span.to(rest[rest.len() - 1].span);
        if self.folders.len() >= INCLUDE_DEPTH_MAX || self.files >= FILES_MAX {
            let text = format!(
                "included more than {INCLUDE_DEPTH_MAX} deep, or more than {FILES_MAX} files: a file that includes itself?"
            );
            return self.stop(span, &text);
        }
        let folder: Rc<Path> = Rc::from(self.folders.last().cloned().unwrap_or_default());
        let whole = folder.join(&pattern);
        let kind = keyword.text.as_str();
        let required = |kinds: &[&str]| match self.includes_required || kinds.contains(&kind) {
            true => Objection::Include,
            false => Objection::None,
        };
        let (unmatched, missing) = (required(WILDCARDS_MATCH), required(MATCH));
        let unreadable = required(READABLE);
        let paths = if pattern.contains(['*', '?', '[', '{', '~']) {
            self.surroundings.matching(&whole.to_string_lossy())
        } else {
            vec![whole]
        };
        if paths.is_empty() {
            self.missing_include(span, "no file matches", unmatched);
        }
        for path in paths {
            if let Err(why) = self.file(&path) {
                self.sources.add_unread(&path);
                let text = format!("{}: {}", path.display(), told(&why));
                let objection = if why == Unread::Missing { missing } else { unreadable };
                self.missing_include(span, &text, objection);
            }
        }
    }

    fn missing_include(&mut self, span: Span, text: &str, objection: Objection) {
        let found = if objection == Objection::None {
            Diagnostic::warning(span, text).help("`includea` makes this an error")
        } else {
            Diagnostic::error(span, text).objection(objection)
        };
        self.diagnostics.push(found.expected("expected a file that can be read"));
    }

    /// Counts bytes of text.
    fn spend(&mut self, bytes: usize, at: Span) -> bool {
        self.bytes += bytes;
        if self.bytes > BYTES_MAX {
            self.stop(at, &format!("more than {} MiB of configuration", BYTES_MAX >> 20));
        }
        !self.stopped
    }

    fn step(&mut self, at: Span) -> bool {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.stop(at, &format!("more than {STEPS_MAX} lines and definitions repeated"));
        }
        !self.stopped
    }

    /// Reads nothing more, and says why once.
    fn stop(&mut self, at: Span, why: &str) {
        if !self.stopped {
            self.stopped = true;
            self.diagnostics.push(Diagnostic::error(at, format!("{why}; nothing of it is taken")));
        }
    }

    /// Returns the folder of the file being read.
    pub(crate) fn folder(&self) -> String {
        self.folders.last().map(|folder| folder.display().to_string()).unwrap_or_default()
    }
}

fn told(why: &Unread) -> String {
    match why {
        Unread::Missing => "no such file".into(),
        Unread::NotConfiguration => {
            "not read: a configuration is a regular file that nobody may execute (chmod a-x)".into()
        }
        Unread::TooLong => format!("longer than {} MiB", BYTES_MAX >> 20),
        Unread::Failed(why) => why.clone(),
    }
}

fn is_blank_char(c: char) -> bool {
    u8::try_from(c).is_ok_and(is_blank)
}
