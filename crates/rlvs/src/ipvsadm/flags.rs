//! The table of flags, and the help text made of it.

use rlvs_control::model::Protocol;

use super::grammar::{Command, Flag, Meaning, Method, OPTIONS, Opt, Value, of};

/// What `--version` prints: scripts ask the version of upstream's tool, whose face this is.
pub(crate) const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

const fn flag(
    short: Option<char>,
    long: &'static str,
    value: Value,
    meaning: Meaning,
    help: &'static str,
) -> Flag {
    Flag { short, long, value, meaning, help }
}

const fn command(
    short: Option<char>,
    long: &'static str,
    command: Command,
    help: &'static str,
) -> Flag {
    flag(short, long, Value::None, Meaning::Command(command), help)
}

const fn switch(short: Option<char>, long: &'static str, option: Opt, help: &'static str) -> Flag {
    flag(short, long, Value::None, Meaning::Plain(option), help)
}

const fn valued(
    short: Option<char>,
    long: &'static str,
    value: &'static str,
    option: Opt,
    help: &'static str,
) -> Flag {
    flag(short, long, Value::Required(value), Meaning::Plain(option), help)
}

const fn service(short: Option<char>, long: &'static str, protocol: Protocol) -> Flag {
    let help = match protocol {
        Protocol::Tcp => "a TCP service",
        Protocol::Udp => "a UDP service",
        Protocol::Sctp | Protocol::Other(_) => "an SCTP service",
    };
    flag(short, long, Value::Required("ADDRESS[:PORT]"), Meaning::Address(protocol), help)
}

const fn method(short: char, long: &'static str, method: Method, help: &'static str) -> Flag {
    flag(Some(short), long, Value::None, Meaning::Method(method), help)
}

const DAEMON: Value = Value::Required("master|backup");

/// Returns the command line for completions.
pub(crate) fn shown() -> clap::Command {
    let plain = clap::Command::new("ipvsadm").disable_help_flag(true).disable_version_flag(true);
    FLAGS.iter().enumerate().fold(plain, |command, (at, flag)| {
        // A word that two letters stand for is there twice.
        if FLAGS[..at].iter().any(|other| other.long == flag.long) {
            return command.mut_arg(flag.long, |arg| arg.short_aliases(flag.short));
        }
        let arg = clap::Arg::new(flag.long).long(flag.long).help(flag.help);
        let arg = flag.short.map_or(arg.clone(), |letter| arg.short(letter));
        command.arg(match flag.value {
            Value::None => arg.action(clap::ArgAction::SetTrue),
            Value::Required(value) => arg.value_name(value),
            Value::Optional(value) => arg.value_name(value).num_args(0..=1),
        })
    })
}

