//! docs/reference.md, made from the list of reasons and the program's own command line.

use std::fmt::Write;

use clap::Command;
use rlvs_datapath::reason::Reason;

const HEAD: &str = "# Reference

Made from the tables that the program itself uses. What has a page of its own: [keepalived.conf](keepalived.md),
[metrics](metrics.md), [rules of access](acl.md), [rlvs.toml](operating.md#after-a-reboot), [JSON](json.md), [the daemon's
state](state.md). `rlvs man ipvsadm`, `rlvs man keepalived` and `rlvs man keepalived.conf` print the manual pages that the
package installs; `rlvs help COMMAND` has the arguments of a command.

## Commands

| command | what it does |
| --- | --- |
";

const REASONS: &str = "
## Reasons

Each packet that is not simply forwarded is counted under one reason. `rlvs status` and `rlvs_packets_total` have them
by these names. *Passed* packets are the host's own business, as without a balancer.

| reason | what became of the packet, and why |
| --- | --- |
";

/// Says in one sentence what becomes of packets for a reason, and what to think of it.
#[must_use]
pub fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::OtherProtocol => {
            "Passed: it is neither TCP nor UDP nor another protocol that is balanced."
        }
        Reason::Malformed => {
            "Passed: it is shorter than its headers say, or they contradict each other."
        }
        Reason::Fragment => {
            "Passed: a fragment whose datagram's first has not come by, or one not to be trusted."
        }
        Reason::Options => {
            "Passed: it has options or extension headers that are the stack's business."
        }
        Reason::OtherHost => {
            "Passed: the frame is not addressed to the interface that it came in by."
        }
        Reason::NoService => {
            "Passed: it goes to no virtual service and comes from no destination of one."
        }
        Reason::NoConnection => {
            "Passed: it goes to a virtual service, but belongs to no connection and does not begin one."
        }
        Reason::NotLocal => {
            "Passed: the virtual address is not an address of this host; right on a backup director."
        }
        Reason::Unresolved => {
            "Passed to TC or the stack, which forwards it: the next hop's MAC address is not known yet."
        }
        Reason::NoDestination => {
            "Answered with ICMP port unreachable: no destination takes new connections."
        }
        Reason::Expired => "Answered with ICMP: its time to live, or hop limit, is used up.",
        Reason::TableFull => {
            "Answered with ICMP: the table of connections is full, and NAT needs an entry; attach anew \
             with more `--connections`."
        }
        Reason::Stateless => {
            "Forwarded without an entry: the table of connections is full, and direct routing can do \
             without."
        }
        Reason::ReplyTaken => {
            "Answered with ICMP: the client's address and port are in use towards every destination tried."
        }
        Reason::Removed => {
            "Dropped: its destination was removed; `rlvs set expire_nodest_conn 1` opens such connections \
             anew."
        }
        Reason::Unreachable => {
            "Answered with ICMP host unreachable: there is no route to the destination. Dropped: there is \
             none to the client."
        }
        Reason::TooBig => {
            "Answered with ICMP, or dropped where its sender allows fragments: it is longer than the next \
             hop takes."
        }
        Reason::Busy => {
            "Dropped: another processor held the lock of this flow for too long, or took its place of the pool."
        }
        Reason::Inconsistent => "Dropped: a table names what is not there; a fault of ours.",
        Reason::NoRoom => "Dropped: the frame could not be made longer or shorter.",
        Reason::IcmpLimited => {
            "Dropped: it deserves an ICMP error, and enough of them have been sent for now."
        }
        Reason::Local => {
            "Passed, readdressed or not: the real server, or the client, is this host itself."
        }
        Reason::FromPeer => {
            "Passed: another director that has this host as a real server sent it, so it goes no further."
        }
        Reason::Denied => {
            "Dropped, or answered with ICMP if asked for: the client's address is denied."
        }
        Reason::NotAllowed => {
            "Dropped or answered: some addresses are allowed, and the client's is none of them."
        }
        Reason::TooFast => "Dropped or answered: the client's network opens connections too fast.",
        Reason::TooMany => {
            "Dropped or answered: the client's network has as many connections as it may have."
        }
        Reason::NoPort => {
            "Answered with ICMP: no address and port of full NAT is free; `rlvs snat add` gives it more."
        }
        Reason::NoCallId => {
            "Dropped: a datagram without a Call-ID, to a service that persists by it (`--pe sip`)."
        }
        Reason::Thinned => {
            "Dropped: one new connection of so many, as `rlvs set drop_packet` asks for; every one in the last \
             moment of `rlvs upgrade --from`."
        }
        Reason::UnknownReply => {
            "Answered with ICMP: a NAT server's packet of no connection, as `rlvs set nat_icmp_send 1` \
             asks for."
        }
    }
}

/// Returns the page; `rlvs` is the program's own command line.
#[must_use]
pub fn document(rlvs: &Command) -> String {
    let mut text = HEAD.to_owned();
    let faces = [
        ("ipvsadm", "Shows and changes the virtual-server table, as the real one"),
        ("ipvsadm-save", "Prints the table as commands"),
        ("ipvsadm-restore", "Carries out such commands"),
        (
            "keepalived",
            "Carries out keepalived.conf: virtual addresses, and checks of real servers",
        ),
    ];
    for (name, about) in faces {
        row(&mut text, &format!("rlvs {name}"), about);
    }
    for command in rlvs.get_subcommands().filter(|command| !command.is_hide_set()) {
        put_command(&mut text, "rlvs", command);
    }
    text.push_str(REASONS);
    for reason in Reason::ALL {
        row(&mut text, reason.name(), sentence(reason));
    }
    text
}

/// Writes a row for a command, and those of its own commands.
fn put_command(text: &mut String, before: &str, command: &Command) {
    let name = format!("{before} {}", command.get_name());
    row(text, &name, &command.get_about().map(ToString::to_string).unwrap_or_default());
    for command in command.get_subcommands() {
        put_command(text, &name, command);
    }
}

fn row(text: &mut String, name: &str, about: &str) {
    // A string takes everything.
    writeln!(text, "| `{name}` | {} |", about.replace('|', "\\|")).ok();
}
