//! The one table of keywords: what stands where, what it takes, what it means.
//!
//! The parser, the suggestions, `docs/keepalived.md` and keepalived.conf(5) are made from it.

mod check;
mod document;
mod global;
mod manual;
mod root;
mod route;
mod service;
mod vrrp;

pub use document::document;
pub use manual::manual;
pub use root::ROOT;

/// What a word must be.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// Any word.
    Text,
    /// A word of the user's choice that names something.
    Name,
    /// A word that nobody may see.
    Secret,
    /// A network interface.
    Interface,
    /// A command with its arguments, in one word or several.
    Script,
    /// A whole number from the first to the second.
    Number(i64, i64),
    /// Seconds with up to six decimals, from the first to the second, in microseconds.
    Seconds(u64, u64),
    /// `on`, `off`, `true`, `false`, `yes` or `no`.
    Switch,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An IPv4 or IPv6 address.
    Address,
    /// An address with or without the length of its prefix.
    Prefix,
    /// Addresses: `A`, `A-B`, `A-N`, `A/LENGTH`.
    Addresses,
    /// A netmask, or a prefix length for IPv6.
    Mask,
    /// A status code or a range of them.
    Codes,
    /// 32 hexadecimal digits.
    Digest,
    /// Bytes in hexadecimal digits; `X` for those that do not matter.
    Hex,
    /// May be left out.
    Maybe(&'static Arg),
    /// Any number of these.
    Many(&'static Arg),
}

/// What follows a keyword's arguments.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// Nothing.
    End,
    /// Words with arguments of their own, on the same line.
    Options(&'static [Keyword]),
    /// A block of keywords.
    Block(&'static [Keyword]),
    /// A block of entries, each an [`Arg`] and options.
    Entries(Arg, &'static [Keyword]),
    /// A block of words.
    Words(Arg),
}

/// What becomes of a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is part of the desired state, which the daemon carries out.
    Done,
    /// It is checked and kept, and not yet carried out.
    Kept,
    /// It has no effect, here or in the real one.
    Void,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Keyword {
    /// The word.
    pub name: &'static str,
    /// Its arguments.
    pub takes: &'static [Arg],
    /// What follows them.
    pub then: Then,
    /// What holds where it is not written; empty if nothing does.
    pub default: &'static str,
    /// What becomes of it.
    pub status: Status,
    /// What it means.
    pub about: &'static str,
    /// The keyword to write in its place.
    pub instead: Option<&'static str>,
    /// keepalived does not know it here.
    pub ours: bool,
    /// keepalived 2.2.7 does not know it.
    pub newer: bool,
}

use Status::{Done, Kept, Void};

/// A row that is carried out.
const fn done(
    name: &'static str,
    takes: &'static [Arg],
    default: &'static str,
    about: &'static str,
) -> Keyword {
    let (then, instead) = (Then::End, None);
    Keyword { name, takes, then, default, status: Done, about, instead, ours: false, newer: false }
}

/// A row that is kept.
const fn kept(
    name: &'static str,
    takes: &'static [Arg],
    default: &'static str,
    about: &'static str,
) -> Keyword {
    Keyword { status: Kept, ..done(name, takes, default, about) }
}

impl Keyword {
    const fn options(self, options: &'static [Self]) -> Self {
        Self { then: Then::Options(options), ..self }
    }
    const fn block(self, block: &'static [Self]) -> Self {
        Self { then: Then::Block(block), ..self }
    }
    const fn entries(self, head: Arg, options: &'static [Self]) -> Self {
        Self { then: Then::Entries(head, options), ..self }
    }
    const fn words(self, word: Arg) -> Self {
        Self { then: Then::Words(word), ..self }
    }
    const fn instead(self, name: &'static str) -> Self {
        Self { instead: Some(name), ..self }
    }
    const fn void(self) -> Self {
        Self { status: Void, ..self }
    }
    const fn ours(self) -> Self {
        Self { ours: true, ..self }
    }
    const fn newer(self) -> Self {
        Self { newer: true, ..self }
    }
}

/// A second.
const S: u64 = 1_000_000;
/// The largest number of 31 bits.
const I31: i64 = 0x7fff_ffff;
/// The largest number of 32 bits.
const U32: i64 = 0xffff_ffff;
/// The longest time.
const EVER: u64 = 0xffff_ffff * S;
/// A length of time.
const TIME: Arg = Arg::Seconds(1, EVER);
/// A length of time or none.
const TIME0: Arg = Arg::Seconds(0, EVER);
/// `[on|off]`
const SWITCH: &[Arg] = &[Arg::Maybe(&Arg::Switch)];
/// No arguments.
const NONE: &[Arg] = &[];
/// A command, and the user and group that run it.
const SCRIPT: &[Arg] = &[Arg::Script, Arg::Maybe(&Arg::Name), Arg::Maybe(&Arg::Name)];
/// User and group.
const USER: &[Arg] = &[Arg::Name, Arg::Maybe(&Arg::Name)];
/// A port.
const PORT: Arg = Arg::Number(0, 65535);
/// A whole number.
const COUNT: Arg = Arg::Number(0, U32);
/// A whole number but 0.
const COUNT1: Arg = Arg::Number(1, U32);
/// `reverse`
const REVERSE: Keyword = done(
    "reverse",
    NONE,
    "",
    "the weight counts with the other sign; with 0 it is a fault while it is good",
);

/// Returns the row of a keyword in a block.
pub fn find(block: &'static [Keyword], name: &str) -> Option<&'static Keyword> {
    block.iter().find(|row| row.name == name)
}

/// Returns the blocks of keywords that a row opens, itself or in its options.
pub fn inner(row: &'static Keyword) -> &'static [Keyword] {
    match row.then {
        Then::End | Then::Words(_) => &[],
        Then::Options(rows) | Then::Block(rows) | Then::Entries(_, rows) => rows,
    }
}

/// Returns the name of a block in which a keyword may stand, if any.
pub(crate) fn home(name: &str) -> Option<&'static str> {
    fn search(rows: &'static [Keyword], name: &str, within: &'static str) -> Option<&'static str> {
        if rows.iter().any(|row| row.name == name && !row.ours) {
            return Some(within);
        }
        let blocks = rows.iter().filter(|row| matches!(row.then, Then::Block(_)));
        blocks.into_iter().find_map(|row| search(inner(row), name, row.name))
    }
    search(ROOT, name, "the top level")
}

impl Arg {
    /// Says what is expected.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Name => "a name".into(),
            Self::Secret => "a password".into(),
            Self::Interface => "an interface".into(),
            Self::Script => "a command".into(),
            Self::Number(0, I31 | U32) => "a whole number".into(),
            Self::Number(1, I31 | U32) => "a whole number, at least 1".into(),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Seconds(0, EVER) => "seconds, such as 3 or 0.5".into(),
            Self::Seconds(1, EVER) => "seconds, more than 0, such as 3 or 0.5".into(),
            Self::Seconds(least, most) => {
                format!("seconds from {} to {}", seconds(least), seconds(most))
            }
            Self::Switch => "`on` or `off`".into(),
            Self::OneOf(words) => {
                words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
            }
            Self::Address => "an IP address".into(),
            Self::Prefix => "an IP address, such as 192.0.2.1/24".into(),
            Self::Addresses => "addresses, such as 192.0.2.1, 192.0.2.1-10 or 192.0.2.0/28".into(),
            Self::Mask => "a netmask, or for IPv6 1 to 128".into(),
            Self::Codes => "status codes, such as 200 or 200-299".into(),
            Self::Digest => "an MD5 digest of 32 hexadecimal digits".into(),
            Self::Hex => "hexadecimal digits".into(),
            Self::Maybe(inner) | Self::Many(inner) => inner.describe(),
        }
    }

    /// Returns the short form for the table of keywords.
    pub fn short(self) -> String {
        match self {
            Self::Text => "TEXT".into(),
            Self::Name => "NAME".into(),
            Self::Secret => "SECRET".into(),
            Self::Interface => "INTERFACE".into(),
            Self::Script => "COMMAND".into(),
            Self::Number(0, 65535) => "PORT".into(),
            Self::Number(0, I31 | U32) => "N".into(),
            Self::Number(least, I31 | U32) => format!("N≥{least}"),
            Self::Number(least, most) => format!("{least}…{most}"),
            Self::Seconds(_, EVER) => "SECONDS".into(),
            Self::Seconds(least, most) => format!("{}…{} s", seconds(least), seconds(most)),
            Self::Switch => "on/off".into(),
            Self::OneOf(words) => words.join("/"),
            Self::Address => "ADDRESS".into(),
            Self::Prefix => "ADDRESS[/LENGTH]".into(),
            Self::Addresses => "ADDRESSES".into(),
            Self::Mask => "MASK".into(),
            Self::Codes => "CODE[-CODE]".into(),
            Self::Digest => "MD5".into(),
            Self::Hex => "HEX".into(),
            Self::Maybe(inner) => format!("[{}]", inner.short()),
            Self::Many(inner) => format!("[{} …]", inner.short()),
        }
    }
}

/// Writes microseconds as seconds.
pub(crate) fn seconds(micros: u64) -> String {
    let (whole, rest) = (micros / S, micros % S);
    if rest == 0 {
        return whole.to_string();
    }
    format!("{whole}.{rest:06}").trim_end_matches('0').to_owned()
}
