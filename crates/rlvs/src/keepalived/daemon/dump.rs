//! Files that others read after a signal: `/tmp/keepalived.data` and `/tmp/keepalived.stats`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use rlvs_conf::desired::Desired;
use rlvs_conf::{Secrets, print};
use rlvs_control::vrrp::{Rejection, Status};

/// Writes the configuration in force and the state of each router and server, without passwords.
pub(super) fn data(
    desired: &Desired,
    status: &[Status],
    servers: &[String],
) -> io::Result<&'static str> {
    let mut text = print(desired, Secrets::Hidden);
    for one in status {
        let master = one.master.map_or("none".to_owned(), |master| master.to_string());
        let (name, state, priority) = (&one.name, one.state, one.priority);
        text += &format!("# {name}: {state}, priority {priority}, other master {master}\n");
    }
    for line in servers {
        text += &format!("# {line}\n");
    }
    write("/tmp/keepalived.data", &text)
}

/// Writes what each router has counted, in the words that programs look for.
pub(super) fn statistics(status: &[Status]) -> io::Result<&'static str> {
    let text: String = status.iter().map(of_router).collect();
    write("/tmp/keepalived.stats", &text)
}

fn of_router(status: &Status) -> String {
    let count = &status.counters;
    let rejected = |kind| count.rejected.get(&kind).copied().unwrap_or(0);
    let rows = [
        ("  Advertisements:", None),
        ("    Received", Some(count.received)),
        ("    Sent", Some(count.sent)),
        ("  Became master", Some(count.became_master)),
        ("  Released master", Some(count.released_master)),
        ("  Packet Errors:", None),
        ("    Length", Some(rejected(Rejection::Length))),
        ("    TTL", Some(rejected(Rejection::Hops))),
        ("    Invalid Type", Some(rejected(Rejection::Type))),
        ("    Advertisement Interval", Some(rejected(Rejection::Interval))),
        ("    Address List", Some(count.addresses_differ)),
        ("  Authentication Errors:", None),
        ("    Invalid Type", Some(rejected(Rejection::AuthenticationType))),
        ("    Type Mismatch", Some(0)),
        ("    Failure", Some(rejected(Rejection::Password))),
        ("  Priority Zero:", None),
        ("    Received", Some(count.resignations_received)),
        ("    Sent", Some(count.resignations_sent)),
    ];
    let mut text = format!("VRRP Instance: {}\n", status.name);
    for (word, number) in rows {
        text += &number.map_or(format!("{word}\n"), |number| format!("{word}: {number}\n"));
    }
    text
}

/// Writes a file anew that only its owner may read: nobody can put another in its way.
fn write(path: &'static str, text: &str) -> io::Result<&'static str> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}
