//! `rlvs check` and `keepalived -t` as programs.

use std::path::PathBuf;
use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_rlvs")).args(args).output();
    output.expect("the program runs")
}

fn file(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../rlvs-conf/tests/keepalived");
    folder.join(name).to_str().expect("a path of text").to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_how_to_is_right_and_its_words_are_explained() {
    let output = run(&["check", &file("how-to.conf")]);
    assert_eq!(output.status.code(), Some(0));
    let told = text(&output.stdout);
    assert!(told.contains("how-to.conf:27:13") && told.contains("`timeout` is honoured"), "{told}");
    assert!(told.contains("2 real server(s)"), "{told}");
}

#[test]
fn json_names_the_place() {
    let output = run(&["check", "--json", &file("07_number_range.conf")]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["ok"], false);
    let first = &value["diagnostics"][0];
    assert_eq!((first["line"].as_u64(), first["column"].as_u64()), (Some(3), Some(23)));
}

#[test]
fn what_is_meant_is_a_configuration_without_passwords() {
    let output = run(&["check", "--effective", &file("how-to.conf")]);
    let told = text(&output.stdout);
    assert!(told.contains("fall 2") && told.contains("auth_pass ********"), "{told}");
    assert!(!told.contains("1234"), "{told}");
}

#[test]
fn the_test_of_keepalived_returns_its_statuses() {
    for (args, status) in [
        (&["keepalived", "-t", "-f", &file("tutorial_ok.conf")][..], 0),
        (&["keepalived", "-t", "-f", &file("how-to.conf")], 0),
        (&["keepalived", "--compat=keepalived", "-t", "-f", &file("how-to.conf")], 5),
        (&["keepalived", "-t", "-f", &file("11_bad_interface.conf")], 5),
        (&["keepalived", "-t", "-f", &file("09_missing_param.conf")], 2),
        (&["keepalived", "-t", "-f", &file("31_include.conf")], 6),
        (&["keepalived", "-t", "-f", &file("no-such.conf")], 4),
        (&["keepalived", "--nosuch"], 1),
        (&["keepalived", "--version"], 0),
        (&["keepalived", "-n", "-f", &file("no-such.conf")], 6),
    ] {
        assert_eq!(run(args).status.code(), Some(status), "{args:?}");
    }
}
