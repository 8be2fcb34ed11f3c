//! Takes a command line apart into flags, values and plain words, as libpopt does.
//!
//! Short flags cluster, a value may follow its letter at once, after `=` or as the next word;
//! a long flag is spelled in full. Plain words may stand anywhere and are kept for later; all
//! that follows `--` is plain words.

use super::failure::Failure;
use super::flags::FLAGS;
use super::grammar::{Flag, Value};

/// A command line that is being taken apart.
pub(crate) struct Words<'a> {
    rest: std::slice::Iter<'a, String>,
    cluster: &'a str,
    only_plain: bool,
    plain: Vec<&'a str>,
}

impl<'a> Words<'a> {
    /// Starts with the words that follow the program's name.
    pub(crate) fn new(words: &'a [String]) -> Self {
        Self { rest: words.iter(), cluster: "", only_plain: false, plain: Vec::new() }
    }

    /// Returns the plain words met, which are all of them once [`Self::next`] has come to an end.
    pub(crate) fn plain(&self) -> &[&'a str] {
        &self.plain
    }

    /// Returns the next flag with its value.
    ///
    /// # Errors
    /// [`Failure::BadOption`] for a word that is not a flag, lacks its value, or has one too many.
    pub(crate) fn next(&mut self) -> Option<Result<(&'static Flag, Option<&'a str>), Failure>> {
        while self.cluster.is_empty() {
            let word = self.rest.next()?.as_str();
            match word.strip_prefix('-') {
                _ if self.only_plain => self.plain.push(word),
                None | Some("") => self.plain.push(word),
                Some("-") => self.only_plain = true,
                Some(tail) => match tail.strip_prefix('-') {
                    Some(long) => return Some(self.long(long)),
                    None => self.cluster = tail,
                },
            }
        }
        Some(self.short())
    }

    fn long(&mut self, text: &'a str) -> Result<(&'static Flag, Option<&'a str>), Failure> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let Some(flag) = FLAGS.iter().find(|flag| flag.long == name) else {
            return Err(Failure::BadOption(format!(
                "there is no option {:?}",
                format!("--{name}")
            )));
        };
        if let (Value::None, Some(value)) = (flag.value, value) {
            let text = format!("{} takes no value, and got {value:?}", flag.spelling());
            return Err(Failure::BadOption(text));
        }
        self.with_value(flag, value)
    }

    fn short(&mut self) -> Result<(&'static Flag, Option<&'a str>), Failure> {
        let mut letters = self.cluster.chars();
        let letter = letters.next();
        self.cluster = letters.as_str();
        let Some(flag) = FLAGS.iter().find(|flag| flag.short == letter) else {
            let name = letter.map_or(String::new(), |letter| format!("-{letter}"));
            return Err(Failure::BadOption(format!("there is no option {name:?}")));
        };
        if flag.value == Value::None || self.cluster.is_empty() {
            return self.with_value(flag, None);
        }
        let value = std::mem::take(&mut self.cluster);
        Ok((flag, Some(value.strip_prefix('=').unwrap_or(value))))
    }

    /// Completes a flag with its value, which may be the next word.
    fn with_value(
        &mut self,
        flag: &'static Flag,
        value: Option<&'a str>,
    ) -> Result<(&'static Flag, Option<&'a str>), Failure> {
        let next = || self.rest.as_slice().first().map(String::as_str);
        let value = match (flag.value, value) {
            (Value::None, _) | (_, Some(_)) => return Ok((flag, value)),
            (Value::Required(what), None) => match next() {
                Some(word) => word,
                None => {
                    let text = format!("{} lacks its value {what}", flag.spelling());
                    return Err(Failure::BadOption(text));
                }
            },
            (Value::Optional(_), None) => match next() {
                Some(word) if !word.starts_with('-') => word,
                _ => return Ok((flag, None)),
            },
        };
        self.rest.next();
        Ok((flag, Some(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_the_cluster_behind_an_equals_sign_or_in_the_next_word() {
        for line in ["-At V", "-A -t V", "-AtV", "-At=V", "-A --tcp-service V"] {
            check(line, &["add-service", "tcp-service V"], &[]);
        }
        check("-A --tcp-service=V", &["add-service", "tcp-service V"], &[]);
        check("-At==V", &["add-service", "tcp-service =V"], &[]);
        check("--scheduler= -n", &["scheduler ", "numeric"], &[]);
        check("-s -n", &["scheduler -n"], &[]);
    }

    #[test]
    fn an_optional_value_does_not_start_with_a_dash() {
        check("-p 5 -n", &["persistent 5", "numeric"], &[]);
        check("-p5 -pn", &["persistent 5", "persistent n"], &[]);
        check("-p -n", &["persistent", "numeric"], &[]);
        check("-p", &["persistent"], &[]);
        check("--persistent=", &["persistent "], &[]);
    }

    #[test]
    fn plain_words_stand_anywhere() {
        check("1 --set - 2 -- -n --", &["set"], &["1", "-", "2", "-n", "--"]);
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        for line in ["-n -z", "-nz", "--tcp-servic x", "--numeric=1", "-o=1", "-n -t", "--set=1"] {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            let mut words = Words::new(&words);
            let last = std::iter::from_fn(|| words.next()).last();
            assert!(matches!(last, Some(Err(Failure::BadOption(_)))), "{line}: {last:?}");
        }
    }

    fn check(line: &str, flags: &[&str], plain: &[&str]) {
        let list: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let mut words = Words::new(&list);
        let mut met = Vec::new();
        while let Some(next) = words.next() {
            let (flag, value) = next.unwrap();
            met.push(value.map_or(flag.long.to_owned(), |value| format!("{} {value}", flag.long)));
        }
        assert_eq!(met, flags, "{line}");
        assert_eq!(words.plain(), plain, "{line}");
    }
}
