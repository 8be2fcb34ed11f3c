//! ICMP through the balancer: who is refused learns it, and who sends too much at a time sends less.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;

use e2e::lab::{Method, Random, Stage, connect, run, udp_client, udp_server, wait_for};
use rlvs::lab::topology::{CLIENT, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::route::{Prefix, Rtnetlink};
use rlvs_linux::{ethtool, sysctl};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const WIRINGS: [Wiring; 2] = [Wiring::Plain, Wiring::Tuned];
const PORT: u16 = 4000;
/// Bytes of a transfer.
const BYTES: usize = 1 << 20;
/// MTU of a narrow link; all others have 1500.
const NARROW: &str = "1400";

/// A virtual address for each method.
fn vip(method: Method, family: Family) -> SocketAddr {
    let vip = if method == Method::Nat { VIPS[1] } else { VIPS[0] };
    SocketAddr::new(vip.of(family), PORT)
}

fn ip(namespace: &Namespace, words: &str) {
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    run(namespace, Path::new("ip"), &words).ok();
}

/// Says what comes in, or sends what goes out, a connection at a time: one that is closed for
/// writing at once is sent [`BYTES`], else its bytes are counted.
fn transfer_server(namespace: &Namespace) {
    let listener = namespace.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut received = Vec::new();
            if stream.write_all(b"ready\n").is_err() || stream.read_to_end(&mut received).is_err() {
                continue;
            }
            let answer = if received.is_empty() {
                Random(4711).bytes(BYTES)
            } else {
                received.len().to_string().into_bytes()
            };
            drop(stream.write_all(&answer));
        }
    });
}

fn serve(stage: &Stage) {
    for namespace in stage.lab.real_servers() {
        transfer_server(namespace);
    }
    for (method, family) in Method::ALL.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        stage.serve("-t", vip(method, family), method, PORT);
    }
}

/// From the calling thread's namespace; fails if nothing comes for long.
fn download(target: SocketAddr) {
    let mut greeted = connect(target).unwrap_or_else(|error| panic!("{target}: {error}"));
    greeted.stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    let result = greeted.stream.read_to_end(&mut received);
    result.unwrap_or_else(|error| panic!("{target}, after {} bytes: {error}", received.len()));
    assert!(received == Random(4711).bytes(BYTES), "{target}: {} bytes", received.len());
}

fn upload(target: SocketAddr) {
    let mut greeted = connect(target).unwrap_or_else(|error| panic!("{target}: {error}"));
    let sent = greeted.stream.write_all(&Random(4711).bytes(BYTES));
    sent.unwrap_or_else(|error| panic!("{target}: {error}"));
    greeted.stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let result = greeted.stream.read_to_string(&mut answer);
    result.unwrap_or_else(|error| panic!("{target}: {error}"));
    assert_eq!(answer, BYTES.to_string());
}

#[test]
fn a_closed_port_of_a_real_server_refuses_the_client_at_once() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        for family in FAMILIES {
            let target = stage.serve("-u", vip(Method::Nat, family), Method::Nat, PORT);
            let kind = stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                socket.send(b"anybody?").unwrap();
                socket.recv(&mut [0; 16]).unwrap_err().kind()
            });
            assert_eq!(kind, ErrorKind::ConnectionRefused, "{wiring:?} {target}");
        }
    }
}

/// A client two links away from the balancer; the nearer link is narrow towards it.
struct FarClient(Namespace);

impl Drop for FarClient {
    fn drop(&mut self) {
        netns::delete(self.0.name()).ok();
    }
}

