//! From words to a tree of keywords, by the table.
//!
//! A keyword takes as many words as its row says, so blocks may stand on one line; what keepalived
//! would not understand there is said.

mod list;

use std::collections::BTreeMap;

use crate::diagnostic::{Diagnostic, Diagnostics, Objection};
use crate::grammar::{self, Arg, Keyword, ROOT, Status, Then};
use crate::nearest::nearest;
use crate::source::{Sources, Span};
use crate::token::{Kind, Token};
use crate::value::{self, Meaning, Value};

/// A keyword with all that belongs to it, or an entry of a block of entries.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) row: &'static Keyword,
    pub(crate) span: Span,
    pub(crate) args: Vec<Value>,
    pub(crate) children: Vec<Node>,
}

/// The row of entries, which have no keyword.
static ENTRY: Keyword = Keyword {
    name: "",
    takes: &[],
    then: Then::End,
    default: "",
    status: Status::Done,
    about: "",
    instead: None,
    ours: false,
    newer: false,
};

impl Node {
    /// Returns whether it is an entry of a block.
    pub(crate) fn is_entry(&self) -> bool {
        std::ptr::eq(self.row, &raw const ENTRY)
    }

    /// Returns a child by its keyword, the last if there are several.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().rev().find(|child| child.row.name == name)
    }
}

/// Makes a tree of words.
pub(crate) fn parse(
    tokens: Vec<Token>,
    sources: &mut Sources,
    diagnostics: &mut Diagnostics,
) -> Vec<Node> {
    let (around, said) = (Vec::new(), BTreeMap::new());
    let mut parser = Parser { tokens, at: 0, sources, diagnostics, said, around, one_line: false };
    let nodes = parser.block(ROOT, None);
    for (mut found, more) in std::mem::take(&mut parser.said).into_values() {
        if more > 0 {
            found.message.push_str(&format!(" ({} times in all)", more + 1));
        }
        parser.diagnostics.push(found);
    }
    nodes
}

