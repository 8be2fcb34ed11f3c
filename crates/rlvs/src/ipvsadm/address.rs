//! Numbers, addresses and ports as C programs read them: strtol, inet_aton, getservbyname.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use rlvs_control::model::Protocol;

use super::names::Names;

/// An address as it was typed, with a port if there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) port: Option<u16>,
}

/// Reads `ADDRESS[:PORT]`; names of ports are those of `protocol`.
///
/// An IPv6 address stands in brackets if a port follows, and brackets need a port. Brackets
/// around an IPv4 address make the port be forgotten, and digits alone are no address.
pub(crate) fn endpoint(text: &str, protocol: Option<Protocol>, names: &Names) -> Option<Endpoint> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (text, after) = match text.strip_prefix('[') {
        Some(inner) => {
            let (inner, after) = inner.split_once(']')?;
            (inner, Some(after.strip_prefix(':')?))
        }
        None => (text, None),
    };
    let (address, port) = match text.parse::<Ipv6Addr>() {
        Ok(address) => (IpAddr::V6(address), after),
        Err(_) => {
            let (host, port) = match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (IpAddr::V4(host_v4(host, names)?), port)
        }
    };
    let port = match port {
        Some(port) => Some(port_number(port, protocol, names)?),
        None => None,
    };
    Some(Endpoint { address, port })
}

fn port_number(text: &str, protocol: Option<Protocol>, names: &Names) -> Option<u16> {
    match number(text, 0..=65535) {
        Some(port) => u16::try_from(port).ok(),
        None => names.port(text, protocol?),
    }
}

/// Reads an IPv4 address in any of the forms of `inet_aton`, or asks for the name's address.
pub(crate) fn host_v4(text: &str, names: &Names) -> Option<Ipv4Addr> {
    inet_aton(text).or_else(|| names.address(text))
}

/// Reads a whole number as `strtol(_, 10)`: white space and a sign may come first.
pub(crate) fn number(text: &str, range: RangeInclusive<i64>) -> Option<i64> {
    let text = text.trim_start_matches(is_space);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|value| range.contains(value))
}

/// Reads the number that a text starts with, as `atoi`; 0 if it starts with none.
pub(crate) fn leading_number(text: &str) -> i64 {
    let text = text.trim_start_matches(is_space);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    let sign = text.len() - digits.len();
    text.get(..sign + end).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn is_space(letter: char) -> bool {
    letter.is_ascii_whitespace() || letter == '\u{b}'
}

/// Reads one to four numbers between dots, the last of which fills what is left of 32 bits.
///
/// Numbers are decimal, octal after `0` or hexadecimal after `0x`; white space ends the address.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let text = text.split(is_space).next()?;
    let parts: Vec<u32> = text.split('.').map(c_number).collect::<Option<_>>()?;
    let (&last, leading) = parts.split_last()?;
    if leading.len() > 3 || leading.iter().any(|&part| part > 0xff) {
        return None;
    }
    let bits = 32 - 8 * u32::try_from(leading.len()).ok()?;
    if u64::from(last) >> bits != 0 {
        return None;
    }
    let high = leading.iter().fold(0_u64, |high, &part| high << 8 | u64::from(part));
    u32::try_from(high << bits | u64::from(last)).ok().map(Ipv4Addr::from)
}

fn c_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (text.get(2..)?, 16),
        [b'0', _, ..] => (text.get(1..)?, 8),
        _ => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// Returns the address as glibc writes it.
pub(crate) fn text(address: IpAddr) -> String {
    if let IpAddr::V6(v6) = address
        && let [0, 0, 0, 0, 0, 0, high, low] = v6.segments()
        && high != 0
    {
        let v4 = Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
        return format!("::{v4}");
    }
    address.to_string()
}

/// Appends what [`text`] returns.
pub(crate) fn push(to: &mut String, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    to.push('.');
                }
                push_number(to, octet.into());
            }
        }
        IpAddr::V6(_) => to.push_str(&text(address)),
    }
}

/// Appends a number. Lists of connections have many, and `format!` takes its time.
pub(crate) fn push_number(to: &mut String, number: u32) {
    if number >= 10 {
        push_number(to, number / 10);
    }
    // A digit.
    to.push(char::from(b'0' + (number % 10) as u8));
}