/// Every word that the command line knows.
pub(crate) const FLAGS: [Flag; 62] = [
    command(Some('A'), "add-service", Command::AddService, "add a virtual service"),
    command(Some('E'), "edit-service", Command::EditService, "replace its attributes"),
    command(Some('D'), "delete-service", Command::DeleteService, "remove it and its servers"),
    command(Some('a'), "add-server", Command::AddServer, "add a real server to a service"),
    command(Some('e'), "edit-server", Command::EditServer, "replace its attributes"),
    command(Some('d'), "delete-server", Command::DeleteServer, "remove it from the service"),
    command(Some('L'), "list", Command::List, "show the table, as without any word"),
    command(Some('l'), "list", Command::List, "the same"),
    command(Some('C'), "clear", Command::Flush, "remove every service"),
    command(Some('Z'), "zero", Command::Zero, "start the counters again from 0"),
    command(Some('S'), "save", Command::Save, "write the table as lines for -R"),
    command(Some('R'), "restore", Command::Restore, "carry out lines of standard input"),
    command(None, "set", Command::Set, "change time-outs, in seconds; 0 keeps"),
    flag(
        None,
        "start-daemon",
        DAEMON,
        Meaning::Command(Command::StartDaemon),
        "start to share connections",
    ),
    flag(None, "stop-daemon", DAEMON, Meaning::Command(Command::StopDaemon), "stop it"),
    flag(Some('h'), "help", Value::None, Meaning::Help, "print this text"),
    flag(Some('v'), "version", Value::None, Meaning::Version, "print the version"),
    service(Some('t'), "tcp-service", Protocol::Tcp),
    service(Some('u'), "udp-service", Protocol::Udp),
    service(None, "sctp-service", Protocol::Sctp),
    flag(
        Some('f'),
        "fwmark-service",
        Value::Required("MARK"),
        Meaning::Mark,
        "packets with a mark, 1 to 4294967295",
    ),
    flag(Some('6'), "ipv6", Value::None, Meaning::MarkIsV6, "after -f: IPv6 packets"),
    valued(Some('s'), "scheduler", "NAME", Opt::Scheduler, "how connections are spread; wlc"),
    flag(
        Some('p'),
        "persistent",
        Value::Optional("SECONDS"),
        Meaning::Plain(Opt::Persistent),
        "keep a client at its server; 360",
    ),
    valued(Some('M'), "netmask", "MASK", Opt::Netmask, "take a network as one client; none"),
    switch(Some('o'), "ops", Opt::OnePacket, "schedule each UDP datagram by itself"),
    valued(None, "pe", "NAME", Opt::PersistenceEngine, "persistence engine, such as sip"),
    valued(Some('b'), "sched-flags", "FLAG[,FLAG]", Opt::SchedulerFlags, "flags of the scheduler"),
    valued(Some('r'), "real-server", "ADDRESS[:PORT]", Opt::Server, "the real server"),
    method('g', "gatewaying", Method::DirectRoute, "direct routing, the default"),
    method('i', "ipip", Method::Tunnel, "a tunnel to the real server"),
    method('m', "masquerading", Method::Masquerade, "network address translation"),
    valued(Some('w'), "weight", "NUMBER", Opt::Weight, "share of connections, 0 drains; 1"),
    valued(
        Some('x'),
        "u-threshold",
        "NUMBER",
        Opt::UpperThreshold,
        "connections at most; 0, no limit",
    ),
    valued(
        Some('y'),
        "l-threshold",
        "NUMBER",
        Opt::LowerThreshold,
        "take new ones below; 0, 3/4 of -x",
    ),
    valued(None, "tun-type", "ipip|gue|gre", Opt::TunType, "kind of tunnel; ipip"),
    valued(None, "tun-port", "PORT", Opt::TunPort, "UDP port of a GUE tunnel"),
    switch(None, "tun-nocsum", Opt::TunNocsum, "tunnel without checksum"),
    switch(None, "tun-csum", Opt::TunCsum, "tunnel with checksum"),
    switch(None, "tun-remcsum", Opt::TunRemcsum, "tunnel with remote checksum offload"),
    switch(Some('n'), "numeric", Opt::Numeric, "addresses and ports in numbers"),
    switch(Some('c'), "connection", Opt::Connection, "list connections"),
    switch(None, "timeout", Opt::Timeout, "list the time-outs"),
    switch(None, "daemon", Opt::Daemon, "list the synchronisation daemons"),
    switch(None, "stats", Opt::Stats, "list with totals"),
    switch(None, "rate", Opt::Rate, "list with rates per second"),
    switch(None, "thresholds", Opt::Thresholds, "list with limits of real servers"),
    switch(None, "persistent-conn", Opt::PersistentConn, "list with persistent connections"),
    switch(None, "tun-info", Opt::TunInfo, "list with tunnels"),
    switch(None, "nosort", Opt::NoSort, "list in the table's own order"),
    flag(None, "sort", Value::None, Meaning::Sort, "list sorted, as it is in any case"),
    switch(Some('X'), "exact", Opt::Exact, "large numbers without K, M, G, T"),
    valued(
        None,
        "mcast-interface",
        "NAME",
        Opt::McastInterface,
        "interface to share connections on",
    ),
    valued(None, "syncid", "NUMBER", Opt::SyncId, "group of directors, 0 to 255; 0"),
    valued(None, "sync-maxlen", "BYTES", Opt::SyncMaxlen, "longest message, 1 to 65507"),
    valued(None, "mcast-group", "ADDRESS", Opt::McastGroup, "multicast group"),
    valued(None, "mcast-port", "PORT", Opt::McastPort, "1 to 65535"),
    valued(None, "mcast-ttl", "NUMBER", Opt::McastTtl, "1 to 255"),
    switch(None, "json", Opt::Json, "list as JSON, all columns"),
    switch(None, "full", Opt::Full, "save -x and -y too"),
    switch(None, "atomic", Opt::Atomic, "restore all lines or none"),
    flag(
        None,
        "backend",
        Value::Required("rlvs|kernel"),
        Meaning::Backend,
        "before the command: whose table; rlvs",
    ),
];

