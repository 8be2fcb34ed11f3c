//! The Debian package, in a clean Debian system: installed, upgraded under load, removed, purged.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use e2e::lab::{Method, Stage, Stop, connect, inside, tcp_server, tool, wait_for};
use rlvs::lab::site::HOW_TO;
use rlvs::lab::topology::{CLIENT, DIRECTOR_INSIDE, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 8080;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rlvs-e2e-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A Debian system in the director's network, with a shell that reads commands.
struct Debian {
    shell: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    _work: Folder,
}

impl Debian {
    fn start(stage: &Stage, packages: &Path) -> Option<Self> {
        let unshare = tool("unshare")?;
        let made = Command::new(repository().join("scripts/debian-root")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let root = String::from_utf8(made.stdout).unwrap();
        let work = Folder::new("debian");
        let mut command = Command::new(unshare);
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        command.arg("sh").arg(repository().join("e2e/tests/package/root.sh"));
        command.arg(root.trim()).arg(&work.0).arg(packages);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("RLVS_BACKEND", "rlvs");
        inside(stage.lab.director(), &mut command);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let to = shell.stdin.take().unwrap();
        let from = BufReader::new(shell.stdout.take().unwrap());
        Some(Self { shell, to, from, _work: work })
    }

    /// Runs a command to its end and returns its status and all it said.
    fn tries(&mut self, command: &str) -> (i32, String) {
        writeln!(self.to, "({command}) </dev/null 2>&1; status=$?; echo; echo \"=== $status\"")
            .unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "{command}: {said}");
            if let Some(status) = line.strip_prefix("=== ") {
                return (status.trim().parse().unwrap(), said.trim_end().to_owned());
            }
            said.push_str(&line);
        }
    }

    /// Runs a command that must succeed and returns what it said.
    #[track_caller]
    fn does(&mut self, command: &str) -> String {
        let (status, said) = self.tries(command);
        assert_eq!(status, 0, "{command}: {said}");
        said
    }

    /// Returns every file of the system but those that packages' installation always changes.
    fn files(&mut self) -> Vec<String> {
        let said = self.does(
            "find / -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
             -not -path '/var/cache/*' -not -path '/run*' -not -path '/packages*' -not -path '/var/lib/systemd/*' \
             | sort; find /run/rlvs* /run/keepalived* 2>/dev/null || true",
        );
        said.lines().map(str::to_owned).collect()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // With it goes all that runs in its process namespace, and its mounts.
        self.shell.kill().ok();
        self.shell.wait().ok();
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Makes the package of the program under test, with this version.
fn package(into: &Path, version: &str) -> String {
    let built = Path::new(PROGRAM).parent().unwrap();
    let said = Command::new(built.join("xtask"))
        .args(["package", "--dev", "--package-version", version, "--output"])
        .arg(into)
        .env("CARGO_MANIFEST_DIR", repository().join("xtask"))
        .env("CARGO_TARGET_DIR", built.parent().unwrap())
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    format!("/packages/rlvs_{version}_amd64.deb")
}

/// Returns the package of a version whose maps are laid out otherwise, if `cargo xtask succession` has made one.
fn other_package(into: &Path) -> Option<String> {
    let made = PathBuf::from(std::env::var_os("RLVS_OTHER_PACKAGE")?);
    let name = made.file_name().unwrap().to_str().unwrap();
    fs::copy(&made, into.join(name)).unwrap();
    Some(format!("/packages/{name}"))
}

#[test]
fn installed_upgraded_under_load_removed_and_purged() {
    let packages = Folder::new("packages");
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let Some(mut debian) = Debian::start(&stage, &packages.0) else { return };
    let (old, new) = (package(&packages.0, "0.0.1"), package(&packages.0, "0.0.2"));
    let before = debian.files();

    debian.does(&format!("dpkg -i {old}"));
    the_commands_and_their_pages_are_there(&mut debian);
    the_units_are_well_made(&mut debian);

    let vip = the_table_is_restored(&stage, &mut debian);
    upgraded_under_load(&stage, &mut debian, &new, vip, 0);
    if let Some(other) = other_package(&packages.0) {
        // To maps that are laid out otherwise, and back.
        for package in [&other, &new] {
            upgraded_under_load(&stage, &mut debian, package, vip, 1);
            debian.does("test ! -e /var/lib/rlvs");
        }
    }
    the_version_that_made_the_maps_is_kept(&mut debian, &new);
    all_survives_a_reboot(&stage, &mut debian);
    the_table_is_saved(&mut debian);
    the_daemon_needs_no_more_than_its_unit_leaves(&stage, &mut debian);

    debian.does("dpkg --remove rlvs");
    assert!(!debian.does("ls /usr/sbin /etc/alternatives").contains("ipvsadm"));
    debian.does("rm /etc/ipvsadm.rules && dpkg --purge rlvs");
    let left: Vec<String> =
        debian.files().into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(left, Vec::<String>::new());
}

fn the_commands_and_their_pages_are_there(debian: &mut Debian) {
    assert!(debian.does("ipvsadm --version").starts_with("ipvsadm v1.31"));
    assert!(debian.does("keepalived --version").contains("of rlvs"));
    for page in ["8/ipvsadm.8", "8/ipvsadm-restore.8", "8/keepalived.8", "5/keepalived.conf.5"] {
        let found = debian.does(&format!("head -c 4 /usr/share/man/man{page}"));
        assert!(found.starts_with(['.']), "{page}: {found}");
    }
    assert!(debian.does("zcat /usr/share/man/man8/rlvs-attach.8.gz").contains("rlvs attach"));
    debian.does("test -s /usr/share/doc/rlvs/contrib/zabbix/rlvs.yaml");
    debian.does("rlvs check /etc/rlvs/rlvs.toml");
    debian.does("test -s /usr/share/bash-completion/completions/ipvsadm");
    debian.does("keepalived -t -f /usr/share/doc/rlvs/examples/keepalived.conf; test $? -le 5");
}

fn the_units_are_well_made(debian: &mut Debian) {
    // As the how-to has it.
    debian.does("systemctl enable keepalived ipvsadm");
    assert_eq!(debian.does("systemctl is-enabled keepalived ipvsadm"), "enabled\nenabled");
    // There is no `man` in a small Debian; the pages were looked at before.
    let said = debian.does(
        "systemd-analyze verify --man=no keepalived.service ipvsadm.service run-rlvs-bpf.mount",
    );
    assert_eq!(said, "");
    for unit in ["keepalived", "ipvsadm"] {
        // Exposure from 0 to 100, of which less is better.
        debian.does(&format!(
            "systemd-analyze security --offline=true --threshold=50 {unit}.service"
        ));
    }
}

/// As at boot: what the unit runs, with the capabilities that it leaves.
fn the_table_is_restored(stage: &Stage, debian: &mut Debian) -> SocketAddr {
    let vip = SocketAddr::new(VIPS[0].of(Family::V4), PORT);
    let mut rules = format!("-A -t {vip} -s rr\n");
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        let real = SocketAddr::new(Method::Direct.address(server, Family::V4), PORT);
        rules.push_str(&format!("-a -t {vip} -r {real} -g\n"));
        tcp_server(namespace, PORT, None);
    }
    debian.does(&format!("printf -- '{}' >/etc/ipvsadm.rules", rules.replace('\n', "\\n")));
    debian.does("sed -i 's/^AUTO=.*/AUTO=true/; s/^SAVE=.*/SAVE=true/' /etc/default/rlvs");
    debian.does("mkdir -p /run/rlvs/bpf && mount -t bpf -o mode=0700 rlvs /run/rlvs/bpf");
    the_unit_starts(debian, "ipvsadm");
    let saved = debian.does("ipvsadm-save -n");
    assert_eq!(saved.lines().count(), 3, "{saved}");
    vip
}

/// Runs what a unit of one shot runs, with the capabilities that it leaves.
fn the_unit_starts(debian: &mut Debian, unit: &str) {
    let unit = debian.does(&format!("cat /usr/lib/systemd/system/{unit}.service"));
    for start in ["ExecStartPre=", "ExecStart="] {
        for command in unit.lines().filter_map(|line| line.strip_prefix(start)) {
            debian.does(&format!("{} {command}", with_its_capabilities(&unit)));
        }
    }
}

/// Settings, rules, addresses of full NAT and a table that needs them: all is lost with the pins, and
/// comes back by what the unit runs.
fn all_survives_a_reboot(stage: &Stage, debian: &mut Debian) {
    let own = DIRECTOR_INSIDE.of(Family::V4);
    let denied = neighbour_of_the_client();
    let text = format!(
        "[settings]\\ntcp_mss = 1400\\n[[snat.pool]]\\naddresses = \"{own}\"\\n\
         [acl]\\ndeny = [\"{denied}\"]\\n"
    );
    debian.does(&format!("printf '{text}' >/etc/rlvs/rlvs.toml"));
    assert!(debian.does("rlvs check /etc/rlvs/rlvs.toml").ends_with("is right"));
    debian.does("rlvs load");
    let vip = SocketAddr::new(VIPS[1].of(Family::V4), PORT);
    let real = SocketAddr::new(Method::Nat.address(&REAL_SERVERS[0], Family::V4), PORT);
    debian.does(&format!("ipvsadm -A -t {vip} -s rr && ipvsadm -a -t {vip} -r {real} -m --snat"));
    debian.does("/usr/lib/rlvs/ipvsadm-service stop");
    let looks = ["ipvsadm -S -n --full", "rlvs acl list", "rlvs snat list", "rlvs set tcp_mss"];
    let before = looks.map(|look| debian.does(look));
    assert!(before[0].contains("--snat") && before[1].contains(&denied), "{before:?}");

    debian.does("umount /run/rlvs/bpf && mount -t bpf -o mode=0700 rlvs /run/rlvs/bpf");
    assert_eq!(debian.does("ipvsadm -S -n --full"), "");
    the_unit_starts(debian, "ipvsadm");
    assert_eq!(looks.map(|look| debian.does(look)), before);
    stage.as_client(|| drop(connect(vip).unwrap()));
}

/// The how-to's file with a script that runs as somebody else: addresses, advertisements, checks, the
/// table and users, with the capabilities that the unit leaves.
fn the_daemon_needs_no_more_than_its_unit_leaves(stage: &Stage, debian: &mut Debian) {
    const VIP: &str = "192.168.1.222";
    let [one, two] =
        [0, 1].map(|at| Method::Nat.address(&REAL_SERVERS[at], Family::V4).to_string());
    let script =
        "vrrp_script asked {\n script \"/usr/bin/test -w /tmp\"\n interval 1\n user nobody\n}\n";
    let text = HOW_TO
        .replace("192.168.1.200", VIP)
        .replace("192.168.1.101", &one)
        .replace("192.168.1.102", &two)
        .replace("path /health_check", "path /")
        .replace("    virtual_ipaddress", "    track_script {\n asked\n }\n    virtual_ipaddress");
    let path = "/etc/keepalived/keepalived.conf";
    debian.does("mkdir -p /etc/keepalived");
    debian.does(&format!("cat >{path} <<'END'\n{script}{text}\nEND\n"));
    let unit = debian.does("cat /usr/lib/systemd/system/keepalived.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let start = start.replace("$DAEMON_ARGS", "--log-console");
    let begun = format!("{} {start} >/run/said 2>&1 & echo $!", with_its_capabilities(&unit));
    let pid = debian.does(&begun);
    let vip = SocketAddr::new(VIP.parse().unwrap(), 80);
    wait_for("an answer by way of the daemon's table", || {
        let answer = stage.as_client(|| TcpStream::connect_timeout(&vip, Duration::from_secs(1)));
        let table = debian.does("ipvsadm -S -n");
        let servers = [(&one, 3), (&two, 2)];
        let has = |(server, weight): (&String, u8)| {
            table.contains(&format!("-a -t {vip} -r {server}:80 -m -w {weight}"))
        };
        match answer {
            Ok(_) if servers.into_iter().all(has) => Ok(()),
            other => Err(format!("{other:?} {table} {}", debian.does("cat /run/said"))),
        }
    });
    let said = debian.does("cat /run/said");
    for word in ["CAP_", "ermission", "not permitted"] {
        assert!(!said.contains(word), "{said}");
    }
    let [all, left] =
        ["self", &pid].map(|who| debian.does(&format!("grep CapBnd /proc/{who}/status")));
    assert_ne!(all, left);
    debian.does(&format!("kill {pid}"));
    wait_for("the daemon's end", || {
        let said = debian.does("cat /run/said");
        if debian.tries(&format!("test -e /proc/{pid}/exe")).0 != 0 { Ok(()) } else { Err(said) }
    });
    assert!(!debian.does("ipvsadm -S -n").contains(VIP));
    debian.does("rm -r /etc/keepalived /run/said");
}

fn neighbour_of_the_client() -> String {
    let IpAddr::V4(client) = CLIENT.of(Family::V4) else { panic!("an IPv4 address") };
    format!("{}/32", Ipv4Addr::from_bits(client.to_bits() ^ 1))
}

/// Returns a command that runs another with the capabilities of a unit.
fn with_its_capabilities(unit: &str) -> String {
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names: Vec<String> = line
        .unwrap()
        .split_ascii_whitespace()
        .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_ascii_lowercase()))
        .collect();
    format!("setpriv --bounding-set=-all,{} --inh-caps=-all", names.join(","))
}