impl FarClient {
    const FOUR: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];

    fn six(host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, host)
    }

    /// Makes the lab's client a router before it.
    fn new(stage: &Stage, wiring: Wiring) -> Self {
        let name = format!("{}-far", stage.lab.client().name());
        let far = Self(Namespace::create(&name).unwrap());
        let router = stage.lab.client();
        far.0.run(|| sysctl::write("net/ipv6/conf/default/accept_dad", "0")).unwrap().unwrap();
        let parameters = [
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/default/forwarding",
        ];
        for parameter in parameters {
            router.run(|| sysctl::write(parameter, "1")).unwrap().unwrap();
        }
        let mut here = Rtnetlink::open_in(router).unwrap();
        here.add_veth("far", "eth0", &far.0).unwrap();
        let mut there = Rtnetlink::open_in(&far.0).unwrap();
        let ends: [(&mut Rtnetlink, &str, IpAddr, IpAddr); 2] = [
            (&mut here, "far", Self::FOUR[0].into(), Self::six(1).into()),
            (&mut there, "eth0", Self::FOUR[1].into(), Self::six(2).into()),
        ];
        for (rtnetlink, interface, four, six) in ends {
            let index = rtnetlink.link(interface).unwrap().index;
            rtnetlink.add_address(index, Prefix { address: four, bits: 24 }).unwrap();
            rtnetlink.add_address(index, Prefix { address: six, bits: 64 }).unwrap();
            rtnetlink.set_up(index, true).unwrap();
        }
        ip(router, &format!("link set far mtu {NARROW}"));
        ip(&far.0, &format!("route add default via {}", Self::FOUR[0]));
        ip(&far.0, &format!("route add default via {}", Self::six(1)));
        for host in stage.lab.real_servers().iter().chain([stage.lab.director()]) {
            ip(host, &format!("route add 10.9.0.0/24 via {}", CLIENT.v4));
            ip(host, &format!("route add fd00:9::/64 via {}", CLIENT.v6));
        }
        if wiring == Wiring::Tuned {
            far.0.run(|| ethtool::tx_checksum_off("eth0")).unwrap().unwrap();
        }
        far
    }
}

/// The router says to the virtual address that a reply is too long; the server it came from learns it.
fn downloads_through_a_narrow_link(wiring: Wiring) {
    let stage = Stage::attached(wiring, PROGRAM);
    serve(&stage);
    let far = FarClient::new(&stage, wiring);
    for (method, family) in Method::ALL.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        // Each server learns it for itself.
        for _ in &REAL_SERVERS {
            far.0.run(|| download(vip(method, family))).unwrap();
        }
    }
}

#[test]
fn downloads_come_through_a_narrow_link_behind_tc() {
    downloads_through_a_narrow_link(Wiring::Plain);
}

#[test]
fn downloads_come_through_a_narrow_link_behind_native_xdp() {
    downloads_through_a_narrow_link(Wiring::Tuned);
}

#[test]
fn uploads_come_through_a_narrow_link_to_the_servers() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        serve(&stage);
        ip(stage.lab.director(), &format!("link set eth1 mtu {NARROW}"));
        for family in FAMILIES {
            stage.as_client(|| upload(vip(Method::Nat, family)));
        }
        for family in FAMILIES {
            // The link is wide enough for what comes from clients.
            for server in &REAL_SERVERS {
                let to = server.outside.of(family);
                ip(stage.lab.director(), &format!("route add {to} dev eth0 mtu {NARROW}"));
            }
            stage.as_client(|| upload(vip(Method::Direct, family)));
        }
    }
}

#[test]
fn downloads_come_through_a_narrow_link_of_the_director_to_the_clients() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        serve(&stage);
        ip(stage.lab.director(), &format!("link set eth0 mtu {NARROW}"));
        for family in FAMILIES {
            stage.as_client(|| download(vip(Method::Nat, family)));
        }
    }
}

/// Forbids the kernel to cut a socket's datagrams, whatever it knows of the path.
#[expect(unsafe_code, reason = "nix does not know the option")]
fn forbid_fragments(socket: &std::net::UdpSocket, family: Family) {
    let (level, option, value) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    // SAFETY: the value is an integer as long as is said.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(status, 0);
}

#[test]
fn a_datagram_that_is_too_long_is_refused_to_its_sender() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        ip(stage.lab.director(), &format!("link set eth1 mtu {NARROW}"));
        for family in FAMILIES {
            let target = stage.serve("-u", vip(Method::Nat, family), Method::Nat, PORT);
            for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
                let at = SocketAddr::new(server.inside.of(family), PORT);
                udp_server(namespace, at, "");
            }
            let headers = if family == Family::V4 { 28 } else { 48 };
            stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                forbid_fragments(&socket, family);
                let too_long =
                    wait_for("a refusal", || match socket.send(&vec![7; 1500 - headers]) {
                        Err(error) => Ok(error.raw_os_error()),
                        Ok(_) => Err("sent".to_owned()),
                    });
                assert_eq!(too_long, Some(libc::EMSGSIZE), "{wiring:?} {target}");
                let fits = vec![7; 1400 - headers];
                // An error that has come meanwhile is told first.
                wait_for("a datagram that is not refused", || {
                    socket.send(&fits).map_err(|error| error.to_string())
                });
                let mut answer = vec![0; 1500];
                assert_eq!(socket.recv(&mut answer).unwrap(), fits.len());
            });
        }
    }
}
