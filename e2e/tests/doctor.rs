//! `rlvs doctor` in labs in which something is wrong on purpose: exactly that is found.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::{Array, Map, MapData};
use e2e::lab::{Method, OtherObjects, Said, Stage, inside, run, tool};
use e2e::schema;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use rlvs::lab::topology::{HTTP_PORT, VIPS, Wiring};
use rlvs_datapath::abi::AllCounts;
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::Rtnetlink;
use rlvs_linux::xdp_pass::attach_pass;
use rlvs_linux::{ethtool, sysctl};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

/// Something wrong: what makes it, and what is found: the check and what it is about.
struct Fault {
    make: fn(&Stage),
    found: &'static [(&'static str, &'static str)],
}

type Found = BTreeSet<(String, String)>;

/// Returns what is found, after what was said of it for a failing test.
fn doctor(stage: &Stage) -> (Found, String) {
    found_in(&stage.rlvs(&["doctor", "--json"]))
}

fn found_in(said: &Said) -> (Found, String) {
    let value: Value = serde_json::from_str(&said.output).unwrap_or_else(|_| panic!("{said:?}"));
    schema::check("doctor", &value);
    let findings = value["findings"].as_array().unwrap();
    let status = if findings.is_empty() { 0 } else { 1 };
    assert_eq!(said.status, Some(status), "{said:?}");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let about = |finding: &Value| (text(finding, "check"), text(finding, "about"));
    for finding in findings {
        assert!(!text(finding, "remedy").is_empty(), "{finding}");
    }
    (findings.iter().map(about).collect(), said.output.clone())
}

#[track_caller]
fn assert_found(stage: &Stage, faults: &[Fault]) {
    let pair = |&(check, about): &(&str, &str)| (check.to_owned(), about.to_owned());
    let expected: Found = faults.iter().flat_map(|fault| fault.found).map(pair).collect();
    let (found, said) = doctor(stage);
    assert_eq!(found, expected, "{said}");
}

fn set(namespace: &Namespace, path: &str, value: &str) {
    namespace.run(|| sysctl::write(path, value)).unwrap().unwrap();
}

fn ip(namespace: &Namespace, words: &str) {
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    run(namespace, &tool("ip").unwrap(), &words).ok();
}

/// Gives the director a rule by an old packet filter.
fn filter(stage: &Stage, words: &str) {
    let (program, words) = words.split_once(' ').unwrap();
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    run(stage.lab.director(), &tool(program).unwrap(), &words).ok();
}

/// Has the client ask twice in vain or not, so that round robin comes by both servers.
fn ask(stage: &Stage, url: &str) {
    for _ in 0..2 {
        stage.client_command(&tool("curl").unwrap(), &["-s", "-m", "0.3", url]);
    }
}

const SERVICE: &str = "TCP 192.168.1.200:80";

