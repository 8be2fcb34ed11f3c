//! Blocks that are lists: of words, or of entries with words behind them.

use crate::diagnostic::Diagnostic;
use crate::grammar::{self, Arg, Keyword, ROOT, Then};
use crate::nearest::nearest;
use crate::source::Span;
use crate::token::Kind;
use crate::tree::{ENTRY, Node, Parser};
use crate::value::{self, Meaning};

impl Parser<'_> {
    pub(super) fn words(&mut self, row: &'static Keyword, opened: Span, word: Arg) -> Vec<Node> {
        let mut nodes = Vec::new();
        while let Some(token) = self.peek() {
            let span = token.span;
            match token.kind {
                Kind::Close => {
                    self.at += 1;
                    return nodes;
                }
                Kind::Open => self.skip_block(),
                _ if self.belongs_to_file() => break,
                _ => {
                    let args = vec![self.value(word)];
                    nodes.push(Node { row: &ENTRY, span, args, children: Vec::new() });
                }
            }
        }
        self.unclosed(Some((row, opened)), true);
        nodes
    }

    /// Returns whether the next words are a keyword of the top level and its block.
    fn belongs_to_file(&self) -> bool {
        let row = self
            .peek()
            .filter(|token| token.first)
            .and_then(|token| grammar::find(ROOT, &token.text));
        let opens = row.is_some_and(|row| matches!(row.then, Then::Block(_)));
        let rest = self.tokens[self.at..].iter().skip(1);
        opens && rest.take_while(|token| !token.first).any(|token| token.kind == Kind::Open)
    }

    pub(super) fn entries(
        &mut self,
        row: &'static Keyword,
        opened: Span,
        head: Arg,
        options: &'static [Keyword],
    ) -> Vec<Node> {
        let mut nodes = Vec::new();
        while let Some(token) = self.peek() {
            match token.kind {
                Kind::Close => {
                    self.at += 1;
                    return nodes;
                }
                Kind::Open => {
                    let found = Diagnostic::error(token.span, "a `{` within a list");
                    self.diagnostics.push(found.expected("expected an entry or `}`"));
                    self.skip_block();
                }
                _ if self.belongs_to_file() => break,
                _ => nodes.extend(self.entry(head, options)),
            }
        }
        self.unclosed(Some((row, opened)), true);
        nodes
    }

    fn entry(&mut self, head: Arg, options: &'static [Keyword]) -> Option<Node> {
        let span = self.tokens[self.at].span;
        let mut node = Node { row: &ENTRY, span, args: Vec::new(), children: Vec::new() };
        let mut start = true;
        while let Some(token) =
            self.peek().filter(|token| token.is_word() && (start || !token.first))
        {
            start = false;
            let word = token.kind == Kind::Word;
            if let Some(row) = grammar::find(options, &token.text).filter(|_| word) {
                let option = self.option(row, options);
                node.children.push(option);
            } else if node.args.is_empty() || options.is_empty() {
                let value = self.value(head);
                node.args.push(value);
            } else if matches!(head, Arg::Addresses)
                && node.args.len() == 1
                && token.text.parse::<i64>().is_ok()
            {
                let value = self.value(Arg::Number(0, 65535));
                node.args.push(value);
            } else if starts_entry(head, &token.text, options) {
                break;
            } else {
                self.unknown_option(options);
            }
        }
        let wrong = node.args.iter().any(|value| value.meaning == Meaning::Wrong);
        (!wrong).then_some(node)
    }

    pub(super) fn unknown_option(&mut self, options: &'static [Keyword]) {
        let token = &self.tokens[self.at];
        let text = format!("`{}` is not known here", token.text);
        let mut found = Diagnostic::error(token.span, text);
        if let Some(meant) = nearest(&token.text, options.iter().map(|row| row.name)) {
            found = found.help(format!("did you mean `{meant}`?"));
        }
        self.diagnostics.push(found);
        self.skip_line();
    }
}

/// Returns whether a word behind an entry starts another.
fn starts_entry(head: Arg, text: &str, options: &'static [Keyword]) -> bool {
    match head {
        Arg::Text => false,
        Arg::Name | Arg::Interface => nearest(text, options.iter().map(|row| row.name)).is_none(),
        _ => value::read(head, text).is_ok(),
    }
}
