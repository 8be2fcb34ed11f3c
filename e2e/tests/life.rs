//! The product's life: it needs no process of ours, and leaves nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use e2e::bare::{Host, left, pinned};
use e2e::lab::{
    Method, OtherObjects, Said, Stage, TIME_MAX, connect, inside, run, tcp_server, tool,
    udp_client, udp_server, wait_for, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_datapath::abi::LAYOUT;
use rlvs_linux::dataplane::pins;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process;
use rlvs_linux::route::Rtnetlink;
use rlvs_linux::xdp_pass::attach_pass;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

#[test]
fn detaching_leaves_no_map_no_program_no_link_no_pin_and_no_sysctl() {
    let host = Host::new(PROGRAM, "leaves");
    let (hooks, forwarding) = (host.hooks(), host.forwarding());
    assert_eq!(forwarding, ["0", "0"]);
    let begin = Instant::now();
    let said = host.rlvs(&["attach", "eth0"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(10), "attaching took {:?}", begin.elapsed());
    assert_eq!(said, "rlvs: eth0 attached: TC\n");
    assert_eq!(host.forwarding(), ["1", "1"]);
    assert_eq!(host.hooks(), ["rlvs_tc"]);
    let numbers = pinned(&host.namespace);
    // What hangs at egress comes with the first server on this host.
    assert!(numbers.0.len() > 10 && numbers.1.len() == 1, "{numbers:?}");
    assert!(left(&numbers).len() >= numbers.0.len() + numbers.1.len());
    // A second time: nothing is done twice.
    assert_eq!(host.rlvs(&["attach", "eth0"]).ok(), "rlvs: eth0 was attached: TC\n");
    assert_eq!(pinned(&host.namespace), numbers);
    // XDP is loaded when an interface gets it, over the same maps.
    let said = host.rlvs(&["attach", "--mode", "native", "eth0"]).ok();
    assert_eq!(said, "rlvs: eth0 attached: native XDP\n");
    let (maps, before) = numbers;
    let numbers = pinned(&host.namespace);
    assert_eq!(numbers.0, maps);
    assert!(numbers.1.len() == 2 && numbers.1.is_superset(&before), "{numbers:?}");
    host.rlvs(&["detach"]).ok();
    assert_eq!(host.hooks(), hooks);
    assert_eq!(host.forwarding(), forwarding);
    assert!(host.namespace.run(|| pins::open().unwrap().is_none()).unwrap());
    wait_until("maps and programs that are left", &Vec::new(), || left(&numbers));
    let again = host.rlvs(&["detach"]);
    assert_eq!(again.status, Some(1));
    assert!(again.errors.contains("nothing is attached here"));
}

#[test]
fn the_next_status_elsewhere_collects_what_a_removed_namespace_had() {
    let host = Host::new(PROGRAM, "removed");
    let elsewhere = Host::new(PROGRAM, "elsewhere");
    host.rlvs(&["attach", "eth0"]).ok();
    host.rlvs(&["ipvsadm", "-A", "-t", "192.168.1.100:80", "-s", "rr"]).ok();
    let numbers = pinned(&host.namespace);
    let cookie = format!("ns-{}-", host.namespace.cookie().unwrap());
    let folders = || pins::root().unwrap().unwrap().names().unwrap();
    assert!(folders().iter().any(|name| name.starts_with(&cookie)));
    // Somebody else's look does not take it away while it is in use.
    let said = elsewhere.rlvs(&["status"]);
    assert!(said.output.starts_with("not attached"), "{said:?}");
    assert!(folders().iter().any(|name| name.starts_with(&cookie)));
    drop(host);
    // The kernel takes a namespace apart in its own time.
    wait_for("collecting", || {
        elsewhere.rlvs(&["status"]);
        let names = folders();
        if names.iter().any(|name| name.starts_with(&cookie)) {
            Err(names.join(" "))
        } else {
            Ok(())
        }
    });
    wait_until("maps and programs that are left", &Vec::new(), || left(&numbers));
}

#[test]
fn a_first_command_that_is_killed_keeps_the_next_from_nothing() {
    let host = Host::new(PROGRAM, "first");
    let forwarding = host.forwarding();
    let add = ["ipvsadm", "-A", "-t", "192.168.1.100:80", "-s", "rr"];
    host.rlvs(&add).ok();
    host.rlvs(&["detach"]).ok();
    assert_eq!(host.forwarding(), forwarding);
    let root = pins::root().unwrap().unwrap();
    let own = format!("ns-{}-", host.namespace.cookie().unwrap());
    // Killed when its folder is begun, and when it is finished.
    for part in ["-new", "", ""] {
        let mut command = Command::new(PROGRAM);
        command.args(add).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        inside(&host.namespace, &mut command);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + TIME_MAX;
        let is_there =
            |name: &String| name.starts_with(&own) && (name.ends_with("-new") == (part == "-new"));
        while !root.names().unwrap().iter().any(is_there) {
            assert!(Instant::now() < deadline, "no folder");
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // It is there already if the first came so far.
        let again = host.rlvs(&add);
        let exists = again.errors.contains("exists already");
        assert!(again.status == Some(0) || exists, "part {part}: {again:?}");
        assert_eq!(host.hooks(), ["rlvs_tc"], "part {part}");
        let listing = host.rlvs(&["ipvsadm", "-S", "-n"]).ok();
        assert_eq!(listing, "-A -t 192.168.1.100:80 -s rr\n", "part {part}");
        host.rlvs(&["detach"]).ok();
        assert_eq!(host.hooks(), Vec::<String>::new(), "part {part}");
        let names = root.names().unwrap();
        assert!(!names.iter().any(|name| name.starts_with(&own)), "part {part}: {names:?}");
    }
}

#[test]
fn pins_of_another_layout_are_refused_and_left_as_they_are() {
    let host = Host::new(PROGRAM, "layout");
    host.rlvs(&["attach", "eth0"]).ok();
    host.rlvs(&["ipvsadm", "-A", "-t", "10.0.0.1:80", "-s", "rr"]).ok();
    let saved = host.rlvs(&["ipvsadm", "-S", "-n"]).ok();
    let (hooks, numbers) = (host.hooks(), pinned(&host.namespace));
    let cookie = host.namespace.cookie().unwrap();
    let root = pins::root().unwrap().unwrap();
    let own = format!("ns-{cookie}-v{LAYOUT}");
    let other = format!("ns-{cookie}-v{}", LAYOUT - 1);
    std::fs::rename(root.path(&own), root.path(&other)).unwrap();
    let told = format!("have layout {}, this program knows layout {LAYOUT};", LAYOUT - 1);
    for words in [
        &["upgrade"][..],
        &["attach", "eth0"],
        &["detach"],
        &["status"],
        &["ipvsadm", "-L"],
        &["ipvsadm", "-C"],
    ] {
        let refused = host.rlvs(words);
        assert!(refused.status != Some(0), "{words:?}: {refused:?}");
        assert!(refused.errors.contains(&told), "{words:?}: {refused:?}");
        assert!(!root.names().unwrap().contains(&own), "{words:?} has made a folder beside it");
    }
    assert_eq!(host.hooks(), hooks);
    std::fs::rename(root.path(&other), root.path(&own)).unwrap();
    assert_eq!(pinned(&host.namespace), numbers);
    assert_eq!(host.rlvs(&["ipvsadm", "-S", "-n"]).ok(), saved);
    host.rlvs(&["detach"]).ok();
}

#[test]
fn a_foreign_xdp_program_is_named_with_the_way_round_it() {
    let host = Host::new(PROGRAM, "foreign");
    let mut rtnetlink = Rtnetlink::open_in(&host.namespace).unwrap();
    let index = rtnetlink.link("eth0").unwrap().index;
    host.namespace.run(|| attach_pass(&mut rtnetlink, index)).unwrap().unwrap();
    let before = host.hooks();
    let refused = host.rlvs(&["attach", "--mode", "native", "eth0"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    for words in ["eth0", "another XDP program", "`--mode tc`"] {
        assert!(refused.errors.contains(words), "{refused:?}");
    }
    assert_eq!(host.hooks(), before, "a refused attachment has left something");
    assert_eq!(host.forwarding(), ["0", "0"]);
    assert!(host.namespace.run(|| pins::open().unwrap().is_none()).unwrap());
    assert_eq!(host.rlvs(&["attach", "--mode", "tc", "eth0"]).ok(), "rlvs: eth0 attached: TC\n");
    assert_eq!(host.hooks(), [before.clone(), vec!["rlvs_tc".to_owned()]].concat());
    host.rlvs(&["detach"]).ok();
    assert_eq!(host.hooks(), before);
}

#[test]
fn without_capabilities_each_command_names_them_and_changes_nothing() {
    let Some(setpriv) = tool("setpriv") else { return };
    let host = Host::new(PROGRAM, "weak");
    let (hooks, forwarding) = (host.hooks(), host.forwarding());
    let folder = std::env::temp_dir().join(format!("rlvs-e2e-{}", std::process::id()));
    let copy = folder.join("rlvs");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(PROGRAM, &copy).unwrap();
    let copy = copy.display().to_string();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"].as_slice();
    let mere_root = ["--bounding-set=-all", "--inh-caps=-all"].as_slice();
    for who in [nobody, mere_root] {
        for command in [
            ["attach", "eth0"].as_slice(),
            &["ipvsadm", "-A", "-t", "192.168.1.100:80", "-s", "rr"],
        ] {
            let words: Vec<&str> =
                who.iter().chain([&copy.as_str()]).chain(command).copied().collect();
            let said = run(&host.namespace, &setpriv, &words);
            assert!(said.status.is_some_and(|status| status != 0), "{who:?} {said:?}");
            assert!(said.errors.contains("CAP_"), "{who:?} {command:?}: {said:?}");
            assert_eq!(said.output, "", "{who:?} {command:?}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!((host.hooks(), host.forwarding()), (hooks, forwarding));
    assert!(host.namespace.run(|| pins::open().unwrap().is_none()).unwrap());
}

/// Runs a script where /run and the process numbers are its own, so that `rlvs` takes its first
/// process for the machine's.
fn on_a_machine_of_its_own(script: &str) -> Said {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-euc", script, "sh", PROGRAM]).stdin(Stdio::null());
    command.output().unwrap().into()
}

#[test]
fn uninstalling_leaves_nothing_in_any_namespace() {
    let (Some(_), Some(_)) = (tool("unshare"), tool("bpftool")) else { return };
    let said = on_a_machine_of_its_own(
        r#"
        mount -t tmpfs none /run
        ip netns add other
        for enter in "" "ip netns exec other"; do
            $enter ip link add eth0 type veth peer name peer0
            $enter ip address add 10.9.8.7/24 dev eth0
            $enter ip link set eth0 up
            $enter ip link set peer0 up
            $enter "$1" ipvsadm -A -t 10.9.8.7:80 -s rr
            $enter "$1" ipvsadm -L -n | grep 10.9.8.7:80
            $enter "$1" status | grep 'interface     eth0: TC'
        done
        numbers=$(for pin in /run/rlvs/bpf/ns-*/program_tc; do
            bpftool prog show pinned "$pin" | sed -n 's/^\([0-9]*\):.*name rlvs_tc.*/\1/p'
        done)
        test "$(echo $numbers | wc -w)" = 2
        ls /run/rlvs/bpf | grep -c ^ns-
        # What a master and a lab leave.
        mkdir -p /run/rlvs/vrrp /run/rlvs/lab
        echo >/run/rlvs/vrrp/1-eth0-4-51
        echo >/run/rlvs/lab/lock
        "$1" upgrade --all | sed 's/namespace [0-9]*:/namespace N:/' | sort
        "$1" uninstall
        test ! -e /run/rlvs
        ! grep /run/rlvs /proc/mounts
        for enter in "" "ip netns exec other"; do
            $enter "$1" status || echo "status: $?"
            test "$($enter cat /proc/sys/net/ipv4/conf/lo/forwarding)" = 0
            test "$($enter cat /proc/sys/net/ipv6/conf/lo/forwarding)" = 0
        done
        # A link holds its program: none is left when these are gone, which takes a moment.
        for number in $numbers; do
            tries=0
            while bpftool prog show id "$number" >/dev/null 2>&1; do
                tries=$((tries + 1))
                test "$tries" -lt 5000
            done
        done
        "$1" ipvsadm -A -t 10.9.8.7:80
        "$1" uninstall --json
        "#,
    );
    let text = said.clone().ok();
    let upgraded = "rlvs: network namespace N: runs this version's programs\n\
                    rlvs: this network namespace: runs this version's programs\n";
    assert!(text.contains(upgraded), "{said:?}");
    assert!(
        text.contains("programs\nrlvs: removed 2 data plane(s) and /run/rlvs/bpf\n"),
        "{said:?}"
    );
    assert_eq!(text.matches("not attached").count(), 2, "{said:?}");
    let line = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    e2e::schema::check("uninstall", &line);
    assert_eq!(line["removed"], 1);
}

/// Returns the numbers of the maps that are the programs' own, and of the programs.
fn programs(namespace: &Namespace) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let stages = || {
        let folder = pins::open().unwrap().unwrap();
        let id = |name| MapInfo::from_pin(folder.path(name)).unwrap().id();
        ["stages_xdp", "stages_tc"].map(id)
    };
    (BTreeSet::from(namespace.run(stages).unwrap()), pinned(namespace).1)
}

#[test]
fn programs_are_exchanged_under_load_and_no_connection_notices() {
    let (Some(wrk), Some(_)) = (tool("wrk"), tool("nginx")) else { return };
    let stage = Stage::attached(Wiring::Tuned, PROGRAM);
    stage.ipvsadm("--set 900 2 2").ok();
    let target = SocketAddr::new(VIPS[0].of(Family::V4), 80);
    stage.serve("-t", target, Method::Nat, 80);
    let echo = SocketAddr::new(VIPS[1].of(Family::V4), 7);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, 7, Some(server.title));
        udp_server(namespace, echo, "");
    }
    stage.serve("-t", echo, Method::Direct, 7);
    stage.serve("-u", echo, Method::Direct, 7);
    let director = stage.lab.director();
    let others = OtherObjects::new("exchanged", PROGRAM);
    let mut held: Vec<_> = stage.as_client(|| (0..8).map(|_| connect(echo).unwrap()).collect());
    let mut command = Command::new(wrk);
    command.args(["-t1", "-c8", "-d120s", "-H", "Connection: close"]);
    command.arg(format!("http://{target}/")).stdin(Stdio::null()).stdout(Stdio::piped());
    inside(stage.lab.client(), &mut command);
    let mut load = command.spawn().unwrap();
    let saved = stage.ipvsadm("-S -n").ok();
    // There and back: by the command, and by one that only adds what needs a stage more.
    for turn in ["there", "back"] {
        let before = programs(director);
        if turn == "there" {
            let said = others.rlvs(director, &["upgrade"]).ok();
            assert!(said.contains(": runs this version's programs from now on\n"), "{said}");
            assert!(!others.rlvs(director, &["upgrade"]).ok().contains("from now on"));
        } else {
            stage.ipvsadm("-A -f 7 -s rr -p 60").ok();
            stage.ipvsadm("-D -f 7").ok();
        }
        let after = programs(director);
        assert!(before.0.is_disjoint(&after.0) && before.1.is_disjoint(&after.1), "{turn}");
        wait_until("what the others had", &Vec::new(), || left(&before));
        for connection in &mut held {
            connection.stream.write_all(turn.as_bytes()).unwrap();
            let mut said = vec![0; turn.len()];
            std::io::Read::read_exact(&mut connection.stream, &mut said).unwrap();
            assert_eq!(said, turn.as_bytes());
        }
    }
    assert_eq!(load.try_wait().unwrap(), None, "the load ended before the last exchange");
    kill(Pid::from_raw(load.id() as i32), Signal::SIGINT).unwrap();
    let said = Said::from(load.wait_with_output().unwrap()).ok();
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    assert_eq!(stage.ipvsadm("-S -n").ok(), saved);
    the_sweep_runs(&stage, echo);
}

/// Two datagrams make connections of two seconds, which vanish.
fn the_sweep_runs(stage: &Stage, echo: SocketAddr) {
    let counts = || -> Vec<(u32, u32)> {
        let rows = stage.counts("-u", echo);
        rows.into_iter().map(|(_, active, idle)| (active, idle)).collect()
    };
    stage.as_client(|| {
        for _ in 0..2 {
            let socket = udp_client(echo).unwrap();
            socket.send(b"x").unwrap();
            assert_eq!(socket.recv(&mut [0; 4]).unwrap(), 1);
        }
    });
    assert_eq!(counts(), [(0, 1), (0, 1)]);
    wait_until("UDP connections", &vec![(0, 0), (0, 0)], counts);
}

fn start_restore(stage: &Stage) -> Child {
    let mut command = stage.ipvsadm_command("-R");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// How many restores are killed under one load.
const KILLS: u16 = 20;

#[test]
fn killing_our_processes_under_load_fails_no_request() {
    let (Some(wrk), Some(_)) = (tool("wrk"), tool("nginx")) else { return };
    for (wiring, method) in [(Wiring::Plain, Method::Nat), (Wiring::Tuned, Method::Direct)] {
        let stage = Stage::attached(wiring, PROGRAM);
        let target = stage.serve("-t", SocketAddr::new(VIPS[0].of(Family::V4), 80), method, 80);
        let saved = stage.ipvsadm("-S -n").ok();
        let mut command = Command::new(&wrk);
        // A new connection for each request: every one is scheduled.
        command.args(["-t1", "-c8", "-d120s", "-H", "Connection: close"]);
        command.arg(format!("http://{target}/")).stdin(Stdio::null()).stdout(Stdio::piped());
        inside(stage.lab.client(), &mut command);
        let mut load = command.spawn().unwrap();
        for killed in 0..KILLS {
            let mut restore = start_restore(&stage);
            let mut lines = restore.stdin.take().unwrap();
            writeln!(lines, "-A -t 192.168.1.207:{} -s wrr", 1000 + killed).unwrap();
            let service = format!("192.168.1.207:{}", 1000 + killed);
            wait_for("the restore at work", || {
                let status = restore.try_wait().unwrap();
                assert_eq!(status, None);
                // Its first line is carried out, and it waits for the next.
                let saved = stage.ipvsadm("-S -n").ok();
                if saved.contains(&service) { Ok(()) } else { Err(format!("no {service}")) }
            });
            restore.kill().unwrap();
            restore.wait().unwrap();
        }
        assert_eq!(load.try_wait().unwrap(), None, "the load ended before the last kill");
        // It ends and reports.
        kill(Pid::from_raw(load.id() as i32), Signal::SIGINT).unwrap();
        let said = Said::from(load.wait_with_output().unwrap()).ok();
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        let after = stage.ipvsadm("-S -n").ok();
        for line in saved.lines() {
            assert!(after.contains(line), "{line} is gone:\n{after}");
        }
    }
}

#[test]
fn a_restore_that_waits_for_its_input_keeps_nobody_waiting() {
    let host = Host::new(PROGRAM, "waits");
    host.rlvs(&["attach", "eth0"]).ok();
    let mut command = Command::new(PROGRAM);
    command.args(["ipvsadm", "-R"]).stdin(Stdio::piped());
    inside(&host.namespace, &mut command);
    let mut restore = command.spawn().unwrap();
    let mut lines = restore.stdin.take().unwrap();
    for port in [80, 81] {
        lines.write_all(format!("-A -t 192.168.1.100:{port} -s rr\n").as_bytes()).unwrap();
        wait_for("what was restored so far", || {
            let mut command = Command::new(PROGRAM);
            command.args(["ipvsadm", "-S", "-n"]).stdin(Stdio::null()).stdout(Stdio::piped());
            inside(&host.namespace, &mut command);
            let mut child = command.spawn().unwrap();
            if process::wait_for(&mut child, TIME_MAX).unwrap().is_none() {
                child.kill().unwrap();
                panic!("a listing waits for a restore that waits for its input");
            }
            let saved = Said::from(child.wait_with_output().unwrap()).ok();
            if saved.contains(&format!("192.168.1.100:{port} ")) { Ok(()) } else { Err(saved) }
        });
    }
    drop(lines);
    assert!(restore.wait().unwrap().success());
}

#[test]
fn connections_expire_with_no_process_of_ours() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.ipvsadm("--set 900 2 2").ok();
    let timeouts = stage.ipvsadm("-L --timeout").ok();
    assert_eq!(timeouts, "Timeout (tcp tcpfin udp): 900 2 2\n");
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, 7, Some(server.title));
        for family in [Family::V4, Family::V6] {
            udp_server(namespace, SocketAddr::new(VIPS[0].of(family), 7), "");
        }
    }
    for family in [Family::V4, Family::V6] {
        let target = SocketAddr::new(VIPS[0].of(family), 7);
        stage.serve("-t", target, Method::Direct, 7);
        stage.serve("-u", target, Method::Direct, 7);
        let count = |protocol: &str| -> Vec<(u32, u32)> {
            let rows = stage.counts(protocol, target);
            rows.into_iter().map(|(_, active, idle)| (active, idle)).collect()
        };
        let held = stage.as_client(|| {
            let held = connect(target).unwrap();
            for _ in 0..4 {
                drop(connect(target).unwrap());
                let socket = udp_client(target).unwrap();
                socket.send(b"x").unwrap();
                assert_eq!(socket.recv(&mut [0; 4]).unwrap(), 1);
            }
            held
        });
        let begin = Instant::now();
        assert_eq!(count("-u"), [(0, 2), (0, 2)]);
        wait_until("UDP connections", &vec![(0, 0), (0, 0)], || count("-u"));
        wait_until("closed TCP connections", &vec![(0, 0), (1, 0)], || count("-t"));
        assert!(begin.elapsed() > Duration::from_secs(1), "gone after {:?}", begin.elapsed());
        // What is alive stays.
        let mut stream = &held.stream;
        stream.write_all(b"alive").unwrap();
        std::io::Read::read_exact(&mut stream, &mut [0; 5]).unwrap();
    }
}