const FAULTS: [Fault; 16] = [
    Fault {
        make: |stage| {
            let server = &stage.lab.real_servers()[0];
            ip(server, "rule del from 10.0.1.101 table 100");
            ask(stage, "http://192.168.1.200/");
        },
        found: &[("return-route", "10.0.1.101:80 of TCP 192.168.1.200:80")],
    },
    Fault {
        make: |stage| stage.ipvsadm("-a -t 192.168.1.200:80 -r 10.0.1.101:81 -m").ok().clear(),
        found: &[("health", "10.0.1.101:81 of TCP 192.168.1.200:80")],
    },
    Fault {
        make: |stage| stage.ipvsadm("-a -t 192.168.1.200:80 -r 10.0.1.77:80 -m").ok().clear(),
        found: &[
            ("next-hop", "10.0.1.77:80 of TCP 192.168.1.200:80"),
            ("health", "10.0.1.77:80 of TCP 192.168.1.200:80"),
        ],
    },
    Fault {
        make: |stage| stage.ipvsadm("-a -t 192.168.1.200:80 -r 203.0.113.9:80 -m").ok().clear(),
        found: &[
            ("next-hop", "203.0.113.9:80 of TCP 192.168.1.200:80"),
            ("health", "203.0.113.9:80 of TCP 192.168.1.200:80"),
        ],
    },
    Fault {
        make: |stage| {
            stage.ipvsadm("-A -t 192.168.1.202:80").ok();
            stage.ipvsadm("-a -t 192.168.1.202:80 -r 192.168.1.102 -i").ok();
        },
        found: &[("mtu", "192.168.1.102:80 of TCP 192.168.1.202:80")],
    },
    Fault {
        make: |stage| set(&stage.lab.real_servers()[0], "net/ipv4/conf/all/arp_ignore", "0"),
        found: &[
            ("arp", "TCP 192.168.1.200:80"),
            ("arp", "TCP 192.168.1.201:80"),
            ("arp", "TCP 192.168.1.202:80"),
            ("arp", "TCP 192.168.1.203:80"),
            ("arp", "UDP 192.168.1.204:9"),
        ],
    },
    Fault {
        make: |stage| {
            stage.ipvsadm("-A -t 192.168.1.203:80").ok();
            stage.ipvsadm("-a -t 192.168.1.203:80 -r 192.168.1.102 -g").ok();
            ip(stage.lab.client(), "addr add 192.168.1.203/32 dev eth0");
        },
        found: &[("vip-elsewhere", "TCP 192.168.1.203:80")],
    },
    Fault {
        make: |stage| {
            stage.ipvsadm("-A -t 192.168.1.250:80").ok();
            stage.ipvsadm("-a -t 192.168.1.250:80 -r 192.168.1.102 -g").ok();
        },
        found: &[("vip", "TCP 192.168.1.250:80")],
    },
    Fault {
        make: |stage| {
            stage.ipvsadm("-A -u 192.168.1.204:9").ok();
            // Not to the server that answers for it.
            let director = "neigh replace 192.168.1.204 lladdr 02:00:c0:a8:01:64 dev eth0";
            ip(stage.lab.client(), director);
        },
        found: &[("no-server", "UDP 192.168.1.204:9"), ("reason", "no_destination")],
    },
    Fault {
        make: |stage| {
            let rules = "add table ip guard; add chain ip guard in; \
                         add rule ip guard in ip daddr 192.168.1.200 tcp dport 80 drop";
            run(stage.lab.director(), &tool("nft").unwrap(), &[rules]).ok();
        },
        found: &[("filter", "nft ip guard in")],
    },
    Fault {
        make: |stage| filter(stage, "iptables-legacy -A INPUT -d 192.168.1.200/32 -p tcp -j DROP"),
        found: &[("filter", "iptables-legacy filter INPUT")],
    },
    Fault {
        make: |stage| {
            filter(stage, "iptables-legacy -t raw -A PREROUTING -d 192.168.1.201 -j ACCEPT");
            filter(stage, "iptables-nft -A FORWARD -d 192.168.1.0/24 -p udp -j REJECT");
            filter(stage, "iptables-nft -A FORWARD -d 198.51.100.0/24 -j DROP");
        },
        found: &[("filter", "nft ip filter FORWARD")],
    },
    Fault {
        make: |stage| {
            stage.ipvsadm("-A -t [fd00:1::203]:80").ok();
            stage.ipvsadm("-a -t [fd00:1::203]:80 -r [fd00:1::102]:80 -g").ok();
            filter(stage, "ip6tables-legacy -A INPUT -d fd00:1::202/127 -j DROP");
        },
        found: &[("filter", "ip6tables-legacy filter INPUT")],
    },
    Fault {
        make: |stage| set(stage.lab.director(), "net/ipv4/conf/eth0/rp_filter", "1"),
        found: &[("rp-filter", "eth0")],
    },
    Fault {
        make: |stage| {
            let attach = || {
                let mut rtnetlink = Rtnetlink::open().unwrap();
                let index = rtnetlink.link("eth1").unwrap().index;
                attach_pass(&mut rtnetlink, index).unwrap();
            };
            stage.lab.director().run(attach).unwrap();
        },
        found: &[("foreign-xdp", "eth1")],
    },
    Fault {
        make: |stage| {
            let director = stage.lab.director();
            ip(director, "link add x0 type veth peer name x1");
            ip(director, "addr add 10.99.0.1/24 dev x0");
            ip(director, "link set x0 up");
        },
        found: &[("interface", "x0")],
    },
];

#[test]
fn every_fault_is_found_and_nothing_else() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.serve("-t", (VIPS[0].v4, HTTP_PORT).into(), Method::Nat, HTTP_PORT);
    stage.serve("-t", (VIPS[1].v4, HTTP_PORT).into(), Method::Direct, HTTP_PORT);
    assert_found(&stage, &[]);
    FAULTS.iter().for_each(|fault| (fault.make)(&stage));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stage.as_client(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !over.load(Ordering::SeqCst) {
                    // Refused by ICMP, as it should.
                    socket.send_to(b"is there anybody?", "192.168.1.204:9").ok();
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                }
            })
        });
        let outcome = std::panic::catch_unwind(|| assert_found(&stage, &FAULTS));
        over.store(true, Ordering::SeqCst);
        outcome.unwrap();
    });
    // As people read it.
    let said = stage.rlvs(&["doctor"]);
    assert_eq!(said.status, Some(1));
    assert!(
        said.output.contains(&format!("{SERVICE}: the real server 10.0.1.101 answers ARP")),
        "{said:?}"
    );
    assert!(said.output.contains("do: "), "{said:?}");
}

