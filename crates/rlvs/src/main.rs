//! The rlvs binary: one program with a face for each name that it is called by.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, reason = "it panics if nobody reads")]

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use rlvs::ipvsadm::{self, Environment, Names};
use rlvs::json::Json;
use rlvs::{
    acl, capture, carry, check, configuration, doctor, drain, face, keepalived, lab, man, mark,
    metrics, proc, set, snat, status, top, trace,
};

const KEEPALIVED: &str = "keepalived";

/// The Linux Virtual Server on XDP.
#[derive(Parser)]
#[command(name = "rlvs", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attaches the balancer to interfaces of this network namespace
    Attach(face::AttachArguments),
    /// Detaches it from all of them and forgets the virtual-server table
    Detach(Json),
    /// Shows what is attached and what it does
    Status(status::Arguments),
    /// The same live, sorted and filtered by key
    Top,
    /// Looks for what is wrong here, and says what to do about it
    Doctor(doctor::Arguments),
    /// Tells what would become of a packet, and why; nothing is sent, nothing changes
    Trace(trace::Arguments),
    /// Tells of packets as the balancer has them: what came, what was decided and why, what went
    Capture(capture::Arguments),
    /// Lets a real server run empty: no new connections, and waits until those it has have ended
    Drain(drain::DrainArguments),
    /// Gives a drained real server its weight back
    Undrain(drain::UndrainArguments),
    /// Shows or changes settings, by the names of net.ipv4.vs
    Set(set::Arguments),
    /// Prints what the kernel's IPVS has in /proc/net: ip_vs, ip_vs_conn, ip_vs_stats and others
    Proc(proc::Arguments),
    /// Prints a manual page
    Man(man::Arguments),
    /// Prints what completes command lines in a shell
    Completions(man::CompletionArguments),
    /// Reads a keepalived.conf, and tells what is wrong with it or what it means
    Check(check::Arguments),
    /// Gives packets firewall marks, for services of `ipvsadm -f`
    Mark(mark::Arguments),
    /// Prints metrics: services, packets, health, virtual routers
    Metrics(metrics::Arguments),
    /// Serves metrics to Prometheus
    Exporter(metrics::ExporterArguments),
    /// Says who may open connections to which service
    Acl(acl::Arguments),
    /// Carries out rlvs.toml: attaches, settings, full NAT, access; what is so already is not touched
    Load(configuration::Arguments),
    /// Gives full NAT addresses, for real servers of `ipvsadm -m --snat`
    Snat(snat::Arguments),
    /// Makes what is attached run this version's programs; packets and connections go on
    Upgrade(face::UpgradeArguments),
    /// Tells all that is attached, for `upgrade --from` of a version whose maps are others
    #[command(hide = true)]
    Export(carry::ExportArguments),
    /// Detaches it in every network namespace and leaves nothing behind
    Uninstall(Json),
    /// Runs the how-to in network namespaces of this machine
    Lab(lab::Arguments),
    /// Answers as a real server of the lab
    #[command(hide = true)]
    LabServer(lab::server::Arguments),
    /// Synchronises connections; `ipvsadm --start-daemon` starts it
    #[command(hide = true)]
    SyncDaemon {
        /// What `ipvsadm` has made of its options
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if let Some(rest) = keepalived_words(&args) {
        return ExitCode::from(keepalived::run(rest, &mut std::io::stdout().lock()));
    }
    let face = |arg: &OsString| {
        let name = Path::new(arg).file_name()?.to_str()?;
        FACES.iter().find(|(face, _)| *face == name).copied()
    };
    if let Some((name, run)) = args.first().and_then(face) {
        args.remove(0);
        return run_face(name, run, &args);
    }
    if let Some((name, run)) = args.get(1).and_then(face) {
        return run_face(name, run, args.get(2..).unwrap_or_default());
    }
    let result = match Arguments::parse().command {
        Command::Attach(arguments) => face::attach(&arguments),
        Command::Detach(json) => face::detach(json),
        Command::Status(arguments) => status::run(&arguments),
        Command::Top => top::run(),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Drain(arguments) => drain::drain(&arguments),
        Command::Undrain(arguments) => drain::undrain(&arguments),
        Command::Set(arguments) => set::run(&arguments),
        Command::Proc(arguments) => proc::run(&arguments),
        Command::Man(arguments) => man::run(&arguments, Arguments::command()),
        Command::Completions(arguments) => man::run_completions(&arguments, Arguments::command()),
        Command::Check(arguments) => check::run(&arguments),
        Command::Mark(arguments) => mark::run(&arguments),
        Command::Metrics(arguments) => metrics::run(&arguments),
        Command::Exporter(arguments) => metrics::export(&arguments),
        Command::Acl(arguments) => acl::run(&arguments),
        Command::Snat(arguments) => snat::run(&arguments),
        Command::Load(arguments) => configuration::run(&arguments),
        Command::Export(arguments) => carry::export(&arguments),
        Command::Upgrade(arguments) => face::upgrade(&arguments),
        Command::Uninstall(json) => face::uninstall(json),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::LabServer(arguments) => lab::server::run(&arguments),
        Command::SyncDaemon { words } => face::sync_daemon(&words),
    };
    result.unwrap_or_else(|error| failed(&error))
}

