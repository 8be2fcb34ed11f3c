//! What administrators reach for, through the balancer: tracepath and iperf3.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use e2e::lab::{Stage, inside, tool, wait_for};
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Forwarding methods, with the number of the virtual address for them and the bytes that they add to
/// IPv4 and IPv6.
const METHODS: [(&str, usize, [usize; 2]); 3] =
    [("-g", 0, [0, 0]), ("-m", 1, [0, 0]), ("-i", 2, [20, 40])];
const IPERF_PORT: u16 = 5201;
/// tracepath numbers its probes by their ports.
const PROBES: std::ops::Range<u16> = 44_444..44_452;

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn real_server(family: Family) -> IpAddr {
    REAL_SERVERS[0].inside.of(family)
}

/// Adds a service with the first real server alone.
fn serve(stage: &Stage, protocol: &str, target: SocketAddr, method: &str) {
    let real = SocketAddr::new(real_server(Family::of(target.ip())), target.port());
    stage.ipvsadm(&format!("-A {protocol} {target} -s rr")).ok();
    stage.ipvsadm(&format!("-a {protocol} {target} -r {real} {method}")).ok();
}

/// Runs iperf3 until its server listens and it says what is expected: a server that the machine gives no
/// time for a while loses datagrams, a wrong path loses some of every run.
fn measured(stage: &Stage, iperf: &Path, words: &[&str], expected: &str) {
    wait_for("iperf3", || {
        let said = stage.client_command(iperf, words);
        let is_done = said.status == Some(0) && said.output.contains(expected);
        if is_done { Ok(()) } else { Err(format!("{words:?}: {said:?}")) }
    });
}

/// TCP, and datagrams of 4,000 bytes, which come in fragments.
#[test]
fn iperf3_measures_through_every_method() {
    let Some(iperf) = tool("iperf3") else { return };
    for wiring in [Wiring::Plain, Wiring::Tuned] {
        let stage = Stage::attached(wiring, PROGRAM);
        for (method, vip, _) in METHODS {
            for family in FAMILIES {
                let target = SocketAddr::new(VIPS[vip].of(family), IPERF_PORT);
                serve(&stage, "-t", target, method);
                serve(&stage, "-u", target, method);
                // What it answers datagrams from.
                let own = if method == "-m" { real_server(family) } else { target.ip() };
                let mut server = Command::new(&iperf);
                server.args(["-s", "-B", &own.to_string()]);
                server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                inside(&stage.lab.real_servers()[0], &mut server);
                let _server = Running(server.spawn().unwrap());
                let client = ["-c", &target.ip().to_string(), "--connect-timeout", "2000"];
                measured(&stage, &iperf, &[&client[..], &["-n", "10M"]].concat(), "iperf Done.");
                let datagrams = ["-u", "-b", "20M", "-n", "1M", "-l", "4000"];
                measured(&stage, &iperf, &[&client[..], &datagrams].concat(), "(0%)  receiver");
            }
        }
    }
}

/// A tunnel takes its outer header from what the path carries, and says so. Where nobody listens, the
/// real server's word comes back as the virtual address's.
#[test]
fn tracepath_finds_the_length_that_every_method_leaves() {
    let Some(tracepath) = tool("tracepath") else { return };
    for wiring in [Wiring::Plain, Wiring::Tuned] {
        let stage = Stage::attached(wiring, PROGRAM);
        for (method, vip, overhead) in METHODS {
            for (family, overhead) in FAMILIES.into_iter().zip(overhead) {
                let address = VIPS[vip].of(family);
                for port in PROBES {
                    serve(&stage, "-u", SocketAddr::new(address, port), method);
                }
                let words = ["-n", "-m", "4", &address.to_string()];
                let said = stage.client_command(&tracepath, &words).ok();
                let found = format!("Resume: pmtu {} hops 2 ", 1500 - overhead);
                let last = said.lines().rfind(|line| line.contains("reached")).unwrap_or_default();
                assert!(said.contains(&found), "{wiring:?} {method} {said}");
                assert!(last.contains(&format!(" {address} ")), "{wiring:?} {method} {said}");
            }
        }
    }
}
