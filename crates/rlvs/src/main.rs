//! The rlvs binary: one program with a face for each name that it is called by.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use rlvs::ipvsadm::{self, Environment, Names};
use rlvs_control::table::Error;

const IPVSADM: &str = "ipvsadm";

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
    eprintln!("rlvs: the only face so far is `rlvs {IPVSADM}`");
    ExitCode::from(2)
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
