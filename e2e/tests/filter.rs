//! The TC program on a filter of `clsact`, as on kernels without TCX.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use e2e::lab::{Method, OtherObjects, Stage, connect, run, tcp_server, tool, wait_for};
use rlvs::lab::topology::{DIRECTOR, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::dataplane::attach::{self, Attached, Mode, Options, TcHook};
use rlvs_linux::dataplane::pins;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::route::Rtnetlink;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 7;

fn attach(namespace: &Namespace, mode: Mode) -> Vec<Attached> {
    let interfaces = ["eth0", "eth1"].map(str::to_owned).to_vec();
    let mode = Some(mode);
    let options = Options { mode, interfaces, tc_hook: TcHook::Filter, ..Options::default() };
    namespace.run(|| attach::attach(&options)).unwrap().unwrap()
}

fn attached(mode: Mode, new: bool) -> Vec<Attached> {
    let on = |name: &str| Attached { name: name.to_owned(), mode, new };
    vec![on("eth0"), on("eth1")]
}

fn tc(namespace: &Namespace, arguments: &str) -> String {
    let words: Vec<&str> = arguments.split_ascii_whitespace().collect();
    run(namespace, &tool("tc").unwrap(), &words).ok()
}

fn filters(namespace: &Namespace) -> String {
    tc(namespace, "filter show dev eth0 ingress")
}

/// How many filters of ours are on eth0.
fn ours(namespace: &Namespace) -> usize {
    filters(namespace).lines().filter(|line| line.contains(" rlvs direct-action ")).count()
}

fn has_qdisc(namespace: &Namespace) -> bool {
    tc(namespace, "qdisc show dev eth0").contains("clsact")
}

fn names_answering(stage: &Stage, method: Method, vip: usize) -> Vec<String> {
    let target = SocketAddr::new(VIPS[vip].of(Family::V4), PORT);
    stage.serve("-t", target, method, PORT);
    let mut names = stage.as_client(|| [(); 2].map(|()| connect(target).unwrap().name)).to_vec();
    names.sort();
    names
}

#[test]
fn connections_pass_by_the_filter_and_detaching_leaves_nothing() {
    let others = OtherObjects::new("filter", PROGRAM);
    for (wiring, mode) in [(Wiring::Plain, Mode::Tc), (Wiring::Tuned, Mode::Native)] {
        let stage = Stage::bare(wiring, PROGRAM);
        let director = stage.lab.director();
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            tcp_server(namespace, PORT, Some(server.title));
        }
        assert_eq!(attach(director, mode), attached(mode, true));
        assert_eq!((ours(director), has_qdisc(director)), (1, true));
        // A second time, also by the command, nothing is done.
        assert_eq!(attach(director, mode), attached(mode, false));
        let said = stage.rlvs(&["attach"]).ok();
        let line = format!("rlvs: eth0 was attached: {}\n", mode.name());
        assert!(said.contains(&line), "{said}");
        assert_eq!(ours(director), 1);
        for (vip, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(names_answering(&stage, method, vip), REAL_SERVERS.map(|one| one.title));
        }
        let status = stage.rlvs(&["status"]).ok();
        assert!(status.contains(&format!("interface     eth0: {} (", mode.name())), "{status}");
        // Another version's programs take the filters over.
        let before = filters(director);
        let said = others.rlvs(director, &["upgrade"]).ok();
        assert!(said.contains(": runs this version's programs from now on\n"), "{said}");
        assert_eq!(ours(director), 1);
        assert_ne!(filters(director), before);
        let of_another = others.rlvs(director, &["status"]).ok();
        for line in status.lines().filter(|line| line.starts_with("interface")) {
            assert!(of_another.lines().any(|other| other == line), "{line}: {of_another}");
        }
        let target = SocketAddr::new(VIPS[0].of(Family::V4), PORT);
        stage.as_client(|| drop(connect(target).unwrap()));
        stage.rlvs(&["detach"]).ok();
        assert_eq!((filters(director), has_qdisc(director)), (String::new(), false));
    }
}

