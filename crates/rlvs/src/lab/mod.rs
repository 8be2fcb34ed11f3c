pub mod claim;
pub mod client;
pub mod server;
pub mod topology;
mod webserver;
#[derive(clap::Args)]
pub struct Arguments {}
pub fn run(_: &Arguments) -> anyhow::Result<std::process::ExitCode> {
    let lab = topology::Lab::new(&topology::Options {
        wiring: topology::Wiring::Tuned,
        web_server: topology::WebServer::Installed,
        program: std::env::current_exe()?,
        keep: false,
    })?;
    println!("{lab:?}");
    std::process::Command::new("bash").status()?;
    Ok(std::process::ExitCode::SUCCESS)
}
