//! What is shown in a document as typed and answered: blocks marked `console`. What is typed to make what
//! a document is about stands in comments, `<!-- host# command -->`, and answers nothing.

/// A command, where it is typed, and what is shown below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// Line of the document, from 1.
    pub(crate) line: usize,
    /// The host, as the prompt has it.
    pub(crate) host: String,
    /// The command.
    pub(crate) command: String,
    /// The lines of its answer; `…` stands for any text, alone on a line for any lines.
    pub(crate) shown: Vec<String>,
}

/// Returns the commands of a document, in order.
pub(crate) fn commands(document: &str) -> Result<Vec<Typed>, String> {
    let mut typed: Vec<Typed> = Vec::new();
    let mut within = None;
    for (line, text) in (1..).zip(document.lines()) {
        match (within, text.strip_prefix("```")) {
            (None, Some(kind)) => within = Some(kind == "console"),
            (Some(_), Some("")) => within = None,
            (Some(true), _) => match prompt(text) {
                Some((host, command)) => typed.push(Typed {
                    line,
                    host: host.to_owned(),
                    command: command.to_owned(),
                    shown: Vec::new(),
                }),
                None => {
                    let last = typed.last_mut().ok_or(format!("line {line}: nothing was typed"))?;
                    last.shown.push(text.to_owned());
                }
            },
            (None, None) => typed.extend(hidden(text).map(|(host, command)| Typed {
                line,
                host: host.to_owned(),
                command: command.to_owned(),
                shown: Vec::new(),
            })),
            _ => {}
        }
    }
    Ok(typed)
}

/// Returns the command in a comment.
fn hidden(line: &str) -> Option<(&str, &str)> {
    prompt(line.strip_prefix("<!-- ")?.strip_suffix(" -->")?)
}

/// Takes a line apart at `host# ` or `host$ `.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let at = line.find(['#', '$'])?;
    let (host, rest) = line.split_at(at);
    let named = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric());
    Some((host, rest[1..].strip_prefix(' ')?)).filter(|_| named)
}

/// Returns whether what was said is what is shown.
pub(crate) fn fits(shown: &[String], said: &[&str]) -> bool {
    let Some((first, rest)) = shown.split_first() else { return said.is_empty() };
    if first == "…" {
        return (0..=said.len()).any(|from| fits(rest, &said[from..]));
    }
    said.split_first().is_some_and(|(line, more)| line_fits(first, line) && fits(rest, more))
}

fn line_fits(shown: &str, said: &str) -> bool {
    let Some((start, rest)) = shown.split_once('…') else {
        // Editors take blanks at the ends of lines away.
        return shown.trim_end() == said.trim_end();
    };
    let Some(said) = said.strip_prefix(start) else { return false };
    (0..=said.len()).filter(|at| said.is_char_boundary(*at)).any(|at| line_fits(rest, &said[at..]))
}

#[test]
fn blocks_are_read_and_compared() {
    let document = "<!-- d# hidden -->\n<!-- no command -->\n```console\na# one two\nout\n…\nb$ three\n```\n```sh\nc# no\n```\n";
    let typed = commands(document).unwrap();
    assert_eq!(typed.len(), 3, "{typed:?}");
    let (before, typed) = typed.split_first().unwrap();
    assert_eq!((before.host.as_str(), before.command.as_str()), ("d", "hidden"));
    assert_eq!((typed[0].line, typed[0].command.as_str()), (4, "one two"));
    assert!(fits(&typed[0].shown, &["out"]) && fits(&typed[0].shown, &["out", "x", "y"]));
    assert!(!fits(&typed[0].shown, &["other"]) && !fits(&typed[1].shown, &["x"]));
    assert!(line_fits("a … c…", "a b c") && !line_fits("a … d", "a b c"));
    assert!(commands("```console\nout\n```\n").is_err());
}
