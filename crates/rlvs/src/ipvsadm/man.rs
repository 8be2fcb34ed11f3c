//! The manual page ipvsadm(8), made of the parser's own table of flags.

use super::flags;
use super::grammar::{Flag, Meaning, Value};

/// Returns the page as roff for man(7).
#[must_use]
pub fn page() -> String {
    let mut text = format!(
        ".\\\" Made by `rlvs man ipvsadm` from the table that the parser uses.\n\
         .TH IPVSADM 8 \"\" \"rlvs {}\" \"Linux Virtual Server\"\n",
        env!("CARGO_PKG_VERSION")
    );
    section(&mut text, "NAME");
    text.push_str("ipvsadm \\- edit and show the virtual\\-server table\n");
    section(&mut text, "SYNOPSIS");
    for line in flags::synopses("ipvsadm") {
        text.push_str(&format!(".nf\n{}\n.fi\n", escaped(&line)));
    }
    section(&mut text, "DESCRIPTION");
    for paragraph in DESCRIPTION {
        text.push_str(&format!(".PP\n{}\n", escaped(paragraph)));
    }
    let of_command = |flag: &&Flag| {
        matches!(flag.meaning, Meaning::Command(_) | Meaning::Help | Meaning::Version)
    };
    section(&mut text, "COMMANDS");
    flags::FLAGS.iter().filter(of_command).for_each(|flag| item(&mut text, flag));
    section(&mut text, "OPTIONS");
    text.push_str("What stands behind a semicolon is the default.\n");
    flags::FLAGS.iter().filter(|flag| !of_command(flag)).for_each(|flag| item(&mut text, flag));
    section(&mut text, "EXIT STATUS");
    for (status, what) in STATUSES {
        text.push_str(&format!(".TP\n.B {status}\n{}\n", escaped(what)));
    }
    section(&mut text, "EXAMPLES");
    for (what, lines) in EXAMPLES {
        text.push_str(&format!(".PP\n{}\n.PP\n.nf\n.RS\n", escaped(what)));
        lines.iter().for_each(|line| text.push_str(&format!("{}\n", escaped(line))));
        text.push_str(".RE\n.fi\n");
    }
    section(&mut text, "ENVIRONMENT");
    text.push_str(".TP\n.B RLVS_BACKEND\n");
    text.push_str("Whose table it is, rlvs or kernel, if the command line does not say.\n");
    section(&mut text, "FILES");
    text.push_str(".TP\n.I /run/rlvs/bpf\nWhere the table is kept.\n");
    text.push_str(".TP\n.I /etc/services\nNames of ports.\n");
    text
}

/// Returns the page ipvsadm-save(8).
#[must_use]
pub fn save_page() -> String {
    short_page(
        "ipvsadm-save",
        "print the virtual\\-server table as commands",
        "[-n] [--full]",
        "Prints what ipvsadm -S prints: the commands that make the table, for ipvsadm-restore. With -n \
         addresses and ports stay numbers; with --full thresholds are written too.",
    )
}

/// Returns the page ipvsadm-restore(8).
#[must_use]
pub fn restore_page() -> String {
    short_page(
        "ipvsadm-restore",
        "carry out what ipvsadm\\-save printed",
        "[--atomic]",
        "Reads commands from standard input and carries them out, as ipvsadm -R does. With --atomic \
         nothing is carried out unless every line can be.",
    )
}

fn short_page(name: &str, what: &str, words: &str, about: &str) -> String {
    let title = name.to_uppercase();
    let mut text = format!(
        ".TH {title} 8 \"\" \"rlvs {}\" \"Linux Virtual Server\"\n",
        env!("CARGO_PKG_VERSION")
    );
    section(&mut text, "NAME");
    text.push_str(&format!("{} \\- {what}\n", escaped(name)));
    section(&mut text, "SYNOPSIS");
    text.push_str(&format!(".B {}\n{}\n", escaped(name), escaped(words)));
    section(&mut text, "DESCRIPTION");
    text.push_str(&format!("{}\n", escaped(about)));
    section(&mut text, "SEE ALSO");
    text.push_str("ipvsadm(8)\n");
    text
}

const DESCRIPTION: [&str; 3] = [
    "A virtual service is an address, a port and a protocol, or a firewall mark. Its connections are \
     spread over its real servers by a scheduler, and sent on to them by direct routing, through a \
     tunnel or by network address translation.",
    "The command line begins with a command. The table is that of the network namespace in which \
     ipvsadm runs. It stays in force when the command has ended; no process is needed for it. The \
     first service that is added attaches the balancer to the interfaces.",
    "Lines of -R are command lines without the program's name. A line that the table refuses is \
     reported and the next one carried out; one that makes no sense ends the restore. With --atomic \
     nothing is carried out unless every line can be, and what is in the table already is not \
     touched.",
];

const STATUSES: [(&str, &str); 4] = [
    ("0", "Done."),
    ("1", "The table cannot be read, or the answer cannot be written."),
    ("2", "The command line makes no sense, or there is no table."),
    ("255", "The table refuses the edit, or a word is no command or option."),
];

const EXAMPLES: [(&str, &[&str]); 3] = [
    (
        "A web service of two servers that answer the clients directly:",
        &[
            "ipvsadm -A -t 192.0.2.1:80 -s rr",
            "ipvsadm -a -t 192.0.2.1:80 -r 192.0.2.11 -g",
            "ipvsadm -a -t 192.0.2.1:80 -r 192.0.2.12 -g -w 2",
        ],
    ),
    (
        "No more connections to the first, those that it has go on:",
        &["ipvsadm -e -t 192.0.2.1:80 -r 192.0.2.11 -g -w 0"],
    ),
    (
        "Keep the table, and put it back:",
        &["ipvsadm -S -n --full > table", "ipvsadm -R --atomic < table"],
    ),
];

fn section(text: &mut String, name: &str) {
    text.push_str(&format!(".SH {name}\n"));
}

fn item(text: &mut String, flag: &Flag) {
    let short = flag.short.map_or(String::new(), |letter| format!("-{letter}, "));
    let value = match flag.value {
        Value::None => String::new(),
        Value::Required(value) => format!(" {value}"),
        Value::Optional(value) => format!(" [{value}]"),
    };
    let name = escaped(&format!("{short}--{}{value}", flag.long));
    text.push_str(&format!(".TP\n.B {name}\n{}\n", escaped(flag.help)));
}

/// Makes text mean itself: no hyphen becomes another character, no line a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    text.lines()
        .map(
            |line| {
                if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
            },
        )
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_the_parser_is_in_the_page_and_in_the_help() {
        let (page, help) = (page(), flags::help("ipvsadm"));
        for flag in &flags::FLAGS {
            let long = format!("--{}", flag.long);
            assert!(help.contains(&long), "{long} in the help");
            assert!(page.contains(&escaped(&long)), "{long} in the page");
        }
    }

    #[test]
    fn no_line_is_taken_for_a_request() {
        assert_eq!(escaped(".x\n'y\nz\\-"), "\\&.x\n\\&'y\nz\\e\\-");
    }
}
