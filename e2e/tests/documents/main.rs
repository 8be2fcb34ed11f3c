//! Documents show commands and their answers: each is typed here, and answers so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod console;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::lab::inside;
use nix::sys::signal::Signal;
use rlvs::lab::site::{HOW_TO, Host, Site};
use rlvs::lab::topology::{Lab, Options, WebServer, Wiring};
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::{Guard, Handle};

use console::{Typed, commands, fits};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

/// Commands that only look, and are typed again until they show what is to come.
const REPEATABLE: [&str; 3] = ["ipvsadm -L", "rlvs status", "ip -brief address"];
/// How long what is to come may take: two rounds of checks with their time-outs, and some.
const TIME_MAX: Duration = Duration::from_secs(60);
/// How long to leave the processor to others before looking again.
const PAUSE: Duration = Duration::from_millis(100);

/// The names by which the program is called.
const NAMES: [&str; 5] = ["rlvs", "ipvsadm", "ipvsadm-save", "ipvsadm-restore", "keepalived"];

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Hosts by their names in prompts, and a folder in which commands are typed.
struct Hosts<'a> {
    hosts: BTreeMap<&'static str, &'a Namespace>,
    folder: PathBuf,
}

impl Drop for Hosts<'_> {
    /// Ends the daemons that a document has started and that a failure has left, by their pid files.
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "pid") {
                continue;
            }
            let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            let daemon = pid.and_then(|pid| Handle::open(pid).ok());
            if let Some(daemon) = daemon.filter(|daemon| daemon.signal(Signal::SIGTERM).is_ok()) {
                daemon.wait_for(TIME_MAX).ok();
            }
        }
    }
}

impl Hosts<'_> {
    /// Types the commands of a document.
    fn play(&self, name: &str) {
        let names = self.folder.join("names");
        fs::create_dir_all(&names).unwrap();
        for name in NAMES {
            symlink(PROGRAM, names.join(name)).unwrap();
        }
        let typed = commands(&document(name)).unwrap();
        assert!(!typed.is_empty(), "{name} shows nothing");
        for typed in &typed {
            self.check(name, typed);
        }
    }

    fn check(&self, name: &str, typed: &Typed) {
        let what = format!("docs/{name}:{}: {}", typed.line, typed.command);
        let again = REPEATABLE.iter().any(|start| typed.command.starts_with(start));
        let deadline = Instant::now() + TIME_MAX;
        loop {
            let said = self.types(typed);
            let lines: Vec<&str> = said.lines().collect();
            if fits(&typed.shown, &lines) {
                return;
            }
            assert!(again && Instant::now() < deadline, "{what}\n{said}");
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Returns what a command says on both its outputs.
    fn types(&self, typed: &Typed) -> String {
        let host = self.hosts.get(typed.host.as_str());
        let host = host.unwrap_or_else(|| panic!("line {}: no host {}", typed.line, typed.host));
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("({}) 2>&1", typed.command)).current_dir(&self.folder);
        let path = format!("{}/names:/usr/sbin:/usr/bin:/sbin:/bin", self.folder.display());
        command.env("PATH", path).stdin(Stdio::null());
        inside(host, &mut command);
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }
}

fn lab() -> Lab {
    let options = Options {
        wiring: Wiring::Plain,
        web_server: WebServer::Ours,
        program: PathBuf::from(PROGRAM),
        keep: false,
    };
    Lab::new(&options).unwrap()
}

/// Plays a document in the lab of the three modes.
fn play_in_the_lab(name: &str, files: &[(&str, &str)]) {
    let lab = lab();
    let [first, second] = lab.real_servers() else { panic!("two real servers") };
    let hosts = BTreeMap::from([
        ("director", lab.director()),
        ("client", lab.client()),
        ("server1", first),
        ("server2", second),
    ]);
    for (name, text) in files {
        fs::write(lab.directory().join(name), text).unwrap();
    }
    Hosts { hosts, folder: lab.directory().to_owned() }.play(name);
}

#[test]
fn the_how_to_is_as_shown() {
    play_in_the_lab("how-to.md", &[]);
}

/// Commands of the first page that are not typed, and why.
const NOT_TYPED: [(&str, &str); 2] = [
    (
        "rlvs uninstall",
        "it takes off every lab of the machine; life.rs runs it on a machine of its own",
    ),
    ("rlvs keepalived -f", "it does not end; keepalived_is_as_shown starts it"),
];