struct Parser<'a> {
    tokens: Vec<Token>,
    at: usize,
    sources: &'a mut Sources,
    diagnostics: &'a mut Diagnostics,
    /// What is said once of a keyword, and how often it holds besides.
    said: BTreeMap<&'static str, (Diagnostic, usize)>,
    /// The blocks around the one that is read.
    around: Vec<&'static [Keyword]>,
    /// Whether it was said of this line that it holds too much.
    one_line: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    /// Returns the next word, if it stands on the same line as the one before.
    fn peek_word(&self) -> Option<&Token> {
        self.peek().filter(|token| token.is_word() && !token.first)
    }

    fn after_brace(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        before.is_none_or(|token| !token.is_word())
    }

    fn block(
        &mut self,
        rows: &'static [Keyword],
        opened: Option<(&'static Keyword, Span)>,
    ) -> Vec<Node> {
        let mut nodes = Vec::new();
        while let Some(token) = self.peek() {
            match token.kind {
                Kind::Close => {
                    let span = token.span;
                    self.at += 1;
                    if opened.is_some() {
                        return nodes;
                    }
                    let found = Diagnostic::error(span, "a `}` that closes nothing");
                    self.diagnostics
                        .push(found.help("a `{` is missing before it, or this one is too many"));
                }
                Kind::Open => {
                    let found = Diagnostic::error(token.span, "a `{` that no keyword opens");
                    self.diagnostics.push(found.expected("expected a keyword"));
                    self.skip_block();
                }
                Kind::Word | Kind::Quoted => match grammar::find(rows, &token.text) {
                    _ if !token.first
                        && !self.after_brace()
                        && grammar::find(rows, &token.text).is_none() =>
                    {
                        self.superfluous();
                    }
                    Some(row) => nodes.push(self.statement(row, rows)),
                    None if opened.is_some() && self.belongs_outside() => {
                        self.unclosed(opened, true);
                        return nodes;
                    }
                    None => self.unknown(rows, opened.map(|(row, _)| row)),
                },
            }
        }
        self.unclosed(opened, false);
        nodes
    }

    /// Returns whether the next word opens a block that stands in a block around this one.
    fn belongs_outside(&self) -> bool {
        let Some(token) = self.peek().filter(|token| token.first) else { return false };
        let opens = |rows: &&'static [Keyword]| {
            grammar::find(rows, &token.text).is_some_and(|row| matches!(row.then, Then::Block(_)))
        };
        self.around.iter().any(opens)
    }

    fn unclosed(&mut self, opened: Option<(&'static Keyword, Span)>, before_word: bool) {
        let Some((row, span)) = opened else { return };
        let text = format!("the block of `{}` is not closed", row.name);
        let mut found = Diagnostic::error(span, text).expected("a `}` is missing for this");
        match self.peek().filter(|_| before_word) {
            Some(token) => {
                let text = format!(
                    "`{}` cannot stand in it: is the `}}` missing before this?",
                    token.text
                );
                found = found.related(token.span, text);
            }
            None => found = found.help("the file ends within it"),
        }
        self.diagnostics.push(found);
    }

    fn statement(&mut self, row: &'static Keyword, rows: &'static [Keyword]) -> Node {
        let token = &self.tokens[self.at];
        let (span, one_line) = (token.span, !token.first);
        self.one_line &= one_line;
        if one_line && !self.after_brace() {
            self.several_on_a_line();
        }
        self.at += 1;
        self.say_status(row, span);
        let named = matches!((row.then, row.takes), (Then::Block(_), [Arg::Name, ..]));
        let missing = if named { Objection::General } else { Objection::Parameter };
        let args = self.arguments(row, span, rows, one_line, missing);
        let children = match row.then {
            Then::End => Vec::new(),
            Then::Options(options) => {
                let nodes = self.options(options);
                let more = self.peek_word().map(|token| grammar::find(rows, &token.text).is_none());
                if more == Some(true) {
                    self.unknown_option(options);
                }
                nodes
            }
            Then::Block(inner) if self.open(row, span, inner) => {
                self.around.push(rows);
                let nodes = self.block(inner, Some((row, span)));
                self.around.pop();
                self.check_required(row, span, &nodes);
                nodes
            }
            Then::Entries(head, options) if self.open(row, span, &[]) => {
                self.entries(row, span, head, options)
            }
            Then::Words(word) if self.open(row, span, &[]) => self.words(row, span, word),
            Then::Block(_) | Then::Entries(..) | Then::Words(_) => Vec::new(),
        };
        Node { row, span, args, children }
    }

    /// Says what a block lacks that is not lowered, where that would be said.
    fn check_required(&mut self, row: &'static Keyword, span: Span, nodes: &[Node]) {
        if row.status != Status::Kept {
            return;
        }
        for needed in grammar::inner(row).iter().filter(|row| row.default == "required") {
            if !nodes.iter().any(|node| node.row.name == needed.name) {
                let text = format!("`{}` without `{}`", row.name, needed.name);
                let found = Diagnostic::error(span, text);
                self.diagnostics
                    .push(found.expected(format!("expected a `{}` in it", needed.name)));
            }
        }
    }

    /// Says once that keepalived reads only the first keyword of a line.
    fn several_on_a_line(&mut self) {
        if std::mem::replace(&mut self.one_line, true) {
            return;
        }
        let text = "a second keyword on one line: keepalived would not take it for one";
        let found = Diagnostic::warning(self.tokens[self.at].span, text);
        let found =
            found.help("give every keyword a line of its own, if keepalived shall read this too");
        self.say_once("", found.objection(Objection::Foreign));
    }

    /// Says what is special about a keyword.
    fn say_status(&mut self, row: &'static Keyword, span: Span) {
        let (name, about) = (row.name, row.about);
        if row.status == Status::Void {
            let objection = if row.ours { Objection::General } else { Objection::None };
            let found = Diagnostic::warning(span, format!("`{name}` has no effect"));
            self.say_once(name, found.objection(objection));
        } else if row.ours {
            let text = format!("`{name}` is honoured here; keepalived would ignore it");
            let help = match row.instead {
                Some(other) => format!("`{other}` means the same to both"),
                None => format!("it means: {about}"),
            };
            let found = Diagnostic::warning(span, text).help(help);
            self.say_once(name, found.objection(Objection::Foreign));
        } else if let Some(other) = row.instead {
            let text = format!("`{name}` is a name of old");
            let found = Diagnostic::warning(span, text).help(format!("write `{other}`"));
            self.say_once(name, found.objection(Objection::General));
        } else if row.status == Status::Kept {
            let text = format!("`{name}` is checked and kept, but not yet carried out");
            self.say_once(name, Diagnostic::note(span, text));
        }
    }

    /// Keeps what is said about a keyword the first time, and counts the others.
    fn say_once(&mut self, name: &'static str, found: Diagnostic) {
        self.said.entry(name).and_modify(|(_, more)| *more += 1).or_insert((found, 0));
    }

    fn arguments(
        &mut self,
        row: &'static Keyword,
        span: Span,
        rows: &'static [Keyword],
        one_line: bool,
        objection: Objection,
    ) -> Vec<Value> {
        let mut args = Vec::new();
        for &arg in row.takes {
            match arg {
                Arg::Maybe(_) => args.extend(self.optional(arg, row, rows)),
                Arg::Many(_) => {
                    while let Some(value) = self.another(arg, row, rows, one_line) {
                        args.push(value);
                    }
                }
                _ if self.peek_word().is_some() => args.push(self.value(arg)),
                _ => {
                    let text = format!("`{}` without a value", row.name);
                    let expected = format!("expected {} behind it", arg.describe());
                    let found = Diagnostic::error(span, text).expected(expected);
                    self.diagnostics.push(found.objection(objection));
                    break;
                }
            }
        }
        args
    }

    fn optional(
        &mut self,
        arg: Arg,
        row: &'static Keyword,
        rows: &'static [Keyword],
    ) -> Option<Value> {
        self.another(arg, row, rows, true)
    }

    /// Takes a word that need not be there, unless it is the next keyword.
    fn another(
        &mut self,
        arg: Arg,
        row: &'static Keyword,
        rows: &'static [Keyword],
        one_line: bool,
    ) -> Option<Value> {
        let token = self.peek_word()?;
        let is_keyword = token.kind == Kind::Word
            && (one_line && grammar::find(rows, &token.text).is_some()
                || matches!(row.then, Then::Options(options) if grammar::find(options, &token.text).is_some()));
        (!is_keyword).then(|| self.value(arg))
    }

    /// Takes the next word.
    fn value(&mut self, arg: Arg) -> Value {
        let token = &mut self.tokens[self.at];
        self.at += 1;
        let (text, span) = (std::mem::take(&mut token.text), token.span);
        if matches!(arg, Arg::Secret) {
            self.sources.hide(span);
        }
        let meaning = value::read(arg, &text).unwrap_or_else(|wrong| {
            let mut found = Diagnostic::error(span, wrong);
            let words = if let Arg::OneOf(words) = arg { words } else { &[] };
            if let Some(meant) = nearest(&text, words.iter().copied()) {
                found = found.help(format!("did you mean `{meant}`?"));
            }
            self.diagnostics.push(found.expected(format!("expected {}", arg.describe())));
            Meaning::Wrong
        });
        Value { text, meaning, span }
    }

    /// Takes words with arguments of their own, to the end of the line.
    fn options(&mut self, options: &'static [Keyword]) -> Vec<Node> {
        let mut nodes = Vec::new();
        while let Some(row) = self.peek_word().and_then(|token| grammar::find(options, &token.text))
        {
            nodes.push(self.option(row, options));
        }
        nodes
    }

    fn option(&mut self, row: &'static Keyword, options: &'static [Keyword]) -> Node {
        let span = self.tokens[self.at].span;
        self.at += 1;
        self.say_status(row, span);
        let args = self.arguments(row, span, options, true, Objection::General);
        Node { row, span, args, children: self.options_of(row) }
    }

    fn options_of(&mut self, row: &'static Keyword) -> Vec<Node> {
        if let Then::Options(inner) = row.then { self.options(inner) } else { Vec::new() }
    }

    /// Takes the `{` of a block.
    fn open(&mut self, row: &'static Keyword, span: Span, inner: &'static [Keyword]) -> bool {
        self.superfluous();
        if self.peek().is_some_and(|token| token.kind == Kind::Open) {
            self.at += 1;
            return true;
        }
        let found = Diagnostic::error(span, format!("the block of `{}` is not opened", row.name));
        self.diagnostics.push(found.expected("expected a `{` behind this"));
        self.peek().is_some_and(|token| grammar::find(inner, &token.text).is_some())
    }

    /// Says that words stand where none are taken.
    fn superfluous(&mut self) {
        let Some(token) = self.peek_word() else { return };
        let found = Diagnostic::warning(
            token.span,
            format!("`{}` is more than is taken here; ignored", token.text),
        );
        self.diagnostics.push(found);
        self.skip_line();
    }

    fn unknown(&mut self, rows: &'static [Keyword], within: Option<&'static Keyword>) {
        let token = &self.tokens[self.at];
        let place = within.map_or_else(|| "here".to_owned(), |row| format!("in `{}`", row.name));
        let shown: String = token.text.chars().take(60).collect();
        let mut found = Diagnostic::error(token.span, format!("`{shown}` is no keyword {place}"));
        if let Some(meant) = nearest(&token.text, rows.iter().map(|row| row.name)) {
            found = found.help(format!("did you mean `{meant}`?"));
        } else if let Some(home) = grammar::home(&token.text) {
            found = found.help(format!("it belongs to `{home}`"));
        }
        self.diagnostics.push(found);
        self.at += 1;
        while self.peek_word().is_some_and(|token| grammar::find(rows, &token.text).is_none()) {
            self.at += 1;
        }
        if self.peek().is_some_and(|token| token.kind == Kind::Open) {
            self.skip_block();
        }
    }

    fn skip_line(&mut self) {
        while self.peek_word().is_some() {
            self.at += 1;
        }
    }

    /// Passes a block in which nothing is understood.
    fn skip_block(&mut self) {
        let opened = self.tokens[self.at].span;
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
        let found = Diagnostic::error(opened, "a block that is not closed");
        self.diagnostics.push(found.expected("a `}` is missing for this"));
    }
}
