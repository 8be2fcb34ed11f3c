//! A director without a network: what commands do to a machine, and what they leave.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use aya::maps::MapInfo;
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier, loaded_programs};
use rlvs_linux::dataplane::pins;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::route::{Prefix, Rtnetlink};
use rlvs_linux::sysctl;

use crate::bpf::map_ids;
use crate::lab::{Said, TIME_MAX, inside, run, tool};

/// A namespace with one addressed interface, `eth0`, and nothing else in it.
#[derive(Debug)]
pub struct Host {
    /// The namespace.
    pub namespace: Namespace,
    program: PathBuf,
}

impl Host {
    /// Makes it, for a program.
    #[must_use]
    pub fn new(program: &str, role: &str) -> Self {
        let name = format!("rlvs-e2e-{}-{role}", std::process::id());
        let namespace = Namespace::create(&name).unwrap();
        let host = Self { namespace, program: PathBuf::from(program) };
        let mut rtnetlink = Rtnetlink::open_in(&host.namespace).unwrap();
        rtnetlink.add_veth("peer0", "eth0", &host.namespace).unwrap();
        for name in ["peer0", "eth0"] {
            let index = rtnetlink.link(name).unwrap().index;
            rtnetlink.set_up(index, true).unwrap();
        }
        let index = rtnetlink.link("eth0").unwrap().index;
        let address = "192.168.1.100".parse().unwrap();
        rtnetlink.add_address(index, Prefix { address, bits: 24 }).unwrap();
        host
    }

    /// Runs `rlvs` there.
    pub fn rlvs(&self, words: &[&str]) -> Said {
        run(&self.namespace, &self.program, words)
    }

    /// Returns what hangs on the interface, as the kernel says: XDP programs, then TC programs.
    #[must_use]
    pub fn hooks(&self) -> Vec<String> {
        let link = run(&self.namespace, &tool("ip").unwrap(), &["link", "show", "eth0"]).ok();
        let xdp = link.lines().filter(|line| line.contains("prog/xdp"));
        let mut hooks: Vec<String> = xdp.map(|line| line.trim().to_owned()).collect();
        let query = || SchedClassifier::query_tcx("eth0", TcAttachType::Ingress);
        let (_, programs) = self.namespace.run(query).unwrap().unwrap();
        hooks.extend(programs.iter().map(|program| program.name_as_str().unwrap().to_owned()));
        hooks
    }

    /// Returns whether the loopback device forwards, IPv4 and IPv6.
    #[must_use]
    pub fn forwarding(&self) -> [String; 2] {
        ["net/ipv4/conf/lo/forwarding", "net/ipv6/conf/lo/forwarding"]
            .map(|path| self.namespace.run(|| sysctl::read(path)).unwrap().unwrap().trim().into())
    }

    /// Returns whether the namespace has a folder that is not finished, or one that is.
    #[must_use]
    pub fn folders(&self, root: &pins::Folder) -> [bool; 2] {
        let own = format!("ns-{}-", self.namespace.cookie().unwrap());
        let names: Vec<String> = root.names().unwrap();
        let mut own = names.iter().filter(|name| name.starts_with(&own)).peekable();
        let is_there = own.peek().is_some();
        let is_unfinished = own.any(|name| name.ends_with("-new"));
        [is_unfinished, is_there && !is_unfinished]
    }

    /// Returns a command of `rlvs` there.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::null());
        inside(&self.namespace, &mut command);
        command
    }

    /// Starts a command and kills it as soon as `is_due`. Returns whether it had not ended by then.
    #[must_use]
    pub fn is_killed(&self, words: &[&str], is_due: impl Fn() -> bool) -> bool {
        let mut command = self.command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + TIME_MAX;
        while !is_due() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{words:?} neither ends nor gets so far");
        }
        child.kill().unwrap();
        child.wait().unwrap().code().is_none()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        netns::delete(self.namespace.name()).ok();
    }
}

/// Returns the numbers of the maps and programs that a namespace's folder holds.
#[must_use]
pub fn pinned(namespace: &Namespace) -> (BTreeSet<u32>, BTreeSet<u32>) {
    namespace
        .run(|| {
            let folder = pins::open().unwrap().unwrap();
            let (mut maps, mut programs) = (BTreeSet::new(), BTreeSet::new());
            for name in folder.names().unwrap() {
                if name.starts_with("program_") {
                    programs.insert(ProgramInfo::from_pin(folder.path(&name)).unwrap().id());
                } else if name != "object" && !name.starts_with(pins::LINK) {
                    maps.insert(MapInfo::from_pin(folder.path(&name)).unwrap().id());
                }
            }
            (maps, programs)
        })
        .unwrap()
}

/// Returns those that the kernel still has.
#[must_use]
pub fn left((maps, programs): &(BTreeSet<u32>, BTreeSet<u32>)) -> Vec<u32> {
    let maps = map_ids().into_iter().filter(|id| maps.contains(id));
    let found = loaded_programs().flatten().map(|program| program.id());
    maps.chain(found.filter(|id| programs.contains(id))).collect()
}
