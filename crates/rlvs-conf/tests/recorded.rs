//! Configurations of which it is recorded what `keepalived -t` 2.2.7 returns.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rlvs_conf::{Configuration, Options, Surroundings, Unread, read};

/// A machine with `eth0` and a few programs, and the files beside this one.
struct Machine;

impl Surroundings for Machine {
    fn read(&mut self, path: &Path, _: usize) -> Result<Vec<u8>, Unread> {
        let Ok(data) = std::fs::metadata(path) else { return Err(Unread::Missing) };
        if data.permissions().mode() & 0o111 != 0 {
            return Err(Unread::NotConfiguration);
        }
        std::fs::read(path).map_err(|error| Unread::Failed(error.to_string()))
    }
    fn matching(&mut self, pattern: &str) -> Vec<PathBuf> {
        let (before, after) = pattern.split_once('*').expect("a pattern");
        let folder = Path::new(before).parent().expect("a folder");
        let files = std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path());
        let matches = |path: &PathBuf| {
            let text = path.to_str().expect("text");
            text.starts_with(before) && text.ends_with(after)
        };
        let mut paths: Vec<_> = files.filter(matches).collect();
        paths.sort();
        paths
    }
    fn has_interface(&self, name: &str) -> Option<bool> {
        Some(name == "eth0")
    }
    fn has_program(&self, path: &str) -> Option<bool> {
        Some(path != "/no/such/script")
    }
    fn has_user(&self, name: &str) -> Option<bool> {
        Some(name == "root")
    }
}

fn read_file(name: &str) -> Configuration {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keepalived").join(name);
    read(&path, &mut Machine, &Options { id: "lb1".into(), ..Options::default() })
}

fn told(read: &Configuration) -> String {
    read.diagnostics.iter().map(|found| found.render(&read.sources, false) + "\n").collect()
}

fn check(name: &str, status: u8) {
    let read = read_file(name);
    assert_eq!(read.diagnostics.status(false), status, "{name}\n{}", told(&read));
}

#[test]
fn exit_statuses_are_those_of_keepalived() {
    for (name, status) in [
        ("03_missing_close.conf", 5),
        ("05_missing_open.conf", 5),
        ("07_number_range.conf", 5),
        ("09_missing_param.conf", 2),
        ("11_bad_interface.conf", 5),
        ("13_dup_vrid.conf", 5),
        ("15_long_auth.conf", 5),
        ("17_v2_fraction.conf", 5),
        ("19_nopreempt_master.conf", 5),
        ("21_mixed_family.conf", 5),
        ("23_script.conf", 5),
        ("25_vs_dr_port.conf", 5),
        ("27_quotes.conf", 5),
        ("29_vars.conf", 5),
        ("31_include.conf", 6),
        ("33_vip_one_line.conf", 5),
        ("35_dup_keyword.conf", 5),
        ("37_bool.conf", 5),
        ("39_longline.conf", 5),
        ("tutorial_ok.conf", 0),
    ] {
        check(name, status);
    }
}

#[test]
fn what_users_mean_is_taken_unless_keepalived_is_to_be_imitated() {
    for name in ["how-to.conf", "tutorial.conf", "oneline.conf"] {
        check(name, 0);
        assert_eq!(read_file(name).diagnostics.status(true), 5, "{name}");
    }
}

#[test]
fn a_file_that_may_be_executed_is_no_configuration() {
    check("41_exec.conf", 4);
    check("no-such.conf", 4);
}
