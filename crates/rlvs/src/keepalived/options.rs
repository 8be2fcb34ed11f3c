//! The command line of `keepalived`, as `getopt_long` reads it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::DEFAULT_FILE;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `-h`
    Help,
    /// `-v`
    Version,
    /// `--signum`: the number of a signal.
    Signal(i32),
    /// `-t`
    Test {
        /// `-f`
        file: String,
        /// Where to write.
        log: Option<String>,
        /// `-i`
        id: Option<String>,
        /// `-e`
        all: bool,
        /// `--compat=keepalived`
        strict: bool,
    },
    /// Nothing of these: the daemon.
    Run(Box<Running>),
}

/// How the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    /// `-f`
    pub(super) file: PathBuf,
    /// `-i`
    pub(super) id: Option<String>,
    /// `-e`
    pub(super) all: bool,
    /// Virtual routers are carried out; not with `-C`.
    pub(super) vrrp: bool,
    /// Virtual servers are carried out; not with `-P`.
    pub(super) services: bool,
    /// `-n`
    pub(super) foreground: bool,
    /// `-l`
    pub(super) console: bool,
    /// `-D`
    pub(super) detail: bool,
    /// `-S`: LOG_DAEMON, or LOG_LOCAL0 to 7.
    pub(super) facility: u8,
    /// `-g`
    pub(super) log_file: Option<PathBuf>,
    /// Not with `-G`.
    pub(super) syslog: bool,
    /// `-p`, `-r`, `-c`
    pub(super) pid_files: Vec<PathBuf>,
    /// `-I`
    pub(super) keep_services: bool,
    /// `-s`
    pub(super) namespace: Option<String>,
    /// `--ignore-sigint`
    pub(super) ignore_interrupt: bool,
    /// `-d`
    pub(super) dump: bool,
    /// `--backend`
    pub(super) backend: Option<String>,
    /// `--log-format`
    pub(super) log_format: LogFormat,
    /// `--metrics`
    pub(super) metrics: Option<SocketAddr>,
}

/// What a line of the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Word,
    /// A word that is attached.
    Maybe,
}

use Takes::{Maybe, Nothing, Word};

/// An option: letter, long name, argument, what it does.
struct Row(char, &'static str, Takes, &'static str);

/// The facility `daemon` of syslog.
const DAEMON: u8 = 3;
/// The facility `local0`.
const LOCAL: u8 = 16;
/// No letter.
const NO: char = '\0';

#[rustfmt::skip]
const OPTIONS: &[Row] = &[
    Row('f', "use-file", Word, "the configuration; /etc/keepalived/keepalived.conf if not given"),
    Row('t', "config-test", Maybe, "test the configuration, and write what is found to this file"),
    Row('i', "config-id", Word, "what `@word` in the configuration is compared with"),
    Row('e', "all-config", Nothing, "every included file must be there"),
    Row(NO, "compat", Word, "`keepalived`: -t objects to all that keepalived 2.2.7 objects to"),
    Row(NO, "backend", Word, "whose table: `rlvs`, or `kernel` for that of the kernel's IPVS"),
    Row(NO, "metrics", Word, "serve metrics to Prometheus at this ADDRESS:PORT"),
    Row(NO, "signum", Word, "print the number of a signal: STOP, RELOAD, DATA, STATS, STATS_CLEAR, JSON"),
    Row('v', "version", Nothing, "print the version"),
    Row('h', "help", Nothing, "print this"),
    Row('P', "vrrp", Nothing, "VRRP only"),
    Row('C', "check", Nothing, "services only"),
    Row('B', "no_bfd", Nothing, "no BFD"),
    Row(NO, "all", Nothing, "all parts"),
    Row('l', "log-console", Nothing, "log to standard output"),
    Row('D', "log-detail", Nothing, "log more"),
    Row('S', "log-facility", Word, "facility of syslog"),
    Row('g', "log-file", Maybe, "log to a file"),
    Row(NO, "flush-log-file", Nothing, "write every line at once"),
    Row(NO, "log-format", Word, "`text`, or `json`: an object on each line"),
    Row('G', "no-syslog", Nothing, "no syslog"),
    Row('u', "umask", Word, "modes of files"),
    Row('X', "release-vips", Nothing, "drop addresses when a signal takes the router down"),
    Row('V', "dont-release-vrrp", Nothing, "keep addresses at stop"),
    Row('I', "dont-release-ipvs", Nothing, "keep services at stop"),
    Row('R', "dont-respawn", Nothing, "do not start parts again"),
    Row('n', "dont-fork", Nothing, "stay in the foreground"),
    Row('d', "dump-conf", Nothing, "print the configuration"),
    Row('p', "pid", Word, "file for the process id"),
    Row('r', "vrrp_pid", Word, "the same of VRRP"),
    Row('c', "checkers_pid", Word, "the same of services"),
    Row('b', "bfd_pid", Word, "the same of BFD"),
    Row('T', "genhash", Nothing, "digest of a page"),
    Row('a', "address-monitoring", Nothing, "report addresses"),
    Row('x', "snmp", Nothing, "SNMP"),
    Row('A', "snmp-agent-socket", Word, "socket of the SNMP agent"),
    Row('s', "namespace", Word, "network namespace"),
    Row('m', "core-dump", Nothing, "write core dumps"),
    Row('M', "core-dump-pattern", Word, "where"),
    Row(NO, "ignore-sigint", Nothing, "go on after ^C"),
    Row(NO, "debug", Maybe, "more for developers"),
];