/// Returns the commands of a first page: lines of our program in indented blocks, without what is said of them.
fn first_page(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let page = fs::read_to_string(path).unwrap();
    let lines = page.lines().filter(|line| line.starts_with("    rlvs "));
    lines.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn commands_of_the_first_page_work_as_they_are_typed() {
    for page in ["README.md", "README.zh-CN.md"] {
        let lab = lab();
        let file = lab.directory().join("keepalived.conf");
        fs::write(&file, HOW_TO).unwrap();
        let empty = lab.directory().join("rlvs.toml");
        fs::write(&empty, "").unwrap();
        let type_in = |words: &str| {
            let mut command = Command::new(PROGRAM);
            command.args(words.split_ascii_whitespace().skip(1)).stdin(Stdio::null());
            inside(lab.director(), command.env("RLVS_CONFIG", &empty));
            let said = command.output().unwrap();
            // A doctor who finds something says so; what was wrong with the words is 2 or above.
            let finds = words.starts_with("rlvs doctor") && said.status.code() == Some(1);
            assert!(said.status.success() || finds, "{page}: {words}: {said:?}");
        };
        let commands = first_page(page);
        assert!(commands.len() > 8, "{page}: {commands:?}");
        for words in &commands {
            if NOT_TYPED.iter().any(|(start, _)| words.starts_with(start)) {
                continue;
            }
            let words = words.replace("FILE", file.to_str().unwrap());
            match words.split_ascii_whitespace().nth(1) {
                Some("capture") => type_in(&format!("{words} --seconds 1")),
                Some("detach") => {
                    type_in(&words);
                    // What comes below goes on with the service.
                    commands[..2].iter().for_each(|words| type_in(words));
                }
                _ => type_in(&words),
            }
        }
    }
}

/// Names of documents that show what is typed.
fn shown() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".md") && document(name).contains("```")).collect()
}

#[test]
fn every_document_that_shows_commands_is_played() {
    let tests = include_str!("main.rs");
    for name in shown() {
        let text = document(&name);
        let opened = text.lines().filter(|line| line.starts_with("```")).step_by(2);
        let opened: Vec<&str> = opened.collect();
        assert!(opened.iter().all(|fence| *fence == "```console"), "{name}: {opened:?}");
        // The Chinese how-to is held against the English one.
        assert!(tests.contains(&format!("(\"{name}\"")) || name == "how-to.zh-CN.md", "{name}");
    }
}

#[test]
fn the_three_modes_are_as_shown() {
    play_in_the_lab("modes.md", &[]);
}

#[test]
fn operating_is_as_shown() {
    play_in_the_lab("operating.md", &[]);
}

#[test]
fn access_is_as_shown() {
    play_in_the_lab("acl.md", &[]);
}

#[test]
fn moving_over_is_as_shown() {
    let table = "-A -t 192.168.1.200:80 -s rr\n-a -t 192.168.1.200:80 -r 10.0.1.101:80 -m -w 1\n";
    play_in_the_lab("moving.md", &[("keepalived.conf", HOW_TO), ("table", table)]);
}

/// The faults are made in comments of the document.
#[test]
fn troubles_are_as_shown() {
    play_in_the_lab("troubleshooting.md", &[]);
}

#[test]
fn keepalived_is_as_shown() {
    let site = Site::new(Path::new(PROGRAM)).unwrap();
    let webs: Vec<Guard> =
        [Host::Web1, Host::Web2].map(|host| site.web_server(host).unwrap()).into();
    let folder = site.directory().to_owned();
    fs::write(folder.join("keepalived.conf"), HOW_TO).unwrap();
    let hosts = BTreeMap::from([
        ("director", site.host(Host::First)),
        ("backup", site.host(Host::Second)),
        ("client", site.host(Host::Client)),
        ("server1", site.host(Host::Web1)),
        ("server2", site.host(Host::Web2)),
    ]);
    Hosts { hosts, folder }.play("high-availability.md");
    drop(webs);
}

#[test]
fn both_languages_show_the_same() {
    for (one, other) in [("how-to.md", "how-to.zh-CN.md")] {
        let plain = |name| {
            let typed = commands(&document(name)).unwrap();
            let plain = |typed: Typed| (typed.host, typed.command, typed.shown);
            typed.into_iter().map(plain).collect::<Vec<_>>()
        };
        for (one, other) in plain(one).iter().zip(&plain(other)) {
            assert_eq!(one, other);
        }
        assert_eq!(plain(one).len(), plain(other).len());
    }
}
