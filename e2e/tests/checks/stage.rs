//! The lab with checks that run on its director, and web servers that can be broken.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use e2e::lab::{Stage, TIME_MAX, inside, tool, wait_for};
use nix::sys::signal::Signal;
use rlvs::face;
use rlvs::ipvsadm::Backend;
use rlvs::keepalived::checks::{Checks, Event};
use rlvs::lab::topology::REAL_SERVERS;
use rlvs_conf::desired::Desired;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::{Guard, Handle};

/// Port of the web servers that tests break.
pub(crate) const PORT: u16 = 8080;
/// Port of the same web servers over TLS.
pub(crate) const TLS_PORT: u16 = 8443;
/// How long checks go on without looking whether they are to end.
const TURN_MAX: Duration = Duration::from_millis(20);
/// What a machine that does other things too may take beyond what a configuration says.
const SLACK: Duration = Duration::from_millis(1500);
/// How long the table may take to follow: whoever looks at it here has its lock meanwhile.
const TABLE_MAX: Duration = Duration::from_secs(5);

/// A web server of its own in a real server's namespace.
pub(crate) struct Web {
    guard: Option<Guard>,
    namespace: Namespace,
    directory: PathBuf,
}

impl Web {
    /// Starts one in the namespace of a real server of the lab, and waits until it listens. `None` if
    /// nginx is missing.
    pub(crate) fn start(stage: &Stage, server: usize) -> Option<Self> {
        tool("nginx")?;
        let directory = stage.lab.directory().join(format!("web-{server}"));
        std::fs::create_dir(&directory).unwrap();
        certificate(&directory);
        let namespace = Namespace::open(stage.lab.real_servers()[server].name()).unwrap();
        let mut web = Self { guard: None, namespace, directory };
        web.run();
        Some(web)
    }

    /// Starts it, after it was ended.
    pub(crate) fn run(&mut self) {
        let folder = self.directory.display();
        let text = format!(
            "daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
             events {{ worker_connections 64; }}
             http {{
               access_log {folder}/access.log; client_body_temp_path {folder}/t1;
               proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
               uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
               server {{
                 listen [::]:{PORT} ipv6only=off reuseport;
                 listen [::]:{TLS_PORT} ipv6only=off reuseport ssl;
                 ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
                 location / {{
                   if (-f {folder}/broken) {{ return 500; }}
                   if (-f {folder}/drips) {{ set $limit_rate 1; }}
                   return 200 \"healthy\\n\";
                 }}
               }}
             }}"
        );
        std::fs::write(self.directory.join("nginx.conf"), text).unwrap();
        let mut command = Command::new(tool("nginx").unwrap());
        command.arg("-c").arg(self.directory.join("nginx.conf"));
        command.arg("-e").arg(self.directory.join("error.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        inside(&self.namespace, &mut command);
        self.guard = Some(Guard::new(command.spawn().unwrap()));
        let at = SocketAddr::from(([127, 0, 0, 1], PORT));
        wait_for("nginx listens", || {
            let result = self.namespace.run(|| std::net::TcpStream::connect(at)).unwrap();
            result.map_err(|error| error.to_string())
        });
    }

    /// Ends it: connections are refused.
    pub(crate) fn end(&mut self) {
        self.signal(Signal::SIGKILL);
        let mut guard = self.guard.take().unwrap();
        assert!(guard.wait_for(TIME_MAX).unwrap().is_some());
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut guard = self.guard.take().unwrap();
        assert!(guard.wait_for(TIME_MAX).unwrap().is_some());
    }

    /// Makes it answer 500, or no longer.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.set("broken", broken);
    }

    /// Makes it send one byte of each answer a second, or no longer.
    pub(crate) fn set_dripping(&self, drips: bool) {
        self.set("drips", drips);
    }

    fn set(&self, word: &str, on: bool) {
        let file = self.directory.join(word);
        if on {
            std::fs::write(file, "").unwrap();
        } else {
            std::fs::remove_file(file).unwrap();
        }
    }

    /// Stops it where it is, or lets it go on. The kernel goes on to take connections for it.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.guard.as_ref().unwrap().pid().unwrap();
        Handle::open(pid).unwrap().signal(signal).unwrap();
    }
}