/// What was given, in order.
struct Given(Vec<(&'static str, Option<String>)>);

impl Given {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == name)
    }

    fn last(&self, name: &str) -> Option<String> {
        let with = self.0.iter().rev().find(|(known, _)| *known == name);
        with.and_then(|(_, value)| value.clone())
    }
}

/// Reads the command line.
pub(super) fn parse(args: &[OsString]) -> Result<Command, String> {
    let given = read(args)?;
    if given.has("help") {
        return Ok(Command::Help);
    }
    if given.has("version") {
        return Ok(Command::Version);
    }
    if let Some(name) = given.last("signum") {
        return signal(&name).map(Command::Signal);
    }
    let strict = match given.last("compat").as_deref() {
        None => false,
        Some("keepalived") => true,
        Some(other) => return Err(format!("--compat knows keepalived only, not {other}")),
    };
    if !given.has("config-test") {
        return running(&given).map(|running| Command::Run(Box::new(running)));
    }
    Ok(Command::Test {
        file: given.last("use-file").unwrap_or_else(|| DEFAULT_FILE.to_owned()),
        log: given.last("config-test"),
        id: given.last("config-id"),
        all: given.has("all-config"),
        strict,
    })
}

fn running(given: &Given) -> Result<Running, String> {
    let path = |name: &str| given.last(name).map(PathBuf::from);
    let namespace = given.last("namespace");
    let first = path("pid").unwrap_or_else(|| default_pid_file(namespace.as_deref()));
    let others = [path("vrrp_pid"), path("checkers_pid")].into_iter().flatten();
    let logs_to_file = given.has("log-file");
    Ok(Running {
        file: path("use-file").unwrap_or_else(|| DEFAULT_FILE.into()),
        id: given.last("config-id"),
        all: given.has("all-config"),
        vrrp: given.has("vrrp") || given.has("all") || !given.has("check"),
        services: given.has("check") || given.has("all") || !given.has("vrrp"),
        foreground: given.has("dont-fork"),
        console: given.has("log-console"),
        detail: given.has("log-detail"),
        facility: facility(given.last("log-facility").as_deref())?,
        log_file: path("log-file").or(logs_to_file.then(|| "/tmp/keepalived.log".into())),
        syslog: !given.has("no-syslog"),
        pid_files: [first].into_iter().chain(others).collect(),
        keep_services: given.has("dont-release-ipvs"),
        namespace,
        ignore_interrupt: given.has("ignore-sigint"),
        dump: given.has("dump-conf"),
        backend: given.last("backend"),
        log_format: log_format(given.last("log-format").as_deref())?,
        metrics: given.last("metrics").map(|text| address(&text)).transpose()?,
    })
}

impl Running {
    /// Makes a network namespace that the file names the one to run in.
    pub(super) fn enter(&mut self, namespace: Option<String>) {
        let outside = default_pid_file(None);
        for path in self.pid_files.iter_mut().filter(|path| **path == outside) {
            *path = default_pid_file(namespace.as_deref());
        }
        self.namespace = namespace;
    }
}

/// Returns the path of the process id's file, if none is said.
fn default_pid_file(namespace: Option<&str>) -> PathBuf {
    match namespace {
        Some(name) => format!("/run/keepalived/{name}_keepalived.pid").into(),
        None => "/run/keepalived.pid".into(),
    }
}

fn log_format(name: Option<&str>) -> Result<LogFormat, String> {
    match name {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(name) => Err(format!("there is no log format {name}; text and json are")),
    }
}

/// Returns the address and port that metrics are served at.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text} is no ADDRESS:PORT, such as 127.0.0.1:9165"))
}

/// Returns the number of a facility: `daemon`, `local0` to `local7`, or the last as a digit.
fn facility(name: Option<&str>) -> Result<u8, String> {
    let Some(name) = name else { return Ok(DAEMON) };
    let lower = name.to_ascii_lowercase();
    let short = lower.strip_prefix("log_").unwrap_or(&lower);
    match (short, short.strip_prefix("local").unwrap_or(short).parse::<u8>()) {
        ("daemon", _) => Ok(DAEMON),
        ("user", _) => Ok(1),
        (_, Ok(number)) if number < 8 => Ok(LOCAL + number),
        _ => Err(format!("there is no facility {name}; local0 to local7 and daemon are")),
    }
}

