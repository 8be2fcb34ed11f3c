//! Virtual routers of ours beside those of the real keepalived, on a wire between two namespaces.
//!
//! keepalived is 10.9.0.1, fe80::ff:fe00:901; ours is 2. What is on the wire is recorded on our
//! side, with the kernel's times.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::lab::{inside, run, tool, wait_for};
use nix::sys::signal::Signal;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::process::{Guard, Handle};
use rlvs_linux::route::{Mac, Prefix, Rtnetlink};
use rlvs_linux::sysctl;

const NODE: &str = env!("CARGO_BIN_EXE_vrrp-node");
/// How much later than due something may come on a busy machine.
const LATE: Duration = Duration::from_millis(250);
/// keepalived and the kernel's clock round.
const EARLY: Duration = Duration::from_millis(3);
const THEIRS: u8 = 1;
const OURS: u8 = 2;

/// One way to configure both.
struct Variant {
    name: &'static str,
    version: u8,
    family: u8,
    interval: Duration,
    password: bool,
    unicast: bool,
}

const V2: Variant = Variant {
    name: "v2",
    version: 2,
    family: 4,
    interval: Duration::from_secs(1),
    password: true,
    unicast: false,
};
const V3: Variant = Variant { name: "v3", version: 3, password: false, ..V2 };
const TENTH: Variant = Variant { name: "tenth", interval: Duration::from_millis(100), ..V3 };
const UNICAST: Variant = Variant { name: "unicast", unicast: true, ..TENTH };
const IPV6: Variant = Variant { name: "ipv6", family: 6, ..TENTH };

impl Variant {
    /// Returns the address that moves.
    fn vip(&self) -> IpAddr {
        let text = if self.family == 4 { "10.9.0.100" } else { "fe80::9:100" };
        text.parse().unwrap()
    }

    fn vips(&self) -> &'static [&'static str] {
        if self.family == 4 { &["10.9.0.100/24"] } else { &["fe80::9:100/64", "fd09::100/64"] }
    }

    fn skew(&self, priority: u32) -> Duration {
        let unit = if self.version == 2 { Duration::from_secs(1) } else { self.interval };
        unit * (256 - priority) / 256
    }

    fn master_down(&self, priority: u32) -> Duration {
        self.interval * 3 + self.skew(priority)
    }

    fn keepalived(&self, priority: u8) -> String {
        let password = if self.password {
            "authentication {\n auth_type PASS\n auth_pass 1234\n }"
        } else {
            ""
        };
        let unicast = if self.unicast {
            "unicast_src_ip 10.9.0.1\n unicast_peer {\n 10.9.0.2\n }"
        } else {
            ""
        };
        let interval = self.interval.as_secs_f64();
        let (version, vips) = (self.version, self.vips().join("\n "));
        format!(
            "global_defs {{\n router_id A\n vrrp_garp_master_delay 1\n}}\n\
             vrrp_instance VI_1 {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n \
             version {version}\n priority {priority}\n advert_int {interval}\n {password}\n {unicast}\n \
             virtual_ipaddress {{\n {vips}\n }}\n}}\n"
        )
    }

    fn node(&self, priority: u8) -> Vec<String> {
        let (version, family) = (self.version, self.family);
        let interval = self.interval.as_millis();
        let mut words = vec![
            format!("version={version}"),
            format!("family={family}"),
            format!("priority={priority}"),
            format!("interval_ms={interval}"),
        ];
        words.extend(self.vips().iter().map(|vip| format!("vip={vip}")));
        words.extend(self.password.then(|| "password=1234".to_owned()));
        words.extend(self.unicast.then(|| "peer=10.9.0.1".to_owned()));
        words
    }
}

/// Two namespaces, the wire between them and a recorder.
struct Wire {
    theirs: Namespace,
    ours: Namespace,
    folder: PathBuf,
    _recorder: Guard,
    started: u32,
}