/// Appends a number of two digits at least.
pub(crate) fn push_padded(to: &mut String, number: u32) {
    if number < 10 {
        to.push('0');
    }
    push_number(to, number);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_in_every_form_of_inet_aton() {
        for (text, expected) in [
            ("10.0.0.1", Some([10, 0, 0, 1])),
            ("10.1", Some([10, 0, 0, 1])),
            ("1.2.65535", Some([1, 2, 255, 255])),
            ("16909060", Some([1, 2, 3, 4])),
            ("0x01020304", Some([1, 2, 3, 4])),
            ("01.02.03.010", Some([1, 2, 3, 8])),
            ("24", Some([0, 0, 0, 24])),
            ("0", Some([0, 0, 0, 0])),
            ("255.255.255.255", Some([255; 4])),
            ("1.2.3.4 foo", Some([1, 2, 3, 4])),
            (" 1.2.3.4", None),
            ("1.2.3.4.", None),
            ("1.2.3.4.5", None),
            ("256.2.3.4", None),
            ("1.2.65536", None),
            ("4294967296", None),
            ("08.1.1.1", None),
            ("0x.1.1.1", None),
            ("+1.2.3.4", None),
            ("0+1.2.3.4", None),
            ("1..2", None),
            ("", None),
        ] {
            assert_eq!(inet_aton(text), expected.map(Ipv4Addr::from), "{text:?}");
        }
    }

    #[test]
    fn numbers_as_strtol_reads_them() {
        for (text, expected) in [
            ("7", Some(7)),
            (" 7", Some(7)),
            ("\t\u{b}+7", Some(7)),
            ("010", Some(10)),
            ("-0", Some(0)),
            ("255", Some(255)),
            ("256", None),
            ("-1", None),
            ("7 ", None),
            ("0x10", None),
            ("+-7", None),
            ("", None),
            ("-", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(number(text, 0..=255), expected, "{text:?}");
        }
        for (text, expected) in [("64x", 64), (" -3", -3), ("x64", 0), ("", 0), ("-", 0)] {
            assert_eq!(leading_number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn endpoints() {
        let names =
            Names::fixed("http 80/tcp www\ndomain 53/udp\n", &[("web", [10, 0, 0, 9].into())]);
        for (text, expected) in [
            ("1.2.3.4:80", Some(("1.2.3.4", Some(80)))),
            ("1.2.3.4:www", Some(("1.2.3.4", Some(80)))),
            ("1.2.3.4: 93", Some(("1.2.3.4", Some(93)))),
            ("1.2.3.4 :80", Some(("1.2.3.4", Some(80)))),
            ("1.2.3.4", Some(("1.2.3.4", None))),
            ("web:http", Some(("10.0.0.9", Some(80)))),
            ("[1.2.3.4]:99999", Some(("1.2.3.4", None))),
            ("::1", Some(("::1", None))),
            ("2001:db8::200:80", Some(("2001:db8::200:80", None))),
            ("[::1]:80", Some(("::1", Some(80)))),
            ("[::1]:http", Some(("::1", Some(80)))),
            ("[::1]", None),
            ("[::1]:", None),
            ("[::1]x:80", None),
            ("[::1]:80:90", None),
            ("[::1%lo]:80", None),
            ("1.2.3.4:", None),
            ("1.2.3.4:65536", None),
            ("1.2.3.4:-1", None),
            ("1.2.3.4:domain", None),
            ("1.2.3.4:HTTP", None),
            ("16909060", None),
            ("unknown:80", None),
            (":80", None),
            ("", None),
        ] {
            let expected = expected
                .map(|(address, port)| Endpoint { address: address.parse().unwrap(), port });
            assert_eq!(endpoint(text, Some(Protocol::Tcp), &names), expected, "{text:?}");
        }
        assert_eq!(endpoint("1.2.3.4:http", None, &names), None);
    }

    #[test]
    fn addresses_are_written_as_glibc_does() {
        for address in ["10.0.0.1", "::", "::1", "::1.2.3.4", "::ffff:1.2.3.4", "1:0:0:2::"] {
            assert_eq!(super::text(address.parse().unwrap()), address);
        }
        assert_eq!(super::text("0:1:2:3:4:5:6:7".parse().unwrap()), "0:1:2:3:4:5:6:7");
    }
}
