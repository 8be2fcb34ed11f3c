//! The table of keywords as the manual page keepalived.conf(5).

use super::document::{blocks, takes};
use super::{Keyword, Status, Then};

const LANGUAGE: [&str; 3] = [
    "A line is a keyword and its words; blocks stand in braces. # and ! begin comments, a text with blanks \
     stands in double quotes. $NAME=... defines what ${NAME} stands for, @id and @^id choose lines of some \
     hosts, and include reads other files.",
    "rlvs check FILE tells what is wrong with a configuration and where; rlvs check --effective FILE prints \
     it with every default.",
    "[kept] marks what is checked and kept, but not yet carried out, [void] what has no effect, [ours] \
     what keepalived itself would ignore.",
];

/// Returns the page as roff for man(7); `version` is that of the package.
#[must_use]
pub fn manual(version: &str) -> String {
    let mut text = format!(
        ".\\\" Made by `rlvs man keepalived.conf` from the table that the parser uses.\n\
         .TH KEEPALIVED.CONF 5 \"\" \"rlvs {version}\" \"Linux Virtual Server\"\n\
         .SH NAME\nkeepalived.conf \\- virtual addresses, virtual servers and their checks\n\
         .SH DESCRIPTION\n"
    );
    for paragraph in LANGUAGE {
        text.push_str(&format!(".PP\n{}\n", escaped(paragraph)));
    }
    for (of, rows) in blocks() {
        let title = match of.map(|row| (row.name, row.then)) {
            None => "the top level".to_owned(),
            Some((name, Then::Options(_))) => format!("words behind {name}"),
            Some((name, Then::Entries(..))) => format!("words behind an entry of {name}"),
            Some((name, _)) => name.to_owned(),
        };
        text.push_str(&format!(".SH {}\n", escaped(&title.to_uppercase())));
        rows.iter().for_each(|row| item(&mut text, row));
    }
    text.push_str(".SH FILES\n.I /etc/keepalived/keepalived.conf\n.SH SEE ALSO\nkeepalived(8), rlvs\\-check(8)\n");
    text
}

fn item(text: &mut String, row: &Keyword) {
    let marks = [
        (row.status == Status::Kept, " [kept]"),
        (row.status == Status::Void, " [void]"),
        (row.ours, " [ours]"),
    ];
    let marks: String = marks.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word).collect();
    let instead = row.instead.map_or(String::new(), |other| format!(" (old; {other} replaces it)"));
    let default =
        if row.default.is_empty() { String::new() } else { format!("; default {}", row.default) };
    let about = format!("{}{instead}{default}{marks}", row.about);
    let about = if about.is_empty() { "-" } else { about.trim() };
    text.push_str(&format!(
        ".TP\n.B {}\n{}\n",
        escaped(format!("{} {}", row.name, takes(row)).trim()),
        escaped(about)
    ));
}

/// Makes text mean itself: no hyphen becomes another character, no line a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