/// Says why a command failed. Whoever does not read all of its output has got what was wanted.
fn failed(error: &anyhow::Error) -> ExitCode {
    // Whatever else is written to says what it is.
    let of_output = error.chain().next().and_then(|first| first.downcast_ref::<io::Error>());
    let what = match of_output.map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe) => return ExitCode::SUCCESS,
        Some(io::ErrorKind::StorageFull) => "writing to standard output: ",
        _ => "",
    };
    // Where nobody hears it the exit status tells.
    drop(writeln!(io::stderr(), "rlvs: {what}{error:#}"));
    ExitCode::FAILURE
}

/// Returns the words for the `keepalived` face, if it is asked for by name or first word.
fn keepalived_words(args: &[OsString]) -> Option<&[OsString]> {
    let (program, words) = args.split_first()?;
    if Path::new(program).file_name().is_some_and(|name| name == KEEPALIVED) {
        return Some(words);
    }
    let (word, rest) = words.split_first()?;
    (word == KEEPALIVED).then_some(rest)
}

type Face = fn(&[OsString], &'static str, Environment<'_>) -> u8;

/// What the program is when it is called by one of these names, or has one as its first word.
const FACES: [(&str, Face); 3] = [
    ("ipvsadm", ipvsadm::run),
    ("ipvsadm-save", ipvsadm::run_save),
    ("ipvsadm-restore", ipvsadm::run_restore),
];

fn run_face(name: &'static str, run: Face, args: &[OsString]) -> ExitCode {
    let backend = match backend(args) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            return ExitCode::from(2);
        }
    };
    let environment = Environment {
        open: &mut face::open_table,
        backend,
        names: &Names::system(),
        // A large restore opens the table once for each fill of this.
        stdin: &mut std::io::BufReader::with_capacity(1 << 20, std::io::stdin().lock()),
        stdout: &mut std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock())
            as &mut dyn Write,
        stderr: &mut std::io::stderr().lock(),
    };
    ExitCode::from(run(args, name, environment))
}

/// Returns the name of the back end that the command line need not say.
fn backend(args: &[OsString]) -> anyhow::Result<Option<String>> {
    let variable = std::env::var(configuration::BACKEND_VARIABLE).ok();
    // Words that say it themselves leave the file alone.
    if variable.is_some() || args.iter().any(|arg| arg.to_string_lossy().starts_with("--backend")) {
        return Ok(variable);
    }
    Ok(Some(configuration::backend(None)?.name().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Commands that have no `--json`, and why.
    const WITHOUT_JSON: [(&str, &str); 8] = [
        ("export", "prints nothing else"),
        ("top", "a screen"),
        ("man", "prints a page for people"),
        ("completions", "prints a script for a shell"),
        ("exporter", "answers in Prometheus' words; `metrics --json` has the same"),
        ("lab", "plays a text for people"),
        ("lab-server", "answers HTTP"),
        ("sync-daemon", "is started by `ipvsadm --start-daemon`, and says one line to it"),
    ];

    /// Lists the commands that do something, each with the words before it.
    fn leaves(command: &clap::Command, words: &str) -> Vec<(String, bool)> {
        let below = command.get_subcommands().filter(|below| below.get_name() != "help");
        let mut found: Vec<_> = below
            .flat_map(|below| leaves(below, format!("{words} {}", below.get_name()).trim()))
            .collect();
        if found.is_empty() {
            let has_json = command.get_arguments().any(|arg| arg.get_long() == Some("json"));
            found.push((words.to_owned(), has_json));
        }
        found
    }

    #[test]
    fn every_command_has_json_and_its_members_are_told() {
        let mut command = Arguments::command();
        command.build();
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.md");
        let page = fs::read_to_string(page).unwrap();
        let told: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("# "))
            .flat_map(|line| line.split('`'))
            .collect();
        let all = leaves(&command, "");
        assert!(all.len() > 25, "{all:?}");
        for (words, has_json) in &all {
            let excepted = WITHOUT_JSON.iter().any(|(name, _)| words == name);
            assert_eq!(*has_json, !excepted, "rlvs {words}");
            let heading = format!("rlvs {words} --json");
            assert_eq!(told.contains(&heading.as_str()), !excepted, "docs/json.md: {heading}");
        }
        for (name, why) in WITHOUT_JSON {
            assert!(all.iter().any(|(words, _)| words == name), "no command {name}, which {why}");
        }
    }

    #[test]
    fn the_reference_is_of_today() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md");
        let document = rlvs::reference::document(&Arguments::command());
        if std::env::var_os("RLVS_WRITE_DOCUMENTS").is_some() {
            fs::write(&path, &document).unwrap();
        }
        let page = fs::read_to_string(path).unwrap();
        assert!(page == document, "docs/reference.md is old: run this with RLVS_WRITE_DOCUMENTS=1");
    }
}