/// Returns where the director's maps are pinned.
fn pins(stage: &Stage) -> PathBuf {
    let status = stage.rlvs(&["status", "--json"]).ok();
    let status: Value = serde_json::from_str(&status).unwrap();
    PathBuf::from(status["pins"].as_str().unwrap())
}

/// Adds connections to the count of the first destination that are not there.
#[expect(unsafe_code, reason = "nobody but a broken program writes there")]
fn miscount(stage: &Stage) {
    let map = MapData::from_pin(pins(stage).join("counts")).unwrap();
    let length = NonZeroUsize::new(size_of::<AllCounts>()).unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses where; the map has one element of this size.
    let memory =
        unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) }.unwrap();
    // SAFETY: the mapping is as long as the type, and nothing else in this process refers to it.
    let counts = unsafe { memory.cast::<AllCounts>().as_ref() };
    let first = &counts.of[1].connections;
    first.set(first.get() + 5);
}

#[test]
fn faults_of_native_xdp_and_of_a_small_table_are_found() {
    let stage = Stage::bare(Wiring::Tuned, PROGRAM);
    assert_found(
        &stage,
        &[Fault { make: |_| (), found: &[("interface", "this network namespace")] }],
    );
    stage.rlvs(&["attach", "--mode", "native", "--connections", "64"]).ok();
    stage.serve("-t", (VIPS[0].v4, HTTP_PORT).into(), Method::Nat, HTTP_PORT);
    assert_found(&stage, &[]);
    let faults = [
        Fault {
            make: |stage| {
                let server = &stage.lab.real_servers()[0];
                let tx_on = ["-K", "eth1", "tx", "on"];
                run(server, &tool("ethtool").unwrap(), &tx_on).ok();
                assert!(server.run(|| ethtool::is_tx_checksum_on("eth1")).unwrap().unwrap());
            },
            found: &[("checksum", "eth1")],
        },
        Fault {
            make: |stage| {
                stage.ipvsadm("-A -u 192.168.1.201:9").ok();
                stage.ipvsadm("-a -u 192.168.1.201:9 -r 192.168.1.102 -g").ok();
                stage.as_client(|| {
                    for _ in 0..300 {
                        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                        socket.send_to(b"one more", "192.168.1.201:9").unwrap();
                    }
                });
            },
            found: &[("fill", "table of IPv4 connections")],
        },
        Fault { make: miscount, found: &[("counts", "10.0.1.101:80 of TCP 192.168.1.200:80")] },
        Fault {
            make: |stage| set(stage.lab.director(), "net/ipv4/ip_forward", "0"),
            found: &[("forwarding", "lo")],
        },
    ];
    faults.iter().for_each(|fault| (fault.make)(&stage));
    assert_found(&stage, &faults);
    OtherObjects::new("doctor", PROGRAM).rlvs(stage.lab.director(), &["upgrade"]).ok();
    let (found, said) = doctor(&stage);
    let version = ("version".to_owned(), "the attached programs".to_owned());
    assert!(found.contains(&version), "{said}");

    stage.rlvs(&["detach"]).ok();
    let said = stage.rlvs(&["attach", "--mode", "generic"]).ok();
    assert!(said.contains("eth0 attached: generic XDP"), "{said}");
    ip(stage.lab.director(), "link add x0 type veth peer name x1");
    ip(stage.lab.director(), "link set x0 up");
    stage.rlvs(&["attach", "--mode", "tc", "x0"]).ok();
    let (found, said) = doctor(&stage);
    let useless = ("interface".to_owned(), "x0".to_owned());
    assert!(found.contains(&useless) && said.contains("down or has no address"), "{said}");
    ip(stage.lab.director(), "link del x0");
    let (found, said) = doctor(&stage);
    let about: Vec<&str> = found.iter().map(|(_, about)| about.as_str()).collect();
    assert_eq!(about.len(), 3, "{said}");
    assert!(about[..2] == ["eth0", "eth1"] && about[2].ends_with("(gone)"), "{said}");
    let said = stage.rlvs(&["status"]).ok();
    assert!(said.contains("generic XDP") && !said.contains("native"), "{said}");
}