fn signal(name: &str) -> Result<i32, String> {
    match name {
        "STOP" => Ok(15),
        "RELOAD" => Ok(1),
        "DATA" => Ok(10),
        "STATS" => Ok(12),
        "STATS_CLEAR" => Ok(63),
        "JSON" => Ok(36),
        _ => Err(format!("there is no signal {name}")),
    }
}

fn read(args: &[OsString]) -> Result<Given, String> {
    let mut given = Vec::new();
    let mut words = args.iter().map(|arg| arg.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(a, b)| (a, Some(b)));
            let row = long_option(name)?;
            let value = match (row.2, value) {
                (Nothing, Some(_)) => return Err(format!("--{} takes nothing", row.1)),
                (Word, None) => Some(words.next().ok_or(format!("--{} needs a word", row.1))?),
                (_, value) => value.map(str::to_owned),
            };
            given.push((row.1, value));
            continue;
        }
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            return Err(format!("{word} is no option"));
        };
        for (at, letter) in letters.char_indices() {
            let row = OPTIONS.iter().find(|row| row.0 == letter && letter != NO);
            let row = row.ok_or(format!("there is no option -{letter}"))?;
            if row.2 == Nothing {
                given.push((row.1, None));
                continue;
            }
            let rest =
                Some(letters[at + letter.len_utf8()..].to_owned()).filter(|rest| !rest.is_empty());
            let value = match (row.2, rest) {
                (Word, None) => Some(words.next().ok_or(format!("-{letter} needs a word"))?),
                (_, rest) => rest,
            };
            given.push((row.1, value));
            break;
        }
    }
    Ok(Given(given))
}

/// Returns the option of a name, which may be shortened as long as it is one only.
fn long_option(name: &str) -> Result<&'static Row, String> {
    if let Some(row) = OPTIONS.iter().find(|row| row.1 == name) {
        return Ok(row);
    }
    let mut fitting = OPTIONS.iter().filter(|row| row.1.starts_with(name));
    match (fitting.next(), fitting.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => Err(format!("there is no option --{name}")),
        _ => Err(format!("--{name} may be several options")),
    }
}

/// Returns the same for completions and the manual page.
pub(super) fn command() -> clap::Command {
    let plain = clap::Command::new("keepalived").disable_help_flag(true).disable_version_flag(true);
    let plain = plain.about(
        "Virtual addresses by VRRP, and virtual servers with health checks, as keepalived.conf says",
    );
    OPTIONS.iter().fold(plain, |command, Row(letter, name, takes, about)| {
        let arg = clap::Arg::new(*name).long(*name).help(*about);
        let arg = if *letter == NO { arg } else { arg.short(*letter) };
        command.arg(match takes {
            Nothing => arg.action(clap::ArgAction::SetTrue),
            Word => arg.value_name("WORD").value_hint(clap::ValueHint::AnyPath),
            Maybe => arg.value_name("WORD").num_args(0..=1).require_equals(true),
        })
    })
}

/// Returns the list of options.
pub(super) fn help() -> String {
    let mut text = String::from("keepalived [OPTIONS]\n\n");
    for Row(letter, name, takes, about) in OPTIONS {
        let letter = if *letter == NO { "    ".to_owned() } else { format!("-{letter}, ") };
        let argument = match takes {
            Nothing => "",
            Word => "=WORD",
            Maybe => "[=WORD]",
        };
        let left = format!("{letter}--{name}{argument}");
        text.push_str(&format!("  {left:<32}{about}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<Command, String> {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_daemon_gets_its_options() {
        let Ok(Command::Run(running)) = check("-nlD -Slocal3 -p /a -r /b -I") else {
            panic!("options of a daemon");
        };
        assert!(running.foreground && running.console && running.detail);
        assert!(running.vrrp && running.services && running.keep_services);
        assert_eq!((running.facility, running.pid_files.len()), (19, 2));
        let Ok(Command::Run(running)) = check("-P -s blue") else { panic!("options of a daemon") };
        assert!(running.vrrp && !running.services && !running.foreground);
        assert_eq!(running.pid_files, [PathBuf::from("/run/keepalived/blue_keepalived.pid")]);
        assert!(check("-S local9").is_err());
    }

    #[test]
    fn options_are_read_as_getopt_does() {
        let test = |file: &str, log: Option<&str>| {
            let (log, file) = (log.map(str::to_owned), file.to_owned());
            Ok(Command::Test { file, log, id: None, all: false, strict: false })
        };
        assert_eq!(check("-t -f x"), test("x", None));
        assert_eq!(check("-lt/log -fx"), test("x", Some("/log")));
        assert_eq!(check("--config-test=/log --use=x"), test("x", Some("/log")));
        assert_eq!(check("-t"), test(DEFAULT_FILE, None));
        assert_eq!(check("--signum=RELOAD"), Ok(Command::Signal(1)));
        for wrong in ["-Z", "--nosuch", "-f", "extra", "--help=3", "--log", "--signum=X"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
