//! `rlvs man`: manual pages, made of the tables that the commands themselves use.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::ipvsadm;

/// The pages that there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Page {
    /// ipvsadm(8)
    Ipvsadm,
}

/// Arguments of `rlvs man`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The page
    #[arg(value_enum)]
    page: Page,
}

/// Runs `rlvs man`.
///
/// # Errors
/// None so far.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match arguments.page {
        Page::Ipvsadm => print!("{}", ipvsadm::man::page()),
    }
    Ok(ExitCode::SUCCESS)
}