/// Returns what `--help` prints.
pub(crate) fn help(program: &str) -> String {
    let mut text = format!("{VERSION}\nHow to use {program}:\n");
    synopses(program).iter().for_each(|line| text.push_str(line));
    text.push_str("\nSERVICE is one of -t, -u, --sctp-service and -f MARK [-6].\n");
    text.push_str("\nThe command comes first, as one of these:\n");
    let (commands, options): (Vec<_>, Vec<_>) = FLAGS.iter().partition(|flag| {
        matches!(flag.meaning, Meaning::Command(_) | Meaning::Help | Meaning::Version)
    });
    commands.into_iter().for_each(|flag| text.push_str(&line(flag)));
    text.push_str("\nOptions; what stands after a semicolon is the default:\n");
    options.into_iter().for_each(|flag| text.push_str(&line(flag)));
    text
}

/// Returns how each command is used, in lines that end.
pub(crate) fn synopses(program: &str) -> Vec<String> {
    let commands = FLAGS.iter().filter(|flag| flag.short != Some('l'));
    let used = commands.filter_map(|flag| match flag.meaning {
        Meaning::Command(command) => Some(synopsis(program, flag, command)),
        _ => None,
    });
    used.collect()
}

fn synopsis(program: &str, flag: &Flag, command: Command) -> String {
    let rule = command.rule();
    let mut words = vec![program.to_owned(), usage(flag)];
    if command == Command::Set {
        words.push("TCP TCPFIN UDP".to_owned());
    }
    let exclusive: Vec<_> = rule.exclusive.iter().map(|&option| term(option)).collect();
    if !exclusive.is_empty() {
        words.push(format!("[{}]", exclusive.join(" | ")));
    }
    words.extend(rule.compulsory.iter().map(|&option| term(option)));
    let optional = OPTIONS.into_iter().filter(|option| rule.optional.contains(option));
    words.extend(optional.map(|option| format!("[{}]", term(option))));
    fold(&words)
}

/// Returns how a synopsis writes an option: its flags with their values.
fn term(option: Opt) -> String {
    if option == Opt::Service {
        return "SERVICE".to_owned();
    }
    of(option).map(usage).collect::<Vec<_>>().join("|")
}

fn usage(flag: &Flag) -> String {
    let name = flag.short.map_or(format!("--{}", flag.long), |letter| format!("-{letter}"));
    match flag.value {
        Value::None => name,
        Value::Required(value) => format!("{name} {value}"),
        Value::Optional(value) => format!("{name} [{value}]"),
    }
}

fn line(flag: &Flag) -> String {
    let short = flag.short.map_or("   ".to_owned(), |letter| format!("-{letter},"));
    let value = match flag.value {
        Value::None => String::new(),
        Value::Required(value) => format!(" {value}"),
        Value::Optional(value) => format!(" [{value}]"),
    };
    let left = format!("{short} --{}{value}", flag.long);
    format!("  {left:<38} {}\n", flag.help)
}

/// Sets words in lines of at most 79 columns, all but the first indented.
fn fold(words: &[String]) -> String {
    const COLUMNS: usize = 79;
    let mut text = String::from(" ");
    let mut column = 1;
    for word in words {
        if column + 1 + word.len() > COLUMNS {
            text.push_str("\n     ");
            column = 5;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + word.len();
    }
    text.push('\n');
    text
}
