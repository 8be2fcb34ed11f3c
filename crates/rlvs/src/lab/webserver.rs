//! Starting the real servers' programs and waiting until they answer.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use rlvs_control::model::Protocol;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::{self, Guard};

use super::client;
use super::topology::{Addresses, HTTP_PORT, Options, RealServer, UDP_PORT, VIPS, WebServer};

/// How long a server may take until it answers.
const START_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait before a server that does not answer yet is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Where nginx may be besides the directories in PATH.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Starts the programs of one real server, with their files below `directory`.
///
/// # Errors
/// A program is missing or cannot be started.
pub(super) fn start(
    server: &RealServer,
    namespace: &Namespace,
    directory: &Path,
    options: &Options,
) -> anyhow::Result<Vec<Guard>> {
    let directory = directory.join(server.role);
    std::fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut ours = Command::new(&options.program);
    ours.args(["lab-server", "--name", server.title]);
    // One socket for each address, so that the answer comes from the one that was asked.
    let held = [server.outside, server.inside].into_iter().chain(VIPS);
    for address in held.flat_map(Addresses::both) {
        ours.args(["--udp", &SocketAddr::new(address, UDP_PORT).to_string()]);
    }
    let nginx = match options.web_server {
        WebServer::Installed => find_program("nginx"),
        WebServer::Ours => None,
    };
    let mut commands = Vec::new();
    match nginx {
        Some(program) => commands.push(nginx_command(&program, &directory, server.title)?),
        None => {
            ours.args(["--http", &format!("[::]:{HTTP_PORT}")]);
        }
    }
    commands.push(ours);
    commands
        .into_iter()
        .map(|command| spawn(command, namespace, &directory, options.keep))
        .collect()
}

/// Waits until `title` answers on both addresses over HTTP and UDP, asked from `from`.
///
/// # Errors
/// One of `servers` has ended, or the time is up.
pub(super) fn await_answers(
    from: &Namespace,
    addresses: Addresses,
    title: &str,
    servers: &mut [Guard],
) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIME_MAX;
    for address in addresses.both() {
        for (protocol, port) in [(Protocol::Tcp, HTTP_PORT), (Protocol::Udp, UDP_PORT)] {
            let target = SocketAddr::new(address, port);
            loop {
                let problem = match from.run(|| client::ask(protocol, target))? {
                    Ok(name) if name == title => break,
                    Ok(name) => format!("`{name}` answers"),
                    Err(error) => error.to_string(),
                };
                // Waiting on a server is also how it is noticed that one has ended.
                for server in servers.iter_mut() {
                    if let Some(status) = server.wait_for(RETRY_INTERVAL)? {
                        bail!("a server program has ended ({status})");
                    }
                }
                if Instant::now() > deadline {
                    bail!("{title} does not answer at {target} ({protocol:?}): {problem}");
                }
            }
        }
    }
    Ok(())
}

/// Returns the end of what a real server's programs have written, to be put into an error.
pub(super) fn last_words(directory: &Path) -> String {
    let mut words = String::new();
    for name in ["output.log", "error.log"] {
        let text = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
        if let Some(line) = text.lines().last() {
            words += &format!("; {name} ends with `{line}`");
        }
    }
    words
}

fn spawn(
    mut command: Command,
    namespace: &Namespace,
    directory: &Path,
    keep: bool,
) -> anyhow::Result<Guard> {
    let program = command.get_program().to_string_lossy().into_owned();
    let log = directory.join("output.log");
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .and_then(|file| Ok((file.try_clone()?, file)))
        .with_context(|| format!("creating {}", log.display()))?;
    // A group of its own keeps Ctrl-C from the servers, so that they end in order, or stay.
    command.stdin(Stdio::null()).stdout(output.0).stderr(output.1).process_group(0);
    namespace.place(&mut command)?;
    if !keep {
        process::die_with_parent(&mut command, Signal::SIGTERM);
    }
    let child = command.spawn().with_context(|| format!("running {program}"))?;
    Ok(Guard::new(child))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Writes a configuration that leaves the machine's own nginx files alone.
fn nginx_command(program: &Path, directory: &Path, title: &str) -> anyhow::Result<Command> {
    let place = directory.display();
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        temporary += &format!("  {kind}_temp_path {place}/{kind};\n");
    }
    let text = format!(
        "daemon off;\n\
         worker_processes 1;\n\
         pid {place}/nginx.pid;\n\
         error_log {place}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
         {temporary}  access_log off;\n  \
           default_type text/plain;\n  \
           server {{\n    \
             listen 80 backlog=1024;\n    \
             listen [::]:80 backlog=1024;\n    \
             location = /health_check {{ return 200 \"ok\\n\"; }}\n    \
             location / {{ return 200 \"Hello from {title}\\n\"; }}\n  \
           }}\n\
         }}\n"
    );
    let configuration = directory.join("nginx.conf");
    std::fs::write(&configuration, text)
        .with_context(|| format!("writing {}", configuration.display()))?;
    let mut command = Command::new(program);
    command.arg("-e").arg(directory.join("error.log"));
    command.arg("-p").arg(directory).arg("-c").arg(configuration);
    Ok(command)
}
