//! What the daemon may and may not do: an ordinary user with three capabilities, each of them
//! missing, a root file system that nobody can write.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use e2e::lab::{inside, wait_until};
use nix::sys::signal::Signal;
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{self, First, Web1, Web2};
use rlvs_linux::process::{Guard, Handle};

use crate::router;
use crate::site::{Daemon, PROGRAM, Site};

/// All that the daemon needs once the programs are there.
const THREE: [&str; 3] = ["net_admin", "net_raw", "bpf"];

/// A folder that anybody may enter, with the program and a configuration.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rlvs-e2e-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let folder = Self(path);
        fs::set_permissions(&folder.0, PermissionsExt::from_mode(0o777)).unwrap();
        fs::copy(PROGRAM, folder.path("rlvs")).unwrap();
        fs::write(folder.path("a.conf"), HOW_TO).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Returns the words that run a command as nobody with these capabilities and no other.
fn nobody_with(capabilities: &[&str]) -> String {
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all{list} \
         --inh-caps=-all{list} --ambient-caps=-all{list}"
    )
}

/// Returns a command that runs a script in a director where /run and the process numbers are its
/// own; `$1` is the folder.
fn machine(site: &Site, host: Host, folder: &Folder, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"]);
    command.args([
        "mount -t tmpfs -o mode=755 none /run; cd /; ".to_owned() + script,
        "sh".to_owned(),
    ]);
    command.arg(&folder.0).stdin(Stdio::null());
    inside(site.host(host), &mut command);
    command
}

/// Starts a daemon by a script.
fn start(site: &Site, folder: &Folder, pid_file: &Path, script: &str) -> Daemon {
    let log = folder.path("log");
    let to = File::create(&log).unwrap();
    let mut command = machine(site, First, folder, script);
    command.stdout(to.try_clone().unwrap()).stderr(to);
    let guard = Guard::new(command.spawn().unwrap());
    Daemon::of(guard, log, folder.path("a.conf"), pid_file.to_owned())
}

/// Sends a signal to the one process that a process has started.
fn signal_child(parent: u32, signal: Signal) {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(path).unwrap();
    Handle::open(children.trim().parse().unwrap()).unwrap().signal(signal).unwrap();
}

/// The daemon serves, takes another configuration, and ends in order.
fn serves(site: &Site, mut daemon: Daemon) {
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    daemon.wait_said("change(s) of the table in force", 1);
    let answers = site.ask_often(10);
    assert_eq!((answers["Server 1"], answers["Server 2"]), (6, 4), "{}", daemon.said());
    fs::write(&daemon.file, HOW_TO.replace("weight 3", "weight 2")).unwrap();
    signal_child(daemon.process(), Signal::SIGHUP);
    daemon.wait_said("change(s) of the table in force", 2);
    let answers = site.ask_often(10);
    assert_eq!((answers["Server 1"], answers["Server 2"]), (5, 5), "{}", daemon.said());
    signal_child(daemon.process(), Signal::SIGTERM);
    assert_eq!(daemon.ended(), Some(0), "{}", daemon.said());
    assert!(!site.vip_is_at(First));
    for word in ["error:", "cannot be written", "nobody can ask"] {
        assert!(!daemon.said().contains(word), "{}", daemon.said());
    }
}

#[test]
fn an_ordinary_user_with_three_capabilities_runs_it() {
    let site = Site::new();
    let _servers = [site.web(Web1), site.web(Web2)];
    let folder = Folder::new("three");
    let pid = folder.path("pid");
    let script = format!(
        "$1/rlvs attach --every-program; chown -R 65534:65534 /run/rlvs; \
         exec {} $1/rlvs keepalived -n -l -D -f $1/a.conf -p {}",
        nobody_with(&THREE),
        pid.display()
    );
    let daemon = start(&site, &folder, &pid, &script);
    // Every program has been through the verifier then, which takes its time.
    daemon.wait_said(" starts by ", 1);
    serves(&site, daemon);
}

