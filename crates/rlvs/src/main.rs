//! The rlvs binary: one program with a face for each name that it is called by.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rlvs::ipvsadm::{self, Environment, Names};
use rlvs::lab;
use rlvs_control::table::Error;

const IPVSADM: &str = "ipvsadm";

/// The Linux Virtual Server on XDP.
#[derive(Parser)]
#[command(name = "rlvs", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
        open: &mut || Err(Error::System("no virtual-server table is linked in yet".to_owned())),
        names: &Names::system(),
        stdin: &mut std::io::stdin().lock(),
        stdout: &mut std::io::BufWriter::new(std::io::stdout().lock()) as &mut dyn Write,
        stderr: &mut std::io::stderr().lock(),
    };
    ExitCode::from(ipvsadm::run(args, IPVSADM, environment))
}
