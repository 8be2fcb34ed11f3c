//! The wire between two namespaces, its recorder, the real keepalived and a node of ours.

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

pub(crate) const NODE: &str = env!("CARGO_BIN_EXE_vrrp-node");
/// How much later than due something may come on a busy machine.
pub(crate) const LATE: Duration = Duration::from_millis(250);
/// keepalived and the kernel's clock round.
pub(crate) const EARLY: Duration = Duration::from_millis(3);
/// How much later than due ours may take over.
pub(crate) const OURS_LATE: Duration = Duration::from_millis(10);
pub(crate) const THEIRS: u8 = 1;
pub(crate) const OURS: u8 = 2;

/// One way to configure both.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) version: u8,
    pub(crate) family: u8,
    pub(crate) interval: Duration,
    pub(crate) password: bool,
    pub(crate) unicast: bool,
}

pub(crate) const V2: Variant = Variant {
    name: "v2",
    version: 2,
    family: 4,
    interval: Duration::from_secs(1),
    password: true,
    unicast: false,
};
pub(crate) const V3: Variant = Variant { name: "v3", version: 3, password: false, ..V2 };
pub(crate) const TENTH: Variant =
    Variant { name: "tenth", interval: Duration::from_millis(100), ..V3 };
/// The least interval that real files have.
pub(crate) const HUNDREDTH: Variant =
    Variant { name: "hundredth", interval: Duration::from_millis(10), ..V3 };
pub(crate) const UNICAST: Variant = Variant { name: "unicast", unicast: true, ..TENTH };
/// Over IPv6.
pub(crate) const UNICAST6: Variant = Variant { name: "unicast6", family: 6, ..UNICAST };
pub(crate) const IPV6: Variant = Variant { name: "ipv6", family: 6, ..TENTH };

impl Variant {
    /// Returns the address that moves.
    pub(crate) fn vip(&self) -> IpAddr {
        let text = if self.family == 4 { "10.9.0.100" } else { "fe80::9:100" };
        text.parse().unwrap()
    }

    pub(crate) fn vips(&self) -> &'static [&'static str] {
        if self.family == 4 { &["10.9.0.100/24"] } else { &["fe80::9:100/64", "fd09::100/64"] }
    }

    pub(crate) fn skew(&self, priority: u32) -> Duration {
        let unit = if self.version == 2 { Duration::from_secs(1) } else { self.interval };
        unit * (256 - priority) / 256
    }

    pub(crate) fn master_down(&self, priority: u32) -> Duration {
        self.interval * 3 + self.skew(priority)
    }

    /// Returns a file for the real one. It goes before other processes; real time is too dangerous for
    /// it, for it is killed when it takes more than 10 ms.
    pub(crate) fn keepalived(&self, priority: u8) -> String {
        let password = if self.password {
            "authentication {\n auth_type PASS\n auth_pass 1234\n }"
        } else {
            ""
        };
        let unicast = match (self.unicast, self.family) {
            (false, _) => "",
            (true, 4) => "unicast_src_ip 10.9.0.1\n unicast_peer {\n 10.9.0.2\n }",
            (true, _) => {
                "unicast_src_ip fe80::ff:fe00:901\n unicast_peer {\n fe80::ff:fe00:902\n }"
            }
        };
        let interval = self.interval.as_secs_f64();
        let (version, vips) = (self.version, self.vips().join("\n "));
        format!(
            "global_defs {{\n router_id A\n vrrp_garp_master_delay 1\n vrrp_priority -20\n}}\n\
             vrrp_instance VI_1 {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n \
             version {version}\n priority {priority}\n advert_int {interval}\n {password}\n {unicast}\n \
             virtual_ipaddress {{\n {vips}\n }}\n}}\n"
        )
    }

    pub(crate) fn node(&self, priority: u8) -> Vec<String> {
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
        let peer = if family == 4 { "10.9.0.1" } else { "fe80::ff:fe00:901" };
        words.extend(self.unicast.then(|| format!("peer={peer}")));
        words
    }
}

/// Two namespaces, the wire between them and a recorder.
pub(crate) struct Wire {
    pub(crate) theirs: Namespace,
    pub(crate) ours: Namespace,
    pub(crate) folder: PathBuf,
    pub(crate) _recorder: Guard,
    pub(crate) started: u32,
}

