//! The rlvs binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rlvs::lab;

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
    let result = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(&arguments),
        Command::LabServer(arguments) => lab::server::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rlvs: {error:#}");
        ExitCode::FAILURE
    })
}
