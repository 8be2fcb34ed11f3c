//! `rlvs lab`: the how-to in network namespaces of this machine, checked.
//!
//! [`topology`] is the network, which the end-to-end tests build too; `scenario` what is tried,
//! `stage` how it is run and shown. [`site`] is the network of the how-to's keepalived.conf, `director`
//! what is tried there. Nothing outside the lab's own namespaces is touched.

pub mod claim;
pub mod client;
mod director;
mod scenario;
pub mod server;
pub mod site;
mod stage;
pub mod topology;
mod webserver;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use claim::Sweep;
use director::Scene;
use scenario::{Case, HOW_TO};
use stage::Stage;
use topology::{Lab, Options, WebServer, Wiring};

/// The status of a shell command that Ctrl-C ended.
const INTERRUPTED_STATUS: u8 = 130;

/// Set by Ctrl-C and by SIGTERM.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Builds client, director and two real servers, types the how-to's ipvsadm commands on the
/// director, sends requests, and checks who answered.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Leave the lab standing with the how-to's service, and say how to enter it
    #[arg(long)]
    keep: bool,
    /// Remove the lab of this id, or all that were left standing or have crashed; do nothing else
    #[arg(long, value_name = "ID", num_args = 0..=1,
          conflicts_with_all = ["keep", "requests", "only", "quick"])]
    clean: Option<Option<String>>,
    /// Requests for each case
    #[arg(long, value_name = "N", default_value_t = 24,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Run only with plain veth pairs (TC) or only with tuned ones (native XDP)
    #[arg(long, value_name = "WIRING")]
    only: Option<Wiring>,
    /// Leave out combinations, and the scenes with keepalived: a minute less
    #[arg(long)]
    quick: bool,
}

/// What came of one case.
struct Outcome {
    wiring: Wiring,
    title: String,
    problems: usize,
}

/// Runs the command.
///
/// # Errors
/// The lab cannot be built; what fails in a standing lab is reported and makes the status 1.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    run_on(arguments, &mut std::io::stdout())
}

fn run_on(arguments: &Arguments, screen: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if let Some(id) = &arguments.clean {
        return clean(id.as_deref(), screen);
    }
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .context("setting up Ctrl-C")?;
    for id in claim::sweep(Sweep::Crashed)? {
        writeln!(screen, "removed what the lab {id} had left")?;
    }
    let program = std::env::current_exe().context("finding the rlvs executable")?;
    let mut outcomes = Vec::new();
    for wiring in [Wiring::Plain, Wiring::Tuned] {
        let wanted = arguments.only.is_none_or(|only| only == wiring);
        if wanted && !INTERRUPTED.load(Ordering::Relaxed) {
            run_wiring(arguments, wiring, &program, screen, &mut outcomes)?;
        }
    }
    if !arguments.quick && !arguments.keep && arguments.only != Some(Wiring::Tuned) {
        run_directors(arguments, &program, screen, &mut outcomes)?;
    }
    if INTERRUPTED.load(Ordering::Relaxed) {
        writeln!(screen, "\ninterrupted; the lab is removed")?;
        return Ok(ExitCode::from(INTERRUPTED_STATUS));
    }
    summarize(screen, &outcomes)
}

fn clean(id: Option<&str>, screen: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let removed = claim::sweep(id.map_or(Sweep::All, Sweep::Only))?;
    for id in &removed {
        writeln!(screen, "removed lab {id}")?;
    }
    if let (Some(id), []) = (id, removed.as_slice()) {
        bail!("no lab {id} that has been left: none of that id, or it is running");
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds one lab and plays every case in it.
fn run_wiring(
    arguments: &Arguments,
    wiring: Wiring,
    program: &Path,
    screen: &mut dyn Write,
    outcomes: &mut Vec<Outcome>,
) -> anyhow::Result<()> {
    let options = Options {
        wiring,
        web_server: WebServer::Installed,
        program: program.to_owned(),
        keep: arguments.keep,
    };
    writeln!(screen, "\n=== {}", describe(wiring))?;
    let lab = Lab::new(&options)?;
    let mut stage = Stage { lab: &lab, program, screen, interrupted: &INTERRUPTED };
    let mut note = |title: String, problems: &[String]| {
        outcomes.push(Outcome { wiring, title, problems: problems.len() });
    };
    note("the real servers answer".to_owned(), &stage.ask_servers()?);
    if wiring == Wiring::Tuned {
        note("attach".to_owned(), &stage.rlvs(&["attach", "--mode", "native"])?);
    }
    let cases = if arguments.quick { Case::quick() } else { Case::all() };
    for case in cases {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        note(case.to_string(), &stage.play(case, arguments.requests)?);
    }
    note("status".to_owned(), &stage.rlvs(&["status"])?);
    if arguments.keep && !INTERRUPTED.load(Ordering::Relaxed) {
        stage.set_up(HOW_TO)?;
        explain(&lab, program, screen)?;
        return lab.keep();
    }
    note("detach".to_owned(), &stage.rlvs(&["detach"])?);
    Ok(())
}

/// Plays the scenes with keepalived in them.
fn run_directors(
    arguments: &Arguments,
    program: &Path,
    screen: &mut dyn Write,
    outcomes: &mut Vec<Outcome>,
) -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Ok(());
    }
    writeln!(screen, "\n=== keepalived, by the how-to's file as it stands")?;
    let mut note = |title: &str, problems: &[String]| {
        let (wiring, title) = (Wiring::Plain, title.to_owned());
        outcomes.push(Outcome { wiring, title, problems: problems.len() });
    };
    let scene = Scene::new(program, screen, &INTERRUPTED)?;
    note("keepalived, a web server stops", &scene.how_to(arguments.requests)?);
    if !INTERRUPTED.load(Ordering::Relaxed) {
        let scene = Scene::new(program, screen, &INTERRUPTED)?;
        note("keepalived, two directors", &scene.two_directors()?);
    }
    Ok(())
}

fn describe(wiring: Wiring) -> &'static str {
    match wiring {
        Wiring::Plain => "plain veth pairs: the program is attached to TC",
        Wiring::Tuned => "tuned veth pairs: the program is attached as native XDP",
    }
}

fn explain(lab: &Lab, program: &Path, screen: &mut dyn Write) -> std::io::Result<()> {
    let (client, director) = (lab.client().name(), lab.director().name());
    let (program, target) = (program.display(), HOW_TO.target());
    writeln!(screen, "\nThe lab stands. Look around in it with")?;
    writeln!(screen, "  ip netns exec {director} {program} ipvsadm -L -n")?;
    writeln!(screen, "  ip netns exec {client} curl http://{target}/")?;
    writeln!(screen, "  ip netns exec {director} bash")?;
    writeln!(screen, "and remove it with\n  {program} lab --clean {}", lab.id())
}

fn summarize(screen: &mut dyn Write, outcomes: &[Outcome]) -> anyhow::Result<ExitCode> {
    writeln!(screen, "\n=== Summary")?;
    for Outcome { wiring, title, problems } in outcomes {
        let verdict = match problems {
            0 => "right".to_owned(),
            1 => "WRONG (1 problem)".to_owned(),
            _ => format!("WRONG ({problems} problems)"),
        };
        let wiring = match wiring {
            Wiring::Plain => "plain",
            Wiring::Tuned => "tuned",
        };
        writeln!(screen, "{wiring}  {title:<40} {verdict}")?;
    }
    let wrong = outcomes.iter().filter(|outcome| outcome.problems > 0).count();
    writeln!(screen, "{} checked, {wrong} wrong", outcomes.len())?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
