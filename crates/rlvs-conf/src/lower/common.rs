//! Reading nodes, and keeping those that are not carried out.

use std::net::IpAddr;
use std::time::Duration;

use crate::desired::{Script, Secret, Statement, User, Word};
use crate::diagnostic::Diagnostic;
use crate::grammar::{Arg, Status, Then};
use crate::lower::Lower;
use crate::shell;
use crate::tree::Node;
use crate::value::{Meaning, Value};

impl Node {
    /// Returns the name of a block.
    pub(crate) fn name(&self) -> String {
        self.args.first().map(|value| value.text.clone()).unwrap_or_default()
    }

    /// Returns whether a keyword stands in the block.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.child(name).is_some()
    }

    /// Returns the first word behind a keyword, if it is as it must be.
    pub(crate) fn word(&self, name: &str) -> Option<&Value> {
        let good = |value: &&Value| value.meaning != Meaning::Wrong;
        let with = self.children.iter().rev().filter(|child| child.row.name == name);
        with.filter_map(|child| child.args.first()).find(good)
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.word(name).map(|value| value.text.clone())
    }

    /// Returns a whole number that the table allows, as a type that holds all that it allows.
    pub(crate) fn number<T: TryFrom<i64>>(&self, name: &str) -> Option<T> {
        match self.word(name)?.meaning {
            Meaning::Number(number) => number.try_into().ok(),
            _ => None,
        }
    }

    pub(crate) fn time(&self, name: &str) -> Option<Duration> {
        match self.word(name)?.meaning {
            Meaning::Time(micros) => Some(Duration::from_micros(micros)),
            _ => None,
        }
    }

    /// Returns a number of whole seconds.
    pub(crate) fn whole_seconds(&self, name: &str) -> Option<Duration> {
        self.number::<u64>(name).map(Duration::from_secs)
    }

    pub(crate) fn address(&self, name: &str) -> Option<IpAddr> {
        match self.word(name)?.meaning {
            Meaning::Address(address) => Some(address),
            _ => None,
        }
    }

    /// Returns a switch: on, if nothing is said behind it.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        let child = self.child(name)?;
        match child.args.first().map(|value| value.meaning) {
            None => Some(true),
            Some(Meaning::Switch(on)) => Some(on),
            Some(_) => None,
        }
    }

    /// Returns the user and group that words name, from the word at `from` on.
    pub(crate) fn user(&self, from: usize) -> Option<User> {
        let user = self.args.get(from)?.text.clone();
        Some(User { user, group: self.args.get(from + 1).map(|value| value.text.clone()) })
    }

    /// Returns the entries of a list in the block.
    pub(crate) fn entries(&self, name: &str) -> impl Iterator<Item = &Node> {
        let lists = self.children.iter().filter(move |child| child.row.name == name);
        lists.flat_map(|list| list.children.iter().filter(|child| child.is_entry()))
    }
}

impl Lower<'_> {
    /// Returns the script behind a keyword.
    pub(super) fn script(&mut self, node: &Node, name: &str) -> Option<Script> {
        let child = node.child(name)?;
        let command = self.command(child, false)?;
        let user = child.user(1);
        self.check_user(child, 1);
        Some(Script { command, user })
    }

    /// Returns program and arguments. Without a program that is `needed`, nothing is right.
    pub(super) fn command(&mut self, node: &Node, needed: bool) -> Option<Vec<String>> {
        let value = node.args.first()?;
        let command = shell::split(&value.text);
        let Some(program) = command.first() else {
            self.say(Diagnostic::error(value.span, "an empty command"));
            return None;
        };
        if self.surroundings.has_program(program) == Some(false) {
            let text = format!("there is no program {program} that may be run");
            self.say(match needed {
                true => Diagnostic::error(value.span, text),
                false => Diagnostic::warning(value.span, text),
            });
        } else if node.row.name != "script" {
            self.script_at.get_or_insert(value.span);
        }
        Some(command)
    }

    /// Says if there is no such user.
    pub(super) fn check_user(&mut self, node: &Node, at: usize) {
        let Some(value) = node.args.get(at) else { return };
        if self.surroundings.has_user(&value.text) == Some(false) {
            let text = format!("there is no user {}", value.text);
            self.say(Diagnostic::error(value.span, text));
        }
    }

    /// Says if there is no such interface.
    pub(super) fn check_interface(&mut self, value: &Value) {
        if self.surroundings.has_interface(&value.text) == Some(false) {
            let text = format!("there is no interface {}", value.text);
            self.say(
                Diagnostic::error(value.span, text).expected("expected an interface of this host"),
            );
        }
    }
}

/// Returns what is not carried out among these.
pub(super) fn kept(nodes: &[Node]) -> Vec<Statement> {
    let kept = nodes.iter().filter(|node| node.row.status == Status::Kept && !node.is_entry());
    kept.filter_map(statement).collect()
}

/// Returns a node as it was written, unless something about it is wrong.
fn statement(node: &Node) -> Option<Statement> {
    let mut words = Vec::new();
    add_words(node, &mut words)?;
    let options = node.is_entry() || matches!(node.row.then, Then::Options(_));
    let block = match node.row.then {
        _ if options => None,
        Then::End | Then::Options(_) => None,
        Then::Block(_) | Then::Entries(..) | Then::Words(_) => {
            Some(node.children.iter().filter_map(statement).collect())
        }
    };
    Some(Statement { name: node.row.name.to_owned(), words, block })
}

fn add_words(node: &Node, words: &mut Vec<Word>) -> Option<()> {
    let required = node.row.takes.iter().filter(|arg| !matches!(arg, Arg::Maybe(_) | Arg::Many(_)));
    if node.args.len() < required.count() {
        return None;
    }
    for (index, value) in node.args.iter().enumerate() {
        if value.meaning == Meaning::Wrong {
            return None;
        }
        let secret = matches!(node.row.takes.get(index), Some(Arg::Secret));
        words.push(match secret {
            true => Word::Hidden(Secret::new(value.text.clone())),
            false => Word::Open(value.text.clone()),
        });
    }
    if node.is_entry() || matches!(node.row.then, Then::Options(_)) {
        for option in &node.children {
            words.push(Word::Open(option.row.name.to_owned()));
            add_words(option, words)?;
        }
    }
    Some(())
}
