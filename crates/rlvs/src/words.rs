//! Words that several command lines and files have.

use std::net::SocketAddr;

use serde::de::{Deserialize, Deserializer, Error};

/// Reads an address with a port.
///
/// # Errors
/// What it should look like.
pub(crate) fn end(text: &str) -> Result<SocketAddr, String> {
    let wrong = "it is no ADDRESS:PORT, such as 192.0.2.1:80 or [2001:db8::1]:80";
    text.parse().map_err(|_| wrong.to_owned())
}

/// As [`end`], of a file.
pub(crate) fn end_in_file<'a, D: Deserializer<'a>>(
    from: D,
) -> Result<Option<SocketAddr>, D::Error> {
    end(&String::deserialize(from)?).map(Some).map_err(Error::custom)
}
