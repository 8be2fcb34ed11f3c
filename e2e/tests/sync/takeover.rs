//! A director that dies in the middle of a download, and another one that goes on with it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use e2e::lab::{Method, Random, Said, Stage, TIME_MAX, run, wait_for};
use rlvs::lab::topology::{
    DIRECTOR_INSIDE, REAL_SERVERS, SECOND_DIRECTOR, SECOND_DIRECTOR_INSIDE, VIP, Wiring,
};
use rlvs_control::model::Family;
use rlvs_linux::dataplane::attach;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::Handle;
use rlvs_linux::route::{Mac, Prefix, Rtnetlink};

use crate::PROGRAM;

const PORT: u16 = 7100;
/// More than all buffers on the way hold.
const BYTES: usize = 16 << 20;
/// What the client reads before the first director dies.
const BEFORE: usize = 64 << 10;

/// Sends the same bytes to whoever comes.
fn download_server(namespace: &Namespace, seed: u64) {
    let listener = namespace.run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that gives up has failed its test.
            std::thread::spawn(move || stream.write_all(&content(seed)).ok());
        }
    });
}

fn content(seed: u64) -> Vec<u8> {
    Random(seed).bytes(BYTES)
}

/// The director that takes over.
pub(crate) struct Second(pub(crate) Namespace);

impl Drop for Second {
    fn drop(&mut self) {
        self.ipvsadm("--stop-daemon backup");
        // One without any is as it should be.
        self.0.run(attach::detach).ok();
    }
}

impl Second {
    /// Joins the lab, and attaches.
    pub(crate) fn attached(stage: &Stage) -> Self {
        let second = Self(stage.lab.second_director().unwrap());
        second.rlvs(&["attach", "--mode", "tc"]).ok();
        second
    }

    pub(crate) fn rlvs(&self, words: &[&str]) -> Said {
        run(&self.0, Path::new(PROGRAM), words)
    }

    pub(crate) fn ipvsadm(&self, arguments: &str) -> Said {
        let words: Vec<&str> =
            ["ipvsadm"].into_iter().chain(arguments.split_ascii_whitespace()).collect();
        self.rlvs(&words)
    }

    /// Has it hold what the first one held; whoever knew that one learns that it is here now.
    fn take_over(&self, stage: &Stage) {
        let mac = |address: IpAddr| match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                Mac([2, 0, a, b, c, d])
            }
            IpAddr::V6(_) => panic!("the take-over is over IPv4"),
        };
        let mut route = Rtnetlink::open_in(&self.0).unwrap();
        let (outside, inside) =
            (route.link("eth0").unwrap().index, route.link("eth1").unwrap().index);
        route.add_address(outside, Prefix { address: VIP.v4.into(), bits: 32 }).unwrap();
        let gateway = Prefix { address: DIRECTOR_INSIDE.v4.into(), bits: 24 };
        route.add_address(inside, gateway).unwrap();
        let mut client = Rtnetlink::open_in(stage.lab.client()).unwrap();
        let port = client.link("eth0").unwrap().index;
        client.set_neighbour(port, VIP.v4.into(), mac(SECOND_DIRECTOR.of(Family::V4))).unwrap();
        for server in stage.lab.real_servers() {
            let mut server = Rtnetlink::open_in(server).unwrap();
            let port = server.link("eth1").unwrap().index;
            let to = mac(SECOND_DIRECTOR_INSIDE.of(Family::V4));
            server.set_neighbour(port, DIRECTOR_INSIDE.v4.into(), to).unwrap();
        }
    }
}

/// Ends the first director as a failure of its machine does: its daemon is killed, its wires are dead.
fn kill_first(stage: &Stage) {
    let cookie = stage.lab.director().cookie().unwrap();
    let note = std::fs::read_to_string(format!("/run/rlvs/sync-{cookie}-master")).unwrap();
    let pid = note.split(' ').next().unwrap().parse().unwrap();
    Handle::open(pid).unwrap().signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut switch = Rtnetlink::open_in(stage.lab.switch()).unwrap();
    for port in ["director-eth0", "director-eth1"] {
        let index = switch.link(port).unwrap().index;
        switch.set_up(index, false).unwrap();
    }
}

/// Begins a download through one director and ends it through another. Returns the bytes, or why there
/// are not all.
fn download(method: Method, with_backup: bool) -> io::Result<bool> {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for (seed, namespace) in (1..).zip(stage.lab.real_servers()) {
        download_server(namespace, seed);
    }
    let second = Second::attached(&stage);
    let service = stage.serve("-t", (VIP.v4, PORT).into(), method, PORT);
    // The one that another scheduler would choose is the other server.
    second.ipvsadm(&format!("-A -t {service} -s rr")).ok();
    for server in REAL_SERVERS.iter().rev() {
        let real = SocketAddr::new(method.address(server, Family::V4), PORT);
        second.ipvsadm(&format!("-a -t {service} -r {real} {}", method.option())).ok();
    }
    if with_backup {
        second.ipvsadm("--start-daemon backup --mcast-interface eth1 --syncid 9").ok();
    }
    stage.ipvsadm("--start-daemon master --mcast-interface eth1 --syncid 9").ok();
    let mut stream = stage.as_client(|| TcpStream::connect(service)).unwrap();
    stream.set_read_timeout(Some(TIME_MAX)).unwrap();
    let mut got = vec![0; BEFORE];
    stream.read_exact(&mut got).unwrap();
    if with_backup {
        wait_for("the other director's entry", || {
            let listing = second.ipvsadm("-L -n -c").ok();
            if listing.contains("ESTABLISHED") { Ok(()) } else { Err(listing) }
        });
    }
    kill_first(&stage);
    second.take_over(&stage);
    stream.read_to_end(&mut got)?;
    Ok((1..).zip(&REAL_SERVERS).any(|(seed, _)| got == content(seed)))
}

#[test]
fn a_download_over_nat_goes_on_when_its_director_dies() {
    assert!(download(Method::Nat, true).unwrap(), "other bytes");
}

#[test]
fn a_download_over_direct_routing_goes_on_when_its_director_dies() {
    assert!(download(Method::Direct, true).unwrap(), "other bytes");
}

/// What the tests above show is the backup's doing.
#[test]
fn without_a_backup_daemon_the_download_ends() {
    for method in Method::ALL {
        let got = download(method, false);
        assert!(!matches!(got, Ok(true)), "{method:?}: {got:?}");
    }
}
