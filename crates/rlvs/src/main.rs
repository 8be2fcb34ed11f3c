//! The rlvs binary: one program with a face for each name that it is called by.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rlvs::ipvsadm::{self, Environment, Names};
use rlvs::{face, lab, mark, set};

const IPVSADM: &str = "ipvsadm";
/// Names the back end of `ipvsadm` for tests and scripts.
const BACKEND_VARIABLE: &str = "RLVS_BACKEND";

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
    /// Gives packets firewall marks, for services of `ipvsadm -f`
    Mark(mark::Arguments),
    /// Detaches it in every network namespace and leaves nothing behind
    Uninstall,
    /// Runs the how-to in network namespaces of this machine
    Lab(lab::Arguments),
    /// Answers as a real server of the lab
    #[command(hide = true)]
    LabServer(lab::server::Arguments),
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let named = |arg: &OsString| Path::new(arg).file_name().is_some_and(|name| name == IPVSADM);
    if args.first().is_some_and(named) {
        args.remove(0);
        return run_ipvsadm(&args);
    }
    if args.get(1).is_some_and(|word| word == IPVSADM) {
        return run_ipvsadm(args.get(2..).unwrap_or_default());
    }
    let result = match Arguments::parse().command {
        Command::Attach(arguments) => face::attach(&arguments),
        Command::Detach => face::detach(),
        Command::Status => face::status(),
        Command::Set(arguments) => set::run(&arguments),
        Command::Mark(arguments) => mark::run(&arguments),
        Command::Uninstall => face::uninstall(),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::LabServer(arguments) => lab::server::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rlvs: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_ipvsadm(args: &[OsString]) -> ExitCode {
    let environment = Environment {
        open: &mut face::open_table,
        backend: std::env::var(BACKEND_VARIABLE).ok(),
        names: &Names::system(),
        // A large restore opens the table once for each fill of this.
        stdin: &mut std::io::BufReader::with_capacity(1 << 20, std::io::stdin().lock()),
        stdout: &mut std::io::BufWriter::new(std::io::stdout().lock()) as &mut dyn Write,
        stderr: &mut std::io::stderr().lock(),
    };
    ExitCode::from(ipvsadm::run(args, IPVSADM, environment))
}