/// A connection stays, and new ones are answered all the time. So many may be lost: where maps are laid out
/// otherwise, one that is opened after connections were read for the last time.
fn upgraded_under_load(
    stage: &Stage,
    debian: &mut Debian,
    new: &str,
    vip: SocketAddr,
    lost_most: u32,
) {
    let (stop, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    let lost = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let client = scope.spawn(|| {
            stage.as_client(|| {
                let mut first = connect(vip).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    if connect(vip).is_err() {
                        assert!(lost.fetch_add(1, Ordering::Relaxed) < lost_most);
                    }
                    first.stream.write_all(b"here").unwrap();
                    let mut back = [0; 4];
                    first.stream.read_exact(&mut back).unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let some_more = |what: &str| {
            let seen = answered.load(Ordering::Relaxed);
            wait_for(what, || {
                let now = answered.load(Ordering::Relaxed);
                if now > seen + 20 || client.is_finished() { Ok(()) } else { Err(now.to_string()) }
            });
        };
        some_more("answers before the upgrade");
        let said = debian.does(&format!("dpkg -i {new}"));
        assert!(said.contains(": runs this version's programs"), "{said}");
        let version = debian.does("dpkg-query -W -f '${Version}' rlvs");
        assert!(new.contains(&format!("_{version}_")), "{version}");
        some_more("answers after the upgrade");
        drop(stopping);
        client.join().unwrap();
    });
    assert!(debian.does("ipvsadm -L -n").contains(&vip.to_string()));
    assert!(debian.does("cat /etc/default/rlvs").contains("AUTO=true"));
}

/// An upgrade to other maps failed, and another package is installed before it could be finished.
fn the_version_that_made_the_maps_is_kept(debian: &mut Debian, new: &str) {
    let previous = "#!/bin/sh\necho cannot tell >&2\nexit 1";
    debian.does(&format!("mkdir -p /var/lib/rlvs && printf '{previous}' >/var/lib/rlvs/previous"));
    debian.does("chmod +x /var/lib/rlvs/previous");
    let said = debian.does(&format!("RLVS_TEST_LAYOUT=99999 dpkg -i {new}"));
    assert!(said.contains("cannot tell"), "{said}");
    assert_eq!(debian.does("cat /var/lib/rlvs/previous"), previous.replace("\\n", "\n"));
    // Nothing is left to be taken over: it is not kept, nor asked.
    let said = debian.does(&format!("dpkg -i {new}"));
    assert!(!said.contains("cannot tell"), "{said}");
    debian.does("test ! -e /var/lib/rlvs");
}

fn the_table_is_saved(debian: &mut Debian) {
    debian.does("rm /etc/ipvsadm.rules && /usr/lib/rlvs/ipvsadm-service stop");
    let kept = debian.does("grep -v '^#' /etc/ipvsadm.rules");
    assert_eq!(kept, debian.does("ipvsadm -S -n --full"));
    // Where there is no room the file stays as it was, and nothing else is left.
    debian.does("mount -t tmpfs -o size=8k none /mnt && cp /etc/ipvsadm.rules /mnt/rules");
    debian.does("head -c 8k /dev/zero >/mnt/full 2>/dev/null || true");
    let (status, said) = debian.tries("RLVS_RULES=/mnt/rules /usr/lib/rlvs/ipvsadm-service save");
    assert!(status != 0 && said.contains("/mnt/rules is as it was"), "{status} {said}");
    assert_eq!(debian.does("cmp /etc/ipvsadm.rules /mnt/rules && ls /mnt"), "full\nrules");
    debian.does("umount /mnt");
}