#[test]
fn what_others_have_there_stays_and_sees_what_is_not_ours() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let director = stage.lab.director();
    let mut rtnetlink = Rtnetlink::open_in(director).unwrap();
    rtnetlink.add_veth("spare0", "spare1", director).unwrap();
    for name in ["spare0", "spare1"] {
        let index = rtnetlink.link(name).unwrap().index;
        rtnetlink.set_up(index, true).unwrap();
    }
    tc(director, "qdisc add dev eth0 clsact");
    // One that has our first priority and matches nothing, and one that counts what comes to it.
    let add = "filter add dev eth0 ingress protocol";
    tc(director, &format!("{add} ip pref 1 u32 match ip dst 203.0.113.1/32 classid 1:1"));
    let mirror = "action mirred egress mirror dev spare0";
    tc(director, &format!("{add} ip pref 9 u32 match ip protocol 17 0xff {mirror}"));
    let before = filters(director);
    assert_eq!(attach(director, Mode::Tc), attached(Mode::Tc, true));
    assert_eq!(ours(director), 1);
    let counted = || tc(director, "-s filter show dev eth0 ingress pref 9");
    assert!(counted().contains(" 0 bytes 0 pkt"), "{}", counted());
    let to = SocketAddr::new(IpAddr::V4(DIRECTOR.v4), 9);
    stage.as_client(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap());
    wait_for("the filter behind ours", || {
        let text = counted();
        if text.contains(" 0 bytes 0 pkt") { Err(text) } else { Ok(()) }
    });
    stage.rlvs(&["detach"]).ok();
    assert_eq!((filters(director), has_qdisc(director)), (before, true));
}

#[test]
fn a_qdisc_of_ours_stays_while_others_use_it() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let director = stage.lab.director();
    attach(director, Mode::Tc);
    tc(director, "filter add dev eth0 egress protocol ip pref 1 u32 match u32 0 0 classid 1:1");
    stage.rlvs(&["detach"]).ok();
    assert_eq!((filters(director), has_qdisc(director)), (String::new(), true));
    assert!(tc(director, "filter show dev eth0 egress").contains("u32"));
    assert!(!tc(director, "qdisc show dev eth1").contains("clsact"));
}

#[test]
fn a_filter_that_is_lost_or_forgotten_is_set_anew_and_not_twice() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let director = stage.lab.director();
    attach(director, Mode::Tc);
    tc(director, "qdisc delete dev eth0 clsact");
    let status = stage.rlvs(&["status"]).ok();
    assert!(status.contains("eth0: not attached") && status.contains("eth1: TC"), "{status}");
    assert!(attach(director, Mode::Tc)[0].new);
    assert_eq!(ours(director), 1);
    // A record that somebody has removed.
    let folder = director.run(|| pins::open().unwrap().unwrap()).unwrap();
    let index = Rtnetlink::open_in(director).unwrap().link("eth0").unwrap().index;
    fs::remove_file(folder.path(&format!("filter_{index}_1"))).unwrap();
    assert!(attach(director, Mode::Tc)[0].new);
    assert_eq!(ours(director), 1);
    stage.rlvs(&["detach"]).ok();
    assert_eq!((filters(director), has_qdisc(director)), (String::new(), false));
}

#[test]
fn what_a_killed_attachment_left_is_collected_from_elsewhere() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let director = stage.lab.director();
    attach(director, Mode::Tc);
    let name = director.run(|| pins::open().unwrap().unwrap().shown()).unwrap();
    let name = Path::new(&name).file_name().unwrap().to_str().unwrap();
    let root = pins::root().unwrap().unwrap();
    // As if it had been killed before its folder had its name.
    fs::rename(root.path(name), root.path(&format!("{name}-new"))).unwrap();
    let elsewhere = Namespace::create(&format!("rlvs-e2e-{}-elsewhere", std::process::id()));
    let elsewhere = elsewhere.unwrap();
    let said = run(&elsewhere, Path::new(PROGRAM), &["status"]);
    netns::delete(elsewhere.name()).unwrap();
    assert!(said.output.starts_with("not attached"), "{said:?}");
    assert_eq!((filters(director), has_qdisc(director)), (String::new(), false));
    assert!(!root.names().unwrap().iter().any(|one| one.starts_with(name)));
}

#[test]
fn a_capture_says_what_it_cannot_see_of_filters() {
    let stage = Stage::bare(Wiring::Tuned, PROGRAM);
    attach(stage.lab.director(), Mode::Native);
    let said = stage.rlvs(&["capture", "--seconds", "1"]);
    for name in ["eth0", "eth1"] {
        let notice = format!("rlvs: {name}: TC is a filter there");
        assert_eq!(said.errors.matches(&notice).count(), 1, "{said:?}");
    }
    assert_eq!(said.status, Some(0), "{said:?}");
    stage.rlvs(&["detach"]).ok();
    stage.rlvs(&["attach", "--mode", "native"]).ok();
    let said = stage.rlvs(&["capture", "--seconds", "1"]);
    assert!(!said.errors.contains("is a filter"), "{said:?}");
}
