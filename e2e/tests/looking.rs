//! `rlvs status` and `rlvs top` on the site of the how-to, with its daemon.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use e2e::lab::{TIME_MAX, run, tool, wait_for};
use e2e::schema;
use nix::sys::signal::Signal;
use rlvs::lab::site::Host::{First, Web1, Web2};
use rlvs::lab::site::{HOW_TO, Site};
use rlvs_linux::process::{Guard, Handle};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ONE: &str = "192.168.1.101:80";

/// The site with both web servers and its daemon.
struct Scene {
    site: Site,
    // Dropped in this order.
    daemon: Guard,
    second: Option<Guard>,
    _first: Guard,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new(Path::new(PROGRAM)).unwrap();
        let web = |host| {
            let guard = site.web_server(host).unwrap();
            wait_for("a web server", || site.ask_server(host).map_err(|error| error.to_string()));
            guard
        };
        let (first, second) = (web(Web1), web(Web2));
        let file = site.directory().join("keepalived.conf");
        std::fs::write(&file, HOW_TO.replace("delay_loop 6", "delay_loop 0.3")).unwrap();
        let pid = site.directory().join("keepalived.pid");
        let [file, pid] = [&file, &pid].map(|path| path.to_str().unwrap());
        let (daemon, _) =
            site.start(First, &["keepalived", "-n", "-l", "-f", file, "-p", pid]).unwrap();
        Self { site, daemon, second: Some(second), _first: first }
    }

    fn status(&self) -> String {
        run(self.site.host(First), Path::new(PROGRAM), &["status"]).output
    }

    fn wait_status(&self, texts: &[&str]) -> String {
        wait_for("status", || {
            let said = self.status();
            if texts.iter().all(|text| said.contains(text)) { Ok(said) } else { Err(said) }
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let handle = self.daemon.pid().map(Handle::open);
        if let Some(Ok(handle)) = handle {
            handle.signal(Signal::SIGTERM).ok();
            self.daemon.wait_for(TIME_MAX).ok();
        }
    }
}

#[test]
fn status_says_all_of_it() {
    let mut scene = Scene::new();
    let said = scene.wait_status(&["192.168.1.101:80", "192.168.1.102:80", "VI_1 on eth0: MASTER"]);
    for text in [
        "interface     eth0: TC (on veth",
        "keepalived    process ",
        "services      1\ndestinations  2\n",
        "TCP 192.168.1.200:80 wrr, ",
        "192.168.1.101:80         Masq weight 3, 0 active, 0 inactive, ",
        ", up\n",
    ] {
        assert!(said.contains(text), "{text:?} in {said}");
    }
    assert!(!said.contains("error "), "{said}");

    drop(scene.second.take());
    let host = scene.site.host(First);
    assert_eq!(run(host, Path::new(PROGRAM), &["drain", ONE]).status, Some(0));
    let said = scene.wait_status(&["192.168.1.102:80         out: ", "error    no-server"]);
    assert!(said.contains(", drained, up\n"), "{said}");
    assert!(
        said.contains(&format!("drained       {ONE} of TCP 192.168.1.200:80: 0 active")),
        "{said}"
    );
    assert!(said.contains("error    no-server: TCP 192.168.1.200:80"), "{said}");

    let said = run(host, Path::new(PROGRAM), &["status", "--json"]).ok();
    let value: Value = serde_json::from_str(&said).unwrap();
    schema::check("status", &value);
    assert_eq!(value["attached"], true);
    assert_eq!(value["interfaces"][0]["mode"], "tc");
    let service = &value["services"][0];
    assert_eq!((&service["protocol"], &service["port"]), (&"tcp".into(), &80.into()));
    let server = &service["destinations"][0];
    assert_eq!((&server["drained"], &server["health"]), (&true.into(), &"up".into()));
    assert_eq!(service["absent"][0]["address"], "192.168.1.102");
    assert_eq!(value["drained"][0]["weight"], 3);
    assert_eq!(value["findings"][0]["check"], "no-server");
    assert_eq!(value["daemon"]["instances"][0]["state"], "master");

    let pins = Path::new(value["pins"].as_str().unwrap());
    assert!(pins.exists());
    drop(scene);
    assert!(!pins.exists(), "the site has left {}", pins.display());
}

/// A tmux of a test's own.
struct Terminal<'a> {
    scene: &'a Scene,
    socket: String,
}

impl Terminal<'_> {
    fn tmux(&self, words: &[&str]) -> String {
        let socket = ["-S", &self.socket, "-f", "/dev/null"];
        let words: Vec<&str> = socket.iter().chain(words).copied().collect();
        run(self.scene.site.host(First), &tool("tmux").unwrap(), &words).ok()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "0"], keys].concat());
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        wait_for(what, || {
            let screen = self.tmux(&["capture-pane", "-p", "-t", "0"]);
            if is_so(&screen) { Ok(()) } else { Err(screen) }
        });
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let words = ["-S", &self.socket, "kill-server"];
        run(self.scene.site.host(First), &tool("tmux").unwrap(), &words);
    }
}

#[test]
fn top_works_in_a_terminal() {
    if tool("tmux").is_none() {
        return;
    }
    let scene = Scene::new();
    scene.wait_status(&["192.168.1.101:80", "192.168.1.102:80", "VI_1 on eth0: MASTER"]);
    let socket = scene.site.directory().join("tmux").to_str().unwrap().to_owned();
    let terminal = Terminal { scene: &scene, socket };
    let command = format!("TERM=screen {PROGRAM} top; echo it ended with $?; exec cat");
    terminal.tmux(&["new-session", "-d", "-x", "130", "-y", "20", &command]);
    terminal.wait("both servers", |screen| {
        screen.contains(ONE)
            && screen.contains("192.168.1.102:80")
            && screen.contains("VI_1 MASTER")
    });
    terminal.keys(&["/", "101", "Enter"]);
    terminal.wait("the filter", |screen| {
        screen.contains(ONE) && !screen.contains("192.168.1.102") && screen.contains("filter: 101")
    });
    terminal.keys(&["s"]);
    terminal.wait("the order", |screen| screen.contains("sorted by connections"));
    terminal.keys(&["Down", "d"]);
    terminal.wait("drained", |screen| screen.contains("drained"));
    assert!(scene.status().contains("drained       192.168.1.101:80"));
    terminal.keys(&["u"]);
    terminal.wait("given back", |screen| !screen.contains("drained"));
    assert!(!scene.status().contains("drained  "));
    terminal.keys(&["q"]);
    terminal.wait("the end", |screen| screen.contains("it ended with 0"));
}

#[test]
fn top_without_a_terminal_is_refused() {
    let site = Site::new(Path::new(PROGRAM)).unwrap();
    let said = run(site.host(First), Path::new(PROGRAM), &["top"]);
    assert_eq!(said.status, Some(1));
    assert!(said.errors.contains("needs a terminal"), "{said:?}");
}
