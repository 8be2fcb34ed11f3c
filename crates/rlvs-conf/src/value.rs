//! What a word means where it stands.

use std::net::{IpAddr, Ipv4Addr};

use crate::grammar::Arg;
use crate::source::Span;

/// What was read from a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The text is all there is.
    Text,
    Number(i64),
    /// Microseconds.
    Time(u64),
    Switch(bool),
    Address(IpAddr),
    /// An address, and the length of its prefix.
    Prefix(IpAddr, u8),
    /// It was wrong, and that was said.
    Wrong,
}

/// A word with its meaning.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) meaning: Meaning,
    pub(crate) span: Span,
}

/// Reads a word. `Err` says what is wrong with it.
pub(crate) fn read(arg: Arg, text: &str) -> Result<Meaning, String> {
    match arg {
        Arg::Maybe(inner) | Arg::Many(inner) => read(*inner, text),
        Arg::Text | Arg::Script => Ok(Meaning::Text),
        Arg::Secret => Ok(Meaning::Text),
        Arg::Name | Arg::Interface if text.is_empty() => Err("an empty name".into()),
        Arg::Interface if text.len() > 15 => {
            Err(format!("`{text}` is longer than an interface's name can be"))
        }
        Arg::Name | Arg::Interface => Ok(Meaning::Text),
        Arg::Number(least, most) => number(text, least, most),
        Arg::Seconds(least, most) => time(text, least, most),
        Arg::Switch => match text {
            "on" | "true" | "yes" => Ok(Meaning::Switch(true)),
            "off" | "false" | "no" => Ok(Meaning::Switch(false)),
            _ => Err(format!("`{text}` is neither on nor off")),
        },
        Arg::OneOf(words) if words.contains(&text) => Ok(Meaning::Text),
        Arg::OneOf(_) => Err(format!("`{text}` is not known here")),
        Arg::Address => match text.parse() {
            Ok(address) => Ok(Meaning::Address(address)),
            Err(_) => Err(format!("`{text}` is no IP address")),
        },
        Arg::Prefix => prefix(text),
        Arg::Addresses => addresses(text),
        Arg::Mask => mask(text),
        Arg::Codes => codes(text),
        Arg::Digest => {
            match text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                true => Ok(Meaning::Text),
                false => Err("this is no MD5 digest".into()),
            }
        }
        Arg::Hex => hex(text),
    }
}

fn number(text: &str, least: i64, most: i64) -> Result<Meaning, String> {
    let Ok(number) = text.parse::<i64>() else {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{text} is out of range"));
        }
        return Err(format!("`{text}` is no whole number"));
    };
    if number < least || number > most {
        return Err(format!("{number} is out of range"));
    }
    Ok(Meaning::Number(number))
}

fn time(text: &str, least: u64, most: u64) -> Result<Meaning, String> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let shape = digits(whole) && digits(rest) && !(whole.is_empty() && rest.is_empty());
    if !shape {
        return Err(format!("`{text}` is no number of seconds"));
    }
    let micros = match (whole, rest.len()) {
        ("", 0..=6) => Some(0),
        (_, 0..=6) => whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1_000_000)),
        _ => return Err(format!("`{text}` has more than six decimals")),
    };
    let part = format!("{rest:0<6}").parse::<u64>().unwrap_or(0);
    match micros.and_then(|micros| micros.checked_add(part)) {
        Some(micros) if (least..=most).contains(&micros) => Ok(Meaning::Time(micros)),
        _ => Err(format!("{text} is out of range")),
    }
}

fn prefix(text: &str) -> Result<Meaning, String> {
    let (address, length) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!("`{address}` is no IP address"));
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    match length.map(str::parse::<u8>) {
        None => Ok(Meaning::Prefix(address, most)),
        Some(Ok(length)) if length <= most => Ok(Meaning::Prefix(address, length)),
        Some(_) => Err(format!("the length of the prefix of `{text}` is not from 0 to {most}")),
    }
}

/// Addresses of a group: what they are is read when they are lowered.
fn addresses(text: &str) -> Result<Meaning, String> {
    match crate::desired::AddressRange::parse(text) {
        Some(_) => Ok(Meaning::Text),
        None => Err(format!("`{text}` is no range of addresses")),
    }
}

fn mask(text: &str) -> Result<Meaning, String> {
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        return Ok(Meaning::Address(mask.into()));
    }
    number(text, 1, 128)
}

fn codes(text: &str) -> Result<Meaning, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let code = |part: &str| part.parse::<u16>().ok().filter(|code| (100..=999).contains(code));
    match (code(first), code(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Meaning::Text),
        _ => Err(format!("`{text}` is no status code from 100 to 999")),
    }
}

fn hex(text: &str) -> Result<Meaning, String> {
    let digits =
        text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte.eq_ignore_ascii_case(&b'x'));
    if digits && text.len().is_multiple_of(2) && !text.is_empty() {
        return Ok(Meaning::Text);
    }
    Err(format!("`{text}` is no row of bytes in hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_six_decimals_and_a_range() {
        let read = |text| time(text, 10_000, 255_000_000);
        assert_eq!(read("1"), Ok(Meaning::Time(1_000_000)));
        assert_eq!(read("0.05"), Ok(Meaning::Time(50_000)));
        assert_eq!(read(".5"), Ok(Meaning::Time(500_000)));
        for wrong in ["0", "256", "1,5", "-3", "", ".", "1.0000001", "99999999999999999999"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_prefix_is_not_longer_than_its_address() {
        assert_eq!(prefix("10.0.0.1"), Ok(Meaning::Prefix(IpAddr::from([10, 0, 0, 1]), 32)));
        assert!(prefix("10.0.0.1/33").is_err());
        assert!(prefix("fd09::1/64").is_ok());
        assert!(prefix("10.9.0.300/24").is_err());
    }
}