/// Runs `rlvs doctor` where the shell has changed what the kernel shows, and returns what is found.
fn doctor_after(stage: &Stage, change: &str) -> (Found, String) {
    let script = format!("set -e; mount --make-rprivate /; {change}; exec {PROGRAM} doctor --json");
    let words = ["--mount", "sh", "-c", &script];
    let said = run(stage.lab.director(), &tool("unshare").unwrap(), &words);
    found_in(&said)
}

/// Runs `rlvs doctor` where bpf(2) with a command fails with an error, as in a container that forbids it or
/// on a kernel without it.
#[expect(unsafe_code, reason = "a filter of system calls before the program begins")]
fn doctor_without(stage: &Stage, command: u32, error: i32) -> (Found, String) {
    let mut doctor = Command::new(PROGRAM);
    doctor.args(["doctor", "--json"]).stdin(Stdio::null());
    inside(stage.lab.director(), &mut doctor);
    // SAFETY: makes two system calls and no allocation.
    unsafe { doctor.pre_exec(move || forbid_bpf(command, error)) };
    found_in(&doctor.output().unwrap().into())
}

/// Lets bpf(2) with this command fail in the calling process from now on: seccomp(2).
#[expect(unsafe_code, reason = "prctl(2) is asked for by number")]
fn forbid_bpf(command: u32, error: i32) -> std::io::Result<()> {
    // Offsets in `struct seccomp_data` of the number and of the low half of the first argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let equal = |k, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, jf, k);
    let end = |k| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let filter = [
        load(NUMBER),
        equal(libc::SYS_bpf as u32, 3),
        load(FIRST),
        equal(command, 1),
        end(libc::SECCOMP_RET_ERRNO | error as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the filter, which lives until it has.
    let [alone, set] = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    if alone == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Commands of bpf(2).
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;

/// Writes the sweep's element anew as it is, which takes its timer away.
fn stop_sweep(stage: &Stage) {
    let map = MapData::from_pin(pins(stage).join("sweep")).unwrap();
    let mut map: Array<_, [u64; 11]> = Map::Array(map).try_into().unwrap();
    let element = map.get(&0, 0).unwrap();
    map.set(0, element, 0).unwrap();
}

#[test]
fn faults_of_the_kernel_and_of_the_sweep_are_found() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let about = |check: &str, about: &str| -> Found { [(check.into(), about.into())].into() };
    let kernel = about("kernel", "kernel");
    let old = stage.lab.directory().join("osrelease");
    std::fs::write(&old, "5.15.0-89-generic\n").unwrap();
    let is_old = format!("mount --bind {} /proc/sys/kernel/osrelease", old.display());
    let interprets =
        "mount -t tmpfs none /proc/sys/net/core; echo 0 > /proc/sys/net/core/bpf_jit_enable";
    for (change, word) in
        [(is_old.as_str(), "Linux 5.15.0-89-generic lacks"), (interprets, "are interpreted")]
    {
        let (found, said) = doctor_after(&stage, change);
        assert!(found == kernel && said.contains(word), "{said}");
    }
    for (command, error, words) in [
        (
            BPF_PROG_LOAD,
            libc::EPERM,
            ["lets no programs and maps be made", "Operation not permitted"],
        ),
        (BPF_PROG_LOAD, libc::EINVAL, ["XDP programs (Linux 4.8)", "bpf_loop (Linux 5.17)"]),
        (BPF_MAP_CREATE, libc::EINVAL, ["need: arrays", "arrays of programs (Linux 4.2)"]),
    ] {
        let (found, said) = doctor_without(&stage, command, error);
        assert_eq!(found, kernel, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    assert_found(&stage, &[]);
    stop_sweep(&stage);
    let (found, said) = doctor(&stage);
    assert_eq!(found, about("sweep", "sweep"), "{said}");
    // As its remedy says.
    stage.rlvs(&["detach"]).ok();
    // What only the kernel can tell is told where nothing is attached, too.
    let (found, said) = doctor_without(&stage, BPF_PROG_LOAD, libc::EPERM);
    let detached = about("interface", "this network namespace");
    assert_eq!(found, kernel.union(&detached).cloned().collect(), "{said}");
    stage.rlvs(&["attach", "--mode", "tc"]).ok();
    assert_found(&stage, &[]);
}
