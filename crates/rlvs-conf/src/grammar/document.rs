//! The table of keywords as a page for people.

use std::fmt::Write;

use super::{Keyword, ROOT, Status, Then, inner};

/// What stands before the tables.
const HEAD: &str = "# keepalived.conf

Every keyword of keepalived 2.4, block by block. This page is made from the table that the parser reads
with (`crates/rlvs-conf/src/grammar`); a test holds the two together. `rlvs check FILE` tells what is wrong
with a configuration and where, `rlvs check --effective FILE` what it means with every default, and
`keepalived -t -f FILE` returns the exit statuses of the real one.

| mark | meaning |
| --- | --- |
| ✓ | part of what the daemon is given |
| kept | checked and kept, not yet carried out; `rlvs check` says so |
| – | has no effect |

*ours*: keepalived does not know the word here and would ignore it; it is honoured, with a warning.
*newer*: not known to keepalived 2.2.7. *old*: another word has taken its place. A checker's *round*
begins every `delay_loop` and is one attempt, or `retry` more if it fails; `fall` and `rise` count rounds.

The language: a keyword and its words on a line, blocks in braces, `#` and `!` for comments, `\"…\"` for text
with blanks, `$NAME=…` and `${NAME}`, `~SEQ(…)` and `~LST(…)` for repeated lines, `@id` and `@^id` for lines of
some hosts, `include` and its kin. Several keywords on one line are understood; keepalived would not.
";

/// Returns the page.
pub fn document() -> String {
    let mut page = String::from(HEAD);
    for (of, rows) in blocks() {
        let title = match of.map(|row| (row.name, row.then)) {
            None => "The top level".to_owned(),
            Some((name, Then::Options(_))) => format!("`{name}`: words behind it"),
            Some((name, Then::Entries(..))) => format!("`{name}`: words behind an entry"),
            Some((name, _)) => format!("`{name}`"),
        };
        page.push_str(&format!("\n## {title}\n\n| | keyword | takes | default | meaning |\n| --- | --- | --- | --- | --- |\n"));
        rows.iter().for_each(|row| line(&mut page, row));
    }
    page
}

/// Returns the blocks of the table in reading order, each once, with the first keyword that has it;
/// the top level has none.
pub(super) fn blocks() -> Vec<(Option<&'static Keyword>, &'static [Keyword])> {
    fn add(
        of: Option<&'static Keyword>,
        rows: &'static [Keyword],
        to: &mut Vec<(Option<&'static Keyword>, &'static [Keyword])>,
    ) {
        if rows.is_empty() || to.iter().any(|(_, known)| std::ptr::eq(*known, rows)) {
            return;
        }
        to.push((of, rows));
        rows.iter().for_each(|row| add(Some(row), inner(row), to));
    }
    let mut all = Vec::new();
    add(None, ROOT, &mut all);
    all
}

/// Returns what a keyword takes, in words.
pub(super) fn takes(row: &Keyword) -> String {
    let mut takes: Vec<String> = row.takes.iter().map(|arg| arg.short()).collect();
    takes.extend(match row.then {
        Then::End => None,
        Then::Options(_) => Some("…".to_owned()),
        Then::Block(_) => Some("{ }".to_owned()),
        Then::Entries(head, _) | Then::Words(head) => Some(format!("{{ {} … }}", head.short())),
    });
    takes.join(" ")
}

fn line(page: &mut String, row: &Keyword) {
    let mark = match row.status {
        Status::Done => "✓",
        Status::Kept => "kept",
        Status::Void => "–",
    };
    let mut about = row.about.to_owned();
    for (holds, word) in [(row.ours, "ours"), (row.newer, "newer")] {
        if holds {
            about.push_str(&format!(" (*{word}*)"));
        }
    }
    if let Some(other) = row.instead {
        about.push_str(&format!(" (*old*: `{other}`)"));
    }
    let (name, takes, default) = (row.name, escaped(&takes(row)), escaped(row.default));
    // A String takes everything.
    writeln!(page, "| {mark} | `{name}` | {takes} | {default} | {} |", about.trim())
        .unwrap_or_default();
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