impl Wire {
    pub(crate) fn new(variant: &Variant) -> Self {
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
        // Its buffer has room for frames of the longest that it takes.
        tcpdump.args(["-i", "eth0", "-U", "--immediate-mode", "-s", "2048", "-Z", "root", "-w"]);
        tcpdump.arg(&recording);
        let recorder = spawn(&ours, &mut tcpdump, &folder.join("tcpdump.log"));
        wait_for("the recorder", || match fs::metadata(&recording) {
            Ok(data) if data.len() >= 24 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        Self { theirs, ours, folder, _recorder: recorder, started: 0 }
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Starts a node of ours; returns it and the name of its log.
    pub(crate) fn node(&mut self, words: &[String]) -> (Guard, String) {
        self.started += 1;
        let log = format!("node-{}.log", self.started);
        let guard = spawn(&self.ours, Command::new(NODE).args(words), &self.folder.join(&log));
        (guard, log)
    }

    pub(crate) fn wait_log(&self, log: &str, text: &str) {
        wait_for(text, || {
            let said = self.log(log);
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    }

    /// Returns what the wire has carried so far.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        frames(&fs::read(self.folder.join("wire.pcap")).unwrap())
    }

    /// Returns when advertisements were seen, of whom, with which priority.
    pub(crate) fn adverts(&self) -> Vec<Advert> {
        self.frames().iter().filter_map(Advert::of).collect()
    }

    /// Waits for an advertisement behind a time.
    pub(crate) fn wait_advert(&self, from: u8, priority: u8, after: Duration) -> Duration {
        wait_for(&format!("an advertisement of {from} with {priority}"), || {
            let adverts = self.adverts();
            let is_it =
                |one: &&Advert| one.time > after && one.from == from && one.priority == priority;
            adverts.iter().find(is_it).map(|one| one.time).ok_or(format!("{adverts:?}"))
        })
    }

    pub(crate) fn has_vip(&self, variant: &Variant) -> bool {
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

pub(crate) fn address(side: u8) {
    // No waiting for duplicates of link-local addresses.
    sysctl::write("net/ipv6/conf/eth0/accept_dad", "0").unwrap();
    let mut rtnetlink = Rtnetlink::open().unwrap();
    let index = rtnetlink.link("eth0").unwrap().index;
    rtnetlink.set_mac(index, Mac([2, 0, 0, 0, 9, side])).unwrap();
    rtnetlink.set_up(index, true).unwrap();
    let address = IpAddr::from([10, 9, 0, side]);
    rtnetlink.add_address(index, Prefix { address, bits: 24 }).unwrap();
}

pub(crate) fn spawn(namespace: &Namespace, command: &mut Command, log: &Path) -> Guard {
    let log = File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    inside(namespace, command);
    Guard::new(command.spawn().unwrap())
}

pub(crate) fn end(mut guard: Guard, signal: Signal) {
    Handle::open(guard.pid().unwrap()).unwrap().signal(signal).unwrap();
    assert!(guard.wait_for(Duration::from_secs(10)).unwrap().is_some());
}

pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The real keepalived.
pub(crate) struct Keepalived {
    pub(crate) guard: Guard,
    pub(crate) child: PathBuf,
}

impl Keepalived {
    pub(crate) fn start(wire: &mut Wire, variant: &Variant, priority: u8) -> Self {
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

    pub(crate) fn child(&self) -> Handle {
        let pid = fs::read_to_string(&self.child).unwrap().trim().parse().unwrap();
        Handle::open(pid).unwrap()
    }

    /// Dies as a host does, so that nothing is said; its addresses stay.
    pub(crate) fn die(self) {
        let child = self.child();
        let parent = Handle::open(self.guard.pid().unwrap()).unwrap();
        parent.signal(Signal::SIGSTOP).unwrap();
        child.signal(Signal::SIGKILL).unwrap();
        end(self.guard, Signal::SIGKILL);
    }

    /// Ends in order.
    pub(crate) fn stop(self) {
        end(self.guard, Signal::SIGTERM);
    }
}

/// keepalived found nothing wrong with what it heard of us.
pub(crate) fn assert_content(wire: &Wire) {
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
pub(crate) fn assert_node_content(said: &str) {
    assert!(!said.contains(" failed ") && !said.contains("refused"), "{said}");
    assert!(said.contains("rejected: {}"), "{said}");
}

/// tshark reads everything that we sent, and finds the checksums right.
pub(crate) fn assert_dissected(wire: &Wire) {
    let recording = wire.folder.join("wire.pcap");
    let path = recording.to_str().unwrap();
    // Not those that an ICMP error of the kernel quotes.
    let ours = "eth.src == 02:00:00:00:09:02 && vrrp && !icmp && !icmpv6";
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
pub(crate) struct Frame {
    pub(crate) time: Duration,
    pub(crate) bytes: Vec<u8>,
}

/// Reads a recording; its last frame may not be whole yet.
pub(crate) fn frames(recording: &[u8]) -> Vec<Frame> {
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
    pub(crate) fn announces(&self, address: IpAddr) -> bool {
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
pub(crate) struct Advert {
    pub(crate) time: Duration,
    pub(crate) from: u8,
    pub(crate) priority: u8,
}

impl Advert {
    pub(crate) fn of(frame: &Frame) -> Option<Self> {
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

/// Holds a time against what it should be, for what others do or the test looks at.
#[track_caller]
pub(crate) fn assert_takes(what: &str, taken: Duration, expected: Duration) {
    let right = expected.saturating_sub(EARLY)..=expected + LATE;
    assert!(right.contains(&taken), "{what} took {taken:?}, not {expected:?}");
}

/// Holds a time between two packets of which ours sends the second, and returns whether it was not late at all.
#[track_caller]
pub(crate) fn is_prompt(what: &str, taken: Duration, expected: Duration) -> bool {
    eprintln!("{what} took {taken:?}, expected {expected:?}");
    assert_takes(what, taken, expected);
    taken <= expected + OURS_LATE
}