fn certificate(directory: &std::path::Path) {
    let mut command = Command::new(tool("openssl").unwrap());
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.args(["-nodes", "-days", "30", "-subj", "/CN=nobody.invalid", "-keyout"]);
    command.arg(directory.join("key.pem")).arg("-out").arg(directory.join("cert.pem"));
    assert!(command.output().unwrap().status.success());
}

/// Checks that run on the director until this is dropped.
pub(crate) struct Running {
    end: Arc<AtomicBool>,
    reload: Sender<Desired>,
    events: Receiver<Event>,
    seen: Mutex<Vec<Event>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts what a configuration says.
    pub(crate) fn start(stage: &Stage, text: &str) -> Self {
        let desired = desired(text);
        let director = Namespace::open(stage.lab.director().name()).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let (reload, reloads) = channel::<Desired>();
        let (told, events) = channel();
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let work = move || {
                let open = Box::new(|| face::open_table(Backend::Rlvs));
                let mut checks = Checks::new(&desired, open, 1).unwrap();
                while !ended.load(Ordering::Relaxed) {
                    if let Ok(desired) = reloads.try_recv() {
                        checks.reload(&desired);
                    }
                    checks.turn(Some(Instant::now() + TURN_MAX)).unwrap();
                    while let Some(event) = checks.poll_event() {
                        eprintln!("{event}");
                        drop(told.send(event));
                    }
                }
                checks.stop(false);
            };
            director.run(work).unwrap();
        });
        Self { end, reload, events, seen: Mutex::default(), thread: Some(thread) }
    }

    /// Gives it another configuration.
    pub(crate) fn reload(&self, text: &str) {
        self.reload.send(desired(text)).unwrap();
    }

    /// Waits for an event whose line holds all of these words.
    #[track_caller]
    pub(crate) fn wait_for_event(&self, words: &[&str]) -> Event {
        let deadline = Instant::now() + TIME_MAX;
        let mut seen = self.seen.lock().unwrap();
        loop {
            let line = |event: &Event| words.iter().all(|word| event.to_string().contains(word));
            if let Some(at) = seen.iter().position(line) {
                return seen.remove(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => seen.push(event),
                Err(error) => panic!("no event with {words:?} ({error}) in {seen:#?}"),
            }
        }
    }

    /// Waits for an event with these words and then for the table to have these destinations. Holds the
    /// time of both against the longest that the configuration allows.
    #[track_caller]
    pub(crate) fn follows(
        &self,
        stage: &Stage,
        since: Instant,
        most: Duration,
        words: &[&str],
        expected: &[&str],
    ) {
        self.wait_for_event(words);
        let told = since.elapsed();
        wait_for_destinations(stage, expected);
        let took = since.elapsed();
        eprintln!("{words:?} after {told:?}, in the table after {took:?}, at most {most:?}");
        assert!(told <= most + SLACK, "{told:?} is more than {most:?}");
        assert!(took <= told + TABLE_MAX, "the table followed {:?} later", took - told);
    }

    /// Ends it, as at a stop of the daemon.
    pub(crate) fn stop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the checks' thread has panicked");
        }
    }
}

fn desired(text: &str) -> Desired {
    let read = rlvs_conf::read_text(text);
    let errors = read.diagnostics.iter().filter(|it| it.severity == rlvs_conf::Severity::Error);
    let errors: Vec<_> = errors.collect();
    assert!(errors.is_empty(), "{errors:#?}");
    read.desired
}

/// Returns the destinations of the table's only service, by address, with their weights.
pub(crate) fn destinations(stage: &Stage) -> Vec<String> {
    let listing = stage.listing();
    let mut rows: Vec<String> = listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-> "))
        .filter(|line| !line.starts_with("RemoteAddress"))
        .map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            format!("{} {}", words[0], words[2])
        })
        .collect();
    rows.sort();
    rows
}

/// Waits until the table's only service has these destinations.
#[track_caller]
pub(crate) fn wait_for_destinations(stage: &Stage, expected: &[&str]) {
    let mut expected: Vec<String> = expected.iter().map(|&row| row.to_owned()).collect();
    expected.sort();
    wait_for("the table follows", || {
        let seen = destinations(stage);
        if seen == expected { Ok(()) } else { Err(format!("{seen:?} instead of {expected:?}")) }
    });
}

/// Returns a real server's place in a listing: address, port and weight.
pub(crate) fn row(server: usize, port: u16, weight: u32) -> String {
    format!("{}:{port} {weight}", REAL_SERVERS[server].inside.v4)
}
