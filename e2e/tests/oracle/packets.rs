//! Every packet that comes out, byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use e2e::crossing::{self, Balancer};
use regex::Regex;

use crate::play::Play;
use crate::{guest, scenes};

const GOLDEN: &str = "tests/oracle/golden/packets.txt";
const RECORD: &str = "RLVS_RECORD";

/// Where ours differs on purpose: scenario and step, and why; docs/differences.md says it to users.
const DIFFERENT: [(&str, &str); 22] = [
    ("fragments > pieces, the last first", "what comes before its datagram's first is the stack's"),
    ("^(ipip|gue|gre).* fragments > pieces$", "fragments enter the tunnel one by one"),
    (
        "^(ipip|gue|gre).* too long > .* true",
        "the packet is quoted with the time to live that it had",
    ),
    (
        r"^(ipip|gue|gre)(\+c)?6(in4)? too long > .* false",
        "the same, where nothing says that it may be cut",
    ),
    (r"^(ipip|gue|gre)(\+c)?4in6 too long > .* false", "nothing is cut for a tunnel over IPv6"),
    (r"^(gue|gre)\+c\S+ errors of clients > ", "without an outer checksum"),
    (r"^(gue|gre)\+c\S+ udp > w", "the outer checksum comes from the inner one"),
    ("^nat4 udp > .*without checksum", "a datagram without checksum stays so"),
    ("^strangers . > from port 20", "no port of a client is special"),
    ("6in6 errors of servers > -", "the kernel sends none of them on"),
    (
        r"4in4 errors of servers > .*\[3, 4\]",
        "the kernel's size is that of what it knew of the way",
    ),
    ("sctp oddities > too long$", "the packet is quoted with the time to live that it had"),
    (
        "ipip(6|6in4|4in6) sctp oddities > too long, to be cut",
        "quoted with its time to live, and not cut over IPv6",
    ),
    ("(4in6|6in4) errors of servers > -", "the kernel tells such a client nothing"),
    ("^nat. sctp oddities > wrong checksum", "the checksum is moved along, not made anew"),
    ("^nat6 (sctp oddities|mark|any port) > error back", "the kernel sends none of them on"),
    (r"^ipip\S+ (sctp oddities|mark|any port) > pieces$", "fragments enter the tunnel one by one"),
    ("^nat. sctp oddities > pieces", "NAT does not change the port of a fragment of SCTP"),
    (
        "^ipip(4in6|6in4) mark > look",
        "the kernel counts what the mark's service of the other version has left at the server",
    ),
    ("nat. any port > look", "a template of datagrams is not told to be assured"),
    ("here . > .* last hop", "whoever asks for a service is answered as by a router"),
    (
        "^here( at any port)? 6 > (-m (-u|--sctp-service)|(any port|mark) udp) ",
        "the kernel sends none of its own stack's errors on",
    ),
];

/// Plays all scenarios.
fn play(balancer: Balancer) -> String {
    let text = std::sync::Mutex::new(String::new());
    crossing::run("crossing", balancer, |mut crossing| {
        let mut all = String::new();
        for (number, (name, family, scenario)) in (0..).zip(scenes::all()) {
            let mut play = Play::new(&mut crossing, number, family);
            scenario(&mut play);
            all += &format!("# {name}\n{}", play.end());
        }
        *text.lock().unwrap() = all;
    });
    text.into_inner().unwrap()
}

/// What came of each step, by scenario and step; commands and listings belong to the step before.
fn steps(text: &str) -> BTreeMap<(String, String), String> {
    let mut steps: BTreeMap<(String, String), String> = BTreeMap::new();
    let (mut scenario, mut step) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# ") {
            (scenario, step) = (name.to_owned(), "begin".to_owned());
        } else if let Some(name) = line.strip_prefix("> ") {
            name.clone_into(&mut step);
        }
        let of = steps.entry((scenario.clone(), step.clone())).or_default();
        *of += &format!("{line}\n");
    }
    steps
}

#[test]
fn ours_does_what_the_kernels_has_done() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let recorded = std::fs::read_to_string(&path).unwrap();
    let (theirs, ours) = (steps(&recorded), steps(&play(Balancer::Ours)));
    let keys = |steps: &BTreeMap<_, _>| steps.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&theirs), keys(&ours), "other steps are recorded");
    let mut wrong = String::new();
    let listed: Vec<Regex> = DIFFERENT.iter().map(|(at, _)| Regex::new(at).unwrap()).collect();
    let mut used = [false; DIFFERENT.len()];
    for (((scenario, step), theirs), ours) in theirs.iter().zip(ours.values()) {
        if theirs == ours {
            continue;
        }
        let at = format!("{scenario} > {step}");
        match listed.iter().position(|listed| listed.is_match(&at)) {
            Some(index) => used[index] = true,
            None => wrong += &format!("{at}\n the kernel's:\n{theirs} ours:\n{ours}\n"),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for ((at, why), used) in DIFFERENT.iter().zip(used) {
        assert!(used, "{at}: different no longer ({why})");
    }
}

#[test]
fn the_kernels_does_what_is_recorded() {
    if guest::is_guest() {
        return guest::report(&play(Balancer::Kernel));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let now = guest::run("packets::the_kernels_does_what_is_recorded");
    if std::env::var_os(RECORD).is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let (recorded, now) = (steps(&std::fs::read_to_string(&path).unwrap()), steps(&now));
    let changed = now.iter().find(|(at, came)| recorded.get(at) != Some(came));
    assert_eq!(changed, None, "was {:?}", changed.and_then(|(at, _)| recorded.get(at)));
    assert_eq!(recorded.len(), now.len());
}
