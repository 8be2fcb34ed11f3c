//! The text format of Prometheus, version 0.0.4.
//!
//! A writer of our own, as `prometheus-client` writes OpenMetrics only, whose counters
//! `promtool check metrics` objects to, and `prometheus` builds every sample in memory first: with
//! 10,000 real servers there are some 100,000. Names, types and texts stand in
//! [`families`](super::families) and nowhere else.

use std::fmt::Write;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Goes up, and begins again at 0.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A value of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    /// A whole number.
    Whole(u64),
    /// Any other.
    Real(f64),
}

/// A metric of things of one kind.
pub(super) struct Family<T: 'static> {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    /// Its value for a thing; `None` if that has none.
    pub(super) value: fn(&T) -> Option<Value>,
}

/// The text, as far as it is written.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Writes families of things that have [`labels`].
    pub(super) fn families<T>(&mut self, families: &[Family<T>], things: &[(String, &T)]) {
        for family in families {
            let mut told = false;
            for (labels, thing) in things {
                let Some(value) = (family.value)(thing) else { continue };
                if !std::mem::replace(&mut told, true) {
                    let (name, kind) = (family.name, family.kind.name());
                    self.put(format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", family.help));
                }
                self.0.push_str(family.name);
                self.0.push_str(labels);
                match value {
                    Value::Whole(number) => self.put(format_args!(" {number}\n")),
                    Value::Real(number) => self.put(format_args!(" {number}\n")),
                }
            }
        }
    }

    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        // A string takes everything.
        self.0.write_fmt(what).ok();
    }

    pub(super) fn end(self) -> String {
        self.0
    }
}

/// Returns labels as they stand behind a name. Those without a value are left out, which means the
/// same.
pub(super) fn labels<const N: usize>(names: &[&str; N], values: [&str; N]) -> String {
    let mut text = String::with_capacity(128);
    for (name, value) in names.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(name);
        text.push_str("=\"");
        for letter in value.chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                _ => text.push(letter),
            }
        }
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_left_out() {
        assert_eq!(labels(&["a", "b"], ["", ""]), "");
        assert_eq!(labels(&["a", "b", "c"], ["x\"y\\z\nu", "", "1"]), r#"{a="x\"y\\z\nu",c="1"}"#);
    }
}
