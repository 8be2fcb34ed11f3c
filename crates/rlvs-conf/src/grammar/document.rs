//! The table of keywords as a page for people.

use std::fmt::Write;

use super::{Arg, Keyword, ROOT, Status, Then, inner};

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
    let mut done: Vec<&'static [Keyword]> = Vec::new();
    section(&mut page, "The top level", ROOT, &mut done);
    page
}

fn section(
    page: &mut String,
    title: &str,
    rows: &'static [Keyword],
    done: &mut Vec<&'static [Keyword]>,
) {
    if rows.is_empty() || done.iter().any(|known| std::ptr::eq(*known, rows)) {
        return;
    }
    done.push(rows);
    page.push_str(&format!("\n## {title}\n\n| | keyword | takes | default | meaning |\n| --- | --- | --- | --- | --- |\n"));
    for row in rows {
        line(page, row);
    }
    for row in rows {
        let title = match row.then {
            Then::Options(_) => format!("`{}`: words behind it", row.name),
            Then::Entries(..) => format!("`{}`: words behind an entry", row.name),
            _ => format!("`{}`", row.name),
        };
        section(page, &title, inner(row), done);
    }
}

fn line(page: &mut String, row: &Keyword) {
    let mark = match row.status {
        Status::Done => "✓",
        Status::Kept => "kept",
        Status::Void => "–",
    };
    let mut takes: Vec<String> = row.takes.iter().map(|arg| escaped(&arg.short())).collect();
    takes.extend(match row.then {
        Then::End => None,
        Then::Options(_) => Some("…".to_owned()),
        Then::Block(_) => Some("{ }".to_owned()),
        Then::Entries(head, _) => Some(format!("{{ {} … }}", head_of(head))),
        Then::Words(word) => Some(format!("{{ {} … }}", head_of(word))),
    });
    let mut about = row.about.to_owned();
    for (holds, word) in [(row.ours, "ours"), (row.newer, "newer")] {
        if holds {
            about.push_str(&format!(" (*{word}*)"));
        }
    }
    if let Some(other) = row.instead {
        about.push_str(&format!(" (*old*: `{other}`)"));
    }
    let (name, takes, default) = (row.name, takes.join(" "), escaped(row.default));
    // A String takes everything.
    writeln!(page, "| {mark} | `{name}` | {takes} | {default} | {} |", about.trim())
        .unwrap_or_default();
}

fn head_of(arg: Arg) -> String {
    escaped(&arg.short())
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