impl Wire {
    fn new(variant: &Variant) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("rlvs-vrrp-{}-{number}-{}", std::process::id(), variant.name);
        let namespaces =
            [THEIRS, OURS].map(|side| Namespace::create(&format!("{name}-{side}")).unwrap());
        let [theirs, ours] = namespaces;
        Rtnetlink::open_in(&theirs).unwrap().add_veth("eth0", "eth0", &ours).unwrap();
        for (side, namespace) in [(THEIRS, &theirs), (OURS, &ours)] {
            namespace.run(|| address(side)).unwrap();
        }
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir(&folder).unwrap();
        let recording = folder.join("wire.pcap");
        let mut tcpdump = Command::new(tool("tcpdump").unwrap());
        tcpdump.args(["-i", "eth0", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&recording);
        let recorder = spawn(&ours, &mut tcpdump, &folder.join("tcpdump.log"));
        wait_for("the recorder", || match fs::metadata(&recording) {
            Ok(data) if data.len() >= 24 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        Self { theirs, ours, folder, _recorder: recorder, started: 0 }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Starts a node of ours; returns it and the name of its log.
    fn node(&mut self, words: &[String]) -> (Guard, String) {
        self.started += 1;
        let log = format!("node-{}.log", self.started);
        let guard = spawn(&self.ours, Command::new(NODE).args(words), &self.folder.join(&log));
        (guard, log)
    }

    fn wait_log(&self, log: &str, text: &str) {
        wait_for(text, || {
            let said = self.log(log);
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    }

    /// Returns what the wire has carried so far.
    fn frames(&self) -> Vec<Frame> {
        frames(&fs::read(self.folder.join("wire.pcap")).unwrap())
    }

    /// Returns when advertisements were seen, of whom, with which priority.
    fn adverts(&self) -> Vec<Advert> {
        self.frames().iter().filter_map(Advert::of).collect()
    }

    /// Waits for an advertisement behind a time.
    fn wait_advert(&self, from: u8, priority: u8, after: Duration) -> Duration {
        wait_for(&format!("an advertisement of {from} with {priority}"), || {
            let adverts = self.adverts();
            let is_it =
                |one: &&Advert| one.time > after && one.from == from && one.priority == priority;
            adverts.iter().find(is_it).map(|one| one.time).ok_or(format!("{adverts:?}"))
        })
    }

    fn has_vip(&self, variant: &Variant) -> bool {
        let link = Rtnetlink::open_in(&self.ours).unwrap().link("eth0").unwrap();
        link.addresses.iter().any(|prefix| prefix.address == variant.vip())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let names = [self.theirs.name().to_owned(), self.ours.name().to_owned()];
        if std::thread::panicking() {
            eprintln!("logs and recording are left in {}", self.folder.display());
        } else {
            fs::remove_dir_all(&self.folder).unwrap();
        }
        for name in names {
            netns::delete(&name).ok();
        }
    }
}

fn address(side: u8) {
    // No waiting for duplicates of link-local addresses.
    sysctl::write("net/ipv6/conf/eth0/accept_dad", "0").unwrap();
    let mut rtnetlink = Rtnetlink::open().unwrap();
    let index = rtnetlink.link("eth0").unwrap().index;
    rtnetlink.set_mac(index, Mac([2, 0, 0, 0, 9, side])).unwrap();
    rtnetlink.set_up(index, true).unwrap();
    let address = IpAddr::from([10, 9, 0, side]);
    rtnetlink.add_address(index, Prefix { address, bits: 24 }).unwrap();
}

fn spawn(namespace: &Namespace, command: &mut Command, log: &Path) -> Guard {
    let log = File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    inside(namespace, command);
    Guard::new(command.spawn().unwrap())
}

fn end(mut guard: Guard, signal: Signal) {
    Handle::open(guard.pid().unwrap()).unwrap().signal(signal).unwrap();
    assert!(guard.wait_for(Duration::from_secs(10)).unwrap().is_some());
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The real keepalived.
struct Keepalived {
    guard: Guard,
    child: PathBuf,
}

impl Keepalived {
    fn start(wire: &mut Wire, variant: &Variant, priority: u8) -> Self {
        wire.started += 1;
        let log = format!("keepalived-{}.log", wire.started);
        let file = |name: &str| wire.folder.join(name);
        fs::write(file("keepalived.conf"), variant.keepalived(priority)).unwrap();
        let mut command = Command::new(tool("keepalived").unwrap());
        command.args(["-n", "-l", "-D", "-P", "-f"]).arg(file("keepalived.conf"));
        command.arg("-p").arg(file("parent.pid")).arg("-r").arg(file("child.pid"));
        let guard = spawn(&wire.theirs, &mut command, &file(&log));
        let child = file("child.pid");
        wait_for("keepalived", || {
            let said = wire.log(&log);
            if said.contains("Entering BACKUP STATE") { Ok(()) } else { Err(said) }
        });
        Self { guard, child }
    }

    fn child(&self) -> Handle {
        let pid = fs::read_to_string(&self.child).unwrap().trim().parse().unwrap();
        Handle::open(pid).unwrap()
    }

    /// Dies as a host does, so that nothing is said; its addresses stay.
    fn die(self) {
        let child = self.child();
        let parent = Handle::open(self.guard.pid().unwrap()).unwrap();
        parent.signal(Signal::SIGSTOP).unwrap();
        child.signal(Signal::SIGKILL).unwrap();
        end(self.guard, Signal::SIGKILL);
    }

    /// Ends in order.
    fn stop(self) {
        end(self.guard, Signal::SIGTERM);
    }
}

/// keepalived found nothing wrong with what it heard of us.
fn assert_content(wire: &Wire) {
    let complaints = [
        "invalid",
        "Invalid",
        "mismatch",
        "expect",
        "rror",
        "unexpected",
        "wrong",
        "bogus",
        "uplicate",
        "rejected",
        "dropp",
        "ncorrect",
    ];
    for entry in fs::read_dir(&wire.folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("keepalived-") {
            continue;
        }
        let said = wire.log(&name);
        let complaint = said.lines().find(|line| complaints.iter().any(|word| line.contains(word)));
        assert_eq!(complaint, None, "{said}");
    }
}

/// Nothing failed, and nothing was refused.
fn assert_node_content(said: &str) {
    assert!(!said.contains(" failed ") && !said.contains("refused"), "{said}");
    assert!(said.contains("rejected: {}"), "{said}");
}

/// tshark reads everything that we sent, and finds the checksums right.
fn assert_dissected(wire: &Wire) {
    let recording = wire.folder.join("wire.pcap");
    let path = recording.to_str().unwrap();
    // Not those that an ICMP error of the kernel quotes.
    let ours = "eth.src == 02:00:00:00:09:02 && vrrp && !icmp";
    let tshark = tool("tshark").unwrap();
    let fields = ["-e", "vrrp.checksum.status", "-e", "vrrp.virt_rtr_id"];
    let mut words = vec!["-r", path, "-o", "ip.check_checksum:TRUE", "-Y", ours, "-T", "fields"];
    words.extend(fields);
    let said = run(&wire.ours, &tshark, &words).ok();
    let count = wire.adverts().iter().filter(|one| one.from == OURS).count();
    assert!(count > 0);
    // 1 is right.
    assert_eq!(said.lines().collect::<Vec<_>>(), vec!["1\t51"; count], "{said}");
    let trouble = "eth.src == 02:00:00:00:09:02 && (vrrp || arp || icmpv6.type == 136) && \
         (_ws.malformed || ip.checksum.status == 0 || icmpv6.checksum.status == 0)";
    let words = ["-r", path, "-o", "ip.check_checksum:TRUE", "-Y", trouble];
    assert_eq!(run(&wire.ours, &tshark, &words).ok(), "");
}

/// A recorded frame.
#[derive(Debug)]
struct Frame {
    time: Duration,
    bytes: Vec<u8>,
}

/// Reads a recording; its last frame may not be whole yet.
fn frames(recording: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut rest = recording.get(24..).unwrap_or_default();
    while let Some((header, behind)) = rest.split_at_checked(16) {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let Some((bytes, behind)) = behind.split_at_checked(word(8).try_into().unwrap()) else {
            break;
        };
        let time = Duration::new(word(0).into(), word(4) * 1000);
        frames.push(Frame { time, bytes: bytes.to_vec() });
        rest = behind;
    }
    frames
}

impl Frame {
    /// Tells whether it announces the address.
    fn announces(&self, address: IpAddr) -> bool {
        let target = match address {
            IpAddr::V4(address) if self.bytes.get(12..14) == Some(&[8, 6]) => {
                self.bytes.get(28..32) == Some(&address.octets())
            }
            IpAddr::V6(address) if self.bytes.get(54) == Some(&136) => {
                self.bytes.get(62..78) == Some(&address.octets())
            }
            _ => false,
        };
        target && self.bytes[11] == OURS
    }
}

#[derive(Clone, Copy, Debug)]
struct Advert {
    time: Duration,
    from: u8,
    priority: u8,
}

impl Advert {
    fn of(frame: &Frame) -> Option<Self> {
        let (protocol, from, priority) = match frame.bytes.get(12..14)? {
            [8, 0] => (23, 29, 36),
            [0x86, 0xdd] => (20, 37, 56),
            _ => return None,
        };
        if *frame.bytes.get(protocol)? != 112 {
            return None;
        }
        let (from, priority) = (*frame.bytes.get(from)?, *frame.bytes.get(priority)?);
        Some(Self { time: frame.time, from, priority })
    }
}

#[track_caller]
fn assert_takes(what: &str, taken: Duration, expected: Duration) {
    let right = expected.saturating_sub(EARLY)..=expected + LATE;
    assert!(right.contains(&taken), "{what} took {taken:?}, not {expected:?}");
}

/// Ours is backup and takes over after keepalived's end in order and after its death.
fn as_backup(variant: &Variant) {
    let mut wire = Wire::new(variant);
    let keepalived = Keepalived::start(&mut wire, variant, 200);
    let (node, log) = wire.node(&variant.node(100));
    wire.wait_log(&log, "state BACKUP");
    wire.wait_advert(THEIRS, 200, Duration::ZERO);
    assert!(!wire.has_vip(variant));
    keepalived.stop();
    let resigned = wire.wait_advert(THEIRS, 0, Duration::ZERO);
    let taken = wire.wait_advert(OURS, 100, resigned);
    assert_takes("the skew", taken - resigned, variant.skew(100));
    wire.wait_log(&log, "state MASTER");
    assert!(wire.has_vip(variant));
    assert_announced(&wire, variant, taken);
    // It has priority 200, so it takes the address back after its own patience.
    let keepalived = Keepalived::start(&mut wire, variant, 200);
    let back = wire.wait_advert(THEIRS, 200, taken);
    wire.wait_log(&log, "has the higher priority");
    wait_for("the address to go", || {
        if wire.has_vip(variant) { Err("there".to_owned()) } else { Ok(()) }
    });
    wire.wait_advert(THEIRS, 200, back);
    keepalived.die();
    let died = now();
    let taken = wire.wait_advert(OURS, 100, died);
    let theirs = |one: &&Advert| one.from == THEIRS && one.time < taken;
    let last = wire.adverts().iter().rfind(theirs).unwrap().time;
    assert_takes("three intervals and skew", taken - last, variant.master_down(100));
    assert_announced(&wire, variant, taken);
    finish(&wire, node, &log, 100);
}

/// The first announcement comes right behind the address, which comes right behind the advertisement.
fn assert_announced(wire: &Wire, variant: &Variant, taken: Duration) {
    let first = wait_for("an announcement", || {
        let frames = wire.frames();
        let announces = |one: &&Frame| one.time > taken && one.announces(variant.vip());
        frames.iter().find(announces).map(|one| one.time).ok_or(format!("{} frames", frames.len()))
    });
    let gap = first - taken;
    assert!(gap < LATE, "{gap:?}");
    eprintln!("{}: announced {gap:?} behind the advertisement", variant.name);
}

/// Ends ours in order: it resigns once.
fn finish(wire: &Wire, node: Guard, log: &str, priority: u8) {
    let before = wire.adverts().iter().filter(|one| one.from == OURS && one.priority == 0).count();
    let asked = now();
    end(node, Signal::SIGTERM);
    wire.wait_advert(OURS, 0, asked);
    wire.wait_log(log, "state STOP");
    assert_node_content(&wire.log(log));
    let adverts = wire.adverts();
    let resigned = adverts.iter().filter(|one| one.from == OURS && one.priority == 0).count();
    assert_eq!(resigned - before, 1, "priority {priority}");
    assert_content(wire);
    assert_dissected(wire);
}

/// Ours is master; keepalived takes over when ours freezes, dies and ends in order.
fn as_master(variant: &Variant) {
    let mut wire = Wire::new(variant);
    let keepalived = Keepalived::start(&mut wire, variant, 100);
    let (node, log) = wire.node(&variant.node(200));
    wire.wait_log(&log, "state MASTER");
    let first = wire.wait_advert(OURS, 200, Duration::ZERO);
    assert_announced(&wire, variant, first);
    assert!(wire.has_vip(variant));
    // It goes on while others take its address away.
    let index = Rtnetlink::open_in(&wire.ours).unwrap().link("eth0").unwrap().index;
    let bits = if variant.family == 4 { 24 } else { 64 };
    let prefix = Prefix { address: variant.vip(), bits };
    let removed = now();
    Rtnetlink::open_in(&wire.ours).unwrap().delete_address(index, prefix).unwrap();
    wait_for("the address", || if wire.has_vip(variant) { Ok(()) } else { Err("gone".to_owned()) });
    let back = now() - removed;
    assert!(back < LATE, "{back:?}");
    eprintln!("{}: the address was back after {back:?}", variant.name);
    // Frozen, it is taken for dead; then it listens first, and is silent until its time has come.
    let handle = Handle::open(node.pid().unwrap()).unwrap();
    handle.signal(Signal::SIGSTOP).unwrap();
    let frozen = now();
    let taken = wire.wait_advert(THEIRS, 100, frozen);
    let ours = |one: &&Advert| one.from == OURS && one.time < taken;
    let last = wire.adverts().iter().rfind(ours).unwrap().time;
    assert_takes("keepalived's patience", taken - last, variant.master_down(100));
    wire.wait_advert(THEIRS, 100, taken);
    // Before, for it may run on before this thread does.
    let thawed = now();
    handle.signal(Signal::SIGCONT).unwrap();
    wire.wait_log(&log, "took over while this process did not run");
    let spoken = wire.wait_advert(OURS, 200, thawed);
    assert_takes("our patience", spoken - thawed, variant.master_down(200));
    // Dead, it leaves its address behind; the next one listens, for another has taken over.
    wire.wait_advert(OURS, 200, spoken);
    end(node, Signal::SIGKILL);
    let died = now();
    let taken = wire.wait_advert(THEIRS, 100, died);
    let last =
        wire.adverts().iter().rfind(|one| one.from == OURS && one.time < taken).unwrap().time;
    assert_takes("keepalived's patience", taken - last, variant.master_down(100));
    assert!(wire.has_vip(variant));
    let (node, log) = wire.node(&variant.node(200));
    wire.wait_log(&log, "state BACKUP");
    let taken = wire.wait_advert(OURS, 200, taken);
    wire.wait_log(&log, "state MASTER");
    wire.wait_advert(OURS, 200, taken);
    finish(&wire, node, &log, 200);
    let resigned = wire.wait_advert(OURS, 0, taken);
    let theirs = wire.wait_advert(THEIRS, 100, resigned);
    assert_takes("keepalived's skew", theirs - resigned, variant.skew(100));
    assert!(!wire.has_vip(variant));
    keepalived.stop();
    assert_content(&wire);
}

/// Plays both parts at once, each on a wire of its own.
fn both(variant: &Variant) {
    std::thread::scope(|scope| {
        scope.spawn(|| as_backup(variant));
        scope.spawn(|| as_master(variant));
    });
}

#[test]
fn version_2_beside_keepalived() {
    both(&V2);
}

#[test]
fn version_3_beside_keepalived() {
    both(&V3);
}

#[test]
fn tenths_of_a_second_beside_keepalived() {
    both(&TENTH);
}

#[test]
fn unicast_beside_keepalived() {
    both(&UNICAST);
}

#[test]
fn ipv6_beside_keepalived() {
    both(&IPV6);
}

#[test]
fn a_virtual_hardware_address_beside_keepalived() {
    let variant = &TENTH;
    let mut wire = Wire::new(variant);
    let keepalived = Keepalived::start(&mut wire, variant, 100);
    let mut words = variant.node(200);
    words.push("virtual_mac=vrrp.51".to_owned());
    let (node, log) = wire.node(&words);
    wire.wait_log(&log, "state MASTER");
    let taken = wire.wait_advert(OURS, 200, Duration::ZERO);
    wire.wait_advert(OURS, 200, taken);
    let mut rtnetlink = Rtnetlink::open_in(&wire.ours).unwrap();
    let link = rtnetlink.link("vrrp.51").unwrap();
    assert_eq!(link.addresses.iter().map(|one| one.address).collect::<Vec<_>>(), [variant.vip()]);
    // A client on the other side reaches the address at that hardware address.
    run(&wire.theirs, &tool("ping").unwrap(), &["-c", "1", "-W", "5", "10.9.0.100"]).ok();
    let frames = wire.frames();
    let ours = frames.iter().filter(|one| Advert::of(one).is_some_and(|one| one.from == OURS));
    let mac = [0, 0, 0x5e, 0, 1, 51];
    assert!(ours.clone().count() > 1);
    assert!(ours.map(|one| &one.bytes[6..12]).all(|source| source == mac));
    let arp = |one: &&Frame| one.bytes[12..14] == [8, 6] && one.bytes[28..32] == [10, 9, 0, 100];
    let announcements: Vec<&Frame> = frames.iter().filter(arp).collect();
    assert!(announcements.len() >= 5);
    assert!(announcements.iter().all(|one| one.bytes[6..12] == mac && one.bytes[22..28] == mac));
    end(node, Signal::SIGTERM);
    wire.wait_log(&log, "state STOP");
    assert_node_content(&wire.log(&log));
    assert!(rtnetlink.link("vrrp.51").is_err());
    keepalived.stop();
    assert_content(&wire);
}

#[test]
fn a_link_that_goes_down_is_a_fault_until_it_is_back() {
    let variant = &TENTH;
    let mut wire = Wire::new(variant);
    let (node, log) = wire.node(&variant.node(100));
    wire.wait_log(&log, "state MASTER");
    let mut theirs = Rtnetlink::open_in(&wire.theirs).unwrap();
    let index = theirs.link("eth0").unwrap().index;
    theirs.set_up(index, false).unwrap();
    wire.wait_log(&log, "state FAULT");
    assert!(!wire.has_vip(variant));
    theirs.set_up(index, true).unwrap();
    wire.wait_log(&log, "FAULT to BACKUP: all is well again");
    wait_for("the address", || if wire.has_vip(variant) { Ok(()) } else { Err("gone".to_owned()) });
    end(node, Signal::SIGTERM);
    wire.wait_log(&log, "state STOP");
    assert_node_content(&wire.log(&log));
}
