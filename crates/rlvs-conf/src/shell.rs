//! Commands: words with quotes and escapes, as they go to the program. No shell is started.

/// Splits a command. Single and double quotes hold words together; outside single quotes `\` escapes:
/// `\n`, `\t` and the like, `\xHH`, `\ooo`, or the character itself.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut within: Option<u8> = None;
    let mut open = false;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        let blank = byte.is_ascii_whitespace();
        match (byte, within) {
            (_, None) if blank => {
                open = false;
                continue;
            }
            (b'\'' | b'"', None) => within = Some(byte),
            (_, Some(quote)) if byte == quote => within = None,
            _ => {
                let word = opened(&mut words, &mut open);
                if byte == b'\\' && within != Some(b'\'') {
                    let (escaped, next) = escape(bytes, at);
                    word.extend(escaped);
                    at = next;
                } else {
                    word.push(byte);
                }
                continue;
            }
        }
        opened(&mut words, &mut open);
    }
    words.into_iter().map(|word| String::from_utf8_lossy(&word).into_owned()).collect()
}

fn opened<'w>(words: &'w mut Vec<Vec<u8>>, open: &mut bool) -> &'w mut Vec<u8> {
    if !*open || words.is_empty() {
        words.push(Vec::new());
        *open = true;
    }
    let last = words.len() - 1;
    &mut words[last]
}

/// Returns what stands behind a backslash, and where the text goes on.
fn escape(bytes: &[u8], at: usize) -> (Option<u8>, usize) {
    let Some(&byte) = bytes.get(at) else { return (Some(b'\\'), at) };
    let simple = match byte {
        b'a' => 7,
        b'b' => 8,
        b'e' => 27,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        b'x' => return digits(bytes, at + 1, 16, 2),
        b'0'..=b'7' => return digits(bytes, at, 8, 3),
        other => other,
    };
    (Some(simple), at + 1)
}

fn digits(bytes: &[u8], from: usize, radix: u32, most: usize) -> (Option<u8>, usize) {
    let digit = |&&byte: &&u8| char::from(byte).is_digit(radix);
    let count = bytes.iter().skip(from).take(most).take_while(digit).count();
    let text = std::str::from_utf8(&bytes[from..from + count]).unwrap_or_default();
    (u8::from_str_radix(text, radix).ok(), from + count)
}

/// Writes a command so that [`split`] gives the same words.
pub(crate) fn join(command: &[String]) -> String {
    let quoted = command.iter().map(|word| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-=:,+@%".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            return word.clone();
        }
        let mut out = String::from("'");
        for c in word.chars() {
            match c {
                '\'' => out.push_str("'\\''"),
                '"' => out.push_str("'\\x22'"),
                '\\' => out.push_str("'\\\\'"),
                '$' => out.push_str("'\\x24'"),
                c if c.is_control() && c.is_ascii() => {
                    out.push_str(&format!("'\\x{:02x}'", u32::from(c)));
                }
                c => out.push(c),
            }
        }
        out.push('\'');
        out
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(split(text), expected, "{text}");
    }

    #[test]
    fn quotes_and_escapes_are_those_of_a_shell() {
        check("/bin/echo 'a b' \"c d\" \\x41", &["/bin/echo", "a b", "c d", "A"]);
        check("a'b'c  d", &["abc", "d"]);
        check("'' x", &["", "x"]);
        check("a\\ b \\101 \\n", &["a b", "A", "\n"]);
        check("'\\n'", &["\\n"]);
        check("  ", &[]);
        check("x\\", &["x\\"]);
    }

    #[test]
    fn what_is_joined_is_split_again() {
        let command = ["/a b", "", "'\"\\$", "x\ny", "ü"].map(str::to_owned).to_vec();
        assert_eq!(split(&join(&command)), command);
    }
}
