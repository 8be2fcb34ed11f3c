//! The project's own tasks, run as `cargo xtask TASK`.
//!
//! Every task prints what it runs; none of them is needed to build or install rlvs.
#![forbid(unsafe_code)]

mod ci;
mod ebpf;
mod fuzz;
mod leftovers;
mod measured;
mod package;
mod run;
mod smoke;
mod succession;
mod tally;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF objects from source into crates/rlvs-ebpf/object
    Ebpf(ebpf::Arguments),
    /// Run the whole test suite, as root
    Test(test::Arguments),
    /// Run every check and then the tests, as continuous integration does
    Ci(ci::Arguments),
    /// Measure the packet path
    Bench(run::Passed),
    /// Measure what the daemon costs: a large file, many checks, a reload
    Burden(run::Passed),
    /// Measure what an administrator waits for
    Administration(run::Passed),
    /// Measure what a client sees of a fail-over, beside the real keepalived
    Failover(run::Passed),
    /// Look for frames and tables that the forwarding function does not stand
    Fuzz(fuzz::Arguments),
    /// Make the Debian package, or with --static an archive for other systems
    Package(package::Arguments),
    /// Run the lab on Debian 12's kernel, in an emulator
    Smoke(smoke::Arguments),
    /// Upgrade from and to a version whose maps are laid out otherwise
    Succession,
}

fn main() -> ExitCode {
    // While the eBPF objects are built, cargo calls this program in the compiler's place.
    if let Some(code) = ebpf::wrapper::run() {
        return code;
    }
    let done = match Arguments::parse().task {
        Task::Ebpf(arguments) => ebpf::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Ci(arguments) => ci::run(&arguments),
        Task::Bench(passed) => measured::packet_path(&passed),
        Task::Burden(passed) => measured::run("burden", &passed),
        Task::Administration(passed) => measured::run("administration", &passed),
        Task::Failover(passed) => measured::run("failover", &passed),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Package(arguments) => package::run(&arguments),
        Task::Smoke(arguments) => smoke::run(&arguments),
        Task::Succession => succession::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
