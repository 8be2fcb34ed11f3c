//! The rlvs binary: one program with a face for each name that it is called by.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rlvs::ipvsadm::{self, Environment, Names};
use rlvs::{check, face, keepalived, lab, set};

const IPVSADM: &str = "ipvsadm";
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
    Detach,
    /// Shows what is attached and what it does
    Status,
    /// Shows or changes settings, by the names of net.ipv4.vs
    Set(set::Arguments),
    /// Reads a keepalived.conf, and tells what is wrong with it or what it means
    Check(check::Arguments),
    /// Detaches it in every network namespace and leaves nothing behind
    Uninstall,
    /// Runs the how-to in network namespaces of this machine
    Lab(lab::Arguments),
    /// Answers as a real server of the lab
    #[command(hide = true)]
    LabServer(lab::server::Arguments),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match face(&args) {
        Some((IPVSADM, rest)) => return run_ipvsadm(rest),
        Some((_, rest)) => {
            return ExitCode::from(keepalived::run(rest, &mut std::io::stdout().lock()));
        }
        None => {}
    }
    let result = match Arguments::parse().command {
        Command::Attach(arguments) => face::attach(&arguments),
        Command::Detach => face::detach(),
        Command::Status => face::status(),
        Command::Set(arguments) => set::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Uninstall => face::uninstall(),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::LabServer(arguments) => lab::server::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rlvs: {error:#}");
        ExitCode::FAILURE
    })
}

/// Returns the face that the program's name or the first word asks for, and what follows.
fn face(args: &[OsString]) -> Option<(&'static str, &[OsString])> {
    let known = |name: &OsStr| [IPVSADM, KEEPALIVED].into_iter().find(|face| name == *face);
    let (program, words) = args.split_first()?;
    if let Some(face) = Path::new(program).file_name().and_then(known) {
        return Some((face, words));
    }
    let (word, rest) = words.split_first()?;
    known(word).map(|face| (face, rest))
}

fn run_ipvsadm(args: &[OsString]) -> ExitCode {
    let environment = Environment {
        open: &mut face::open_table,
        backend: std::env::var(face::BACKEND_VARIABLE).ok(),
        names: &Names::system(),
        // A large restore opens the table once for each fill of this.
        stdin: &mut std::io::BufReader::with_capacity(1 << 20, std::io::stdin().lock()),
        stdout: &mut std::io::BufWriter::new(std::io::stdout().lock()) as &mut dyn Write,
        stderr: &mut std::io::stderr().lock(),
    };
    ExitCode::from(ipvsadm::run(args, IPVSADM, environment))
}
