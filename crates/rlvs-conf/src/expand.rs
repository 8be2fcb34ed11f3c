//! Definitions (`$NAME=…`, `$NAME`, `${NAME}`) and repetitions (`~SEQ(…)`, `~LST(…)`).

use std::ops::Range;

use crate::lexer::Lexer;
use crate::token::Line;

/// Returns name and value, if the line is a definition.
pub(crate) fn definition(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix('$')?;
    let (name, value) = rest.split_once('=')?;
    let named = !name.is_empty() && name.bytes().all(is_name);
    named.then_some((name, value.trim()))
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A place where something may be put in.
pub(crate) struct Reference<'t> {
    pub(crate) range: Range<usize>,
    pub(crate) name: &'t str,
    /// What follows the name within the braces.
    pub(crate) arguments: &'t str,
}

/// Returns the next `$NAME` or `${NAME …}` from `from` on.
pub(crate) fn reference(text: &str, from: usize) -> Option<Reference<'_>> {
    let mut at = from;
    loop {
        let start = at + text.get(at..)?.find('$')?;
        let behind = &text[start + 1..];
        if let Some(inner) = behind.strip_prefix('{').and_then(|rest| rest.split('}').next())
            && behind.len() > inner.len() + 1
        {
            let (name, arguments) = inner.split_once(' ').unwrap_or((inner, ""));
            if !name.is_empty() && name.bytes().all(is_name) {
                return Some(Reference { range: start..start + inner.len() + 3, name, arguments });
            }
        }
        let length = behind.bytes().take_while(|&byte| is_name(byte)).count();
        if length > 0 {
            let range = start..start + 1 + length;
            return Some(Reference { range, name: &behind[..length], arguments: "" });
        }
        at = start + 1;
    }
}

/// Returns what a name stands for.
pub(crate) fn value(lexer: &mut Lexer<'_>, name: &str, arguments: &str) -> Option<String> {
    let built_in = match name {
        "_PWD" => Some(lexer.folder()),
        "_INSTANCE" => Some(lexer.options.instance.clone()),
        "_HASH" => Some("#".into()),
        "_BANG" => Some("!".into()),
        "_ENV" => lexer.surroundings.variable(arguments.trim()),
        "_RANDOM" => Some(random(&mut lexer.random, arguments).to_string()),
        _ => None,
    };
    built_in.or_else(|| lexer.definitions.get(name).cloned())
}

/// Returns the next number of a sequence (splitmix64), from the bounds in `arguments`.
fn random(state: &mut u64, arguments: &str) -> u64 {
    let mut bounds = arguments.split_whitespace().map_while(|word| word.parse::<u32>().ok());
    let (low, high) = match (bounds.next(), bounds.next()) {
        (Some(low), Some(high)) => (low, high),
        (Some(high), None) => (0, high),
        _ => (0, 32767),
    };
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    u64::from(low) + mixed % (u64::from(high.saturating_sub(low)) + 1)
}

/// A part of a line that says that the rest is repeated.
pub(crate) struct Repetition {
    pub(crate) start: usize,
    /// Where the repeated text starts.
    pub(crate) end: usize,
    pub(crate) names: Vec<String>,
    values: Values,
}

enum Values {
    Numbers { start: i64, step: i64, end: i64, hexadecimal: bool },
    Lists(Vec<Vec<String>>),
}

impl Repetition {
    /// Returns the values of the names, for one round after the other.
    pub(crate) fn rounds(&self) -> Box<dyn Iterator<Item = Vec<String>> + '_> {
        match &self.values {
            Values::Lists(rounds) => Box::new(rounds.iter().cloned()),
            &Values::Numbers { start, step, end, hexadecimal } => {
                let numbers = std::iter::successors(Some(start), move |&at| at.checked_add(step));
                let within = move |&at: &i64| if step > 0 { at <= end } else { at >= end };
                Box::new(numbers.take_while(within).map(move |number| {
                    vec![if hexadecimal { format!("{number:x}") } else { number.to_string() }]
                }))
            }
        }
    }
}

/// Returns the first repetition of a line.
pub(crate) fn repetition(lexer: &mut Lexer<'_>, line: &Line) -> Option<Repetition> {
    let text = &line.text;
    let start = text.find("~SEQ").into_iter().chain(text.find("~LST")).min()?;
    let word = &text[start..];
    let open = word.find('(')?;
    let close = open + matching_close(&word[open..])?;
    let inside = settled(lexer, &word[open + 1..close]);
    let end = start + close + 1;
    let parts = separated(&inside);
    let first = parts.first()?.clone();
    match word[..open].trim_end() {
        "~SEQ" | "~SEQx" => {
            let numbers: Vec<i64> = parts[1..].iter().map_while(|part| part.parse().ok()).collect();
            let hexadecimal = word.starts_with("~SEQx");
            let (from, step, to) = match numbers[..] {
                [to] => (1, 1, to),
                [from, to] => (from, if to < from { -1 } else { 1 }, to),
                [from, step, to] if step != 0 => (from, step, to),
                _ => return None,
            };
            let values = Values::Numbers { start: from, step, end: to, hexadecimal };
            Some(Repetition { start, end, names: vec![first], values })
        }
        "~LST" => {
            let names = grouped(&first);
            let rounds = parts[1..].iter().map(|part| grouped(part));
            let whole = rounds.filter(|round| round.len() == names.len()).collect();
            Some(Repetition { start, end, names, values: Values::Lists(whole) })
        }
        _ => None,
    }
}

/// Puts definitions into the arguments of a repetition.
fn settled(lexer: &mut Lexer<'_>, text: &str) -> String {
    let mut out = String::new();
    let mut at = 0;
    while let Some(found) = reference(text, at) {
        out.push_str(&text[at..found.range.start]);
        let put = value(lexer, found.name, found.arguments);
        out.push_str(put.as_deref().unwrap_or(&text[found.range.clone()]));
        at = found.range.end;
    }
    out.push_str(&text[at..]);
    out
}

fn matching_close(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// Splits at commas that stand in no braces.
fn separated(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0i32;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

/// Returns the members of `{a,b}`, or the word itself.
fn grouped(text: &str) -> Vec<String> {
    match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(inside) => separated(inside),
        None => vec![text.to_owned()],
    }
}