#[test]
fn nothing_but_run_is_written() {
    let site = Site::new();
    let _servers = [site.web(Web1), site.web(Web2)];
    let folder = Folder::new("read-only");
    // The tests' own folder is where the configuration changes.
    let script = "mount --bind $1 $1; mount -o remount,bind,ro /; ! touch /a-file 2> /dev/null; \
                  exec $1/rlvs keepalived -n -l -D -f $1/a.conf";
    let daemon = start(&site, &folder, Path::new("/run/keepalived.pid"), script);
    serves(&site, daemon);
}

#[test]
fn a_folder_that_nobody_may_write_is_said() {
    let site = Site::new();
    let folder = Folder::new("poor");
    fs::write(folder.path("a.conf"), router(255)).unwrap();
    let pid = folder.path("pid");
    let words = format!("$1/rlvs keepalived -n -l -D -f $1/a.conf -p {}", pid.display());
    let script = format!("exec {} {words}", nobody_with(&THREE));
    let mut daemon = start(&site, &folder, &pid, &script);
    daemon.wait_said("/run/rlvs/vrrp cannot be written", 1);
    daemon.wait_said("nobody can ask how this daemon is", 1);
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    signal_child(daemon.process(), Signal::SIGTERM);
    assert_eq!(daemon.ended(), Some(0), "{}", daemon.said());
    assert!(!site.vip_is_at(First));
}

/// Runs a command of the program as nobody with these capabilities, where the programs are there.
fn attempt(site: &Site, folder: &Folder, owner: u32, has: &[&str], words: &str) -> Output {
    let script = format!(
        "$1/rlvs attach > /dev/null; chown -R {owner} /run/rlvs; \
         exec {} $1/rlvs {words}",
        nobody_with(has)
    );
    machine(site, First, folder, &script).output().unwrap()
}

#[test]
fn each_missing_capability_of_the_daemon_is_named() {
    let site = Site::new();
    let folder = Folder::new("missing");
    let pid = folder.path("pid").display().to_string();
    let words = format!("keepalived -n -l -f {} -p {pid}", folder.path("a.conf").display());
    for lost in THREE {
        let rest: Vec<&str> = THREE.into_iter().filter(|name| *name != lost).collect();
        let script = format!("exec {} $1/rlvs {words}", nobody_with(&rest));
        let output = machine(&site, First, &folder, &script).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{lost}: {said}");
        for name in THREE {
            let text = format!("CAP_{} is missing", name.to_uppercase());
            assert_eq!(said.contains(&text), name == lost, "{lost}: {said}");
        }
        let all = "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF";
        assert!(said.contains(all), "{said}");
    }
    assert!(!site.vip_is_at(First));
}

#[test]
fn commands_name_what_is_missing_and_nothing_else() {
    let site = Site::new();
    let folder = Folder::new("commands");
    let add = "ipvsadm -A -t 192.168.1.200:80 -s rr";
    let (nobody, root) = (65534, 0);
    let all = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_NET_RAW"];
    let cases: [(u32, &[&str], &str, &[&str]); 8] = [
        (root, &[], add, &["CAP_BPF", "CAP_NET_ADMIN"]),
        (root, &[], "ipvsadm -L -n", &["CAP_BPF", "CAP_NET_ADMIN"]),
        (root, &["net_admin"], "status", &["CAP_BPF"]),
        (root, &["bpf"], "detach", &["CAP_NET_ADMIN"]),
        (root, &THREE, add, &[]),
        (nobody, &["net_raw"], "capture -c 1", &["CAP_BPF", "CAP_NET_ADMIN"]),
        (nobody, &THREE, "capture -c 1", &["CAP_PERFMON"]),
        (nobody, &["perfmon", "bpf"], "capture -c 1", &["CAP_NET_ADMIN"]),
    ];
    for (owner, has, words, named) in cases {
        let output = attempt(&site, &folder, owner, has, words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{has:?} {words}: {said}");
        for name in all {
            assert_eq!(said.contains(name), named.contains(&name), "{has:?} {words}: {said}");
        }
        let way_out = if named.is_empty() { "chown -R" } else { "run it as root" };
        assert!(said.contains(way_out), "{has:?} {words}: {said}");
    }
    // Where nothing is there yet, more is needed.
    let first = format!("exec {} $1/rlvs attach", nobody_with(&THREE));
    let output = machine(&site, First, &folder, &first).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("CAP_PERFMON and CAP_SYS_ADMIN"), "{said}");
}
