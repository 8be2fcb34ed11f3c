//! What `-R` does with its lines, as observed on the real tool.

use crate::machine::Machine;

const ONE: &str = "-A -t 9.9.9.9:1 -s rr\n";
const TWO: &str = "-A -t 9.9.9.9:2 -s rr\n";

#[test]
fn words_are_apart_by_blanks_tabs_and_line_ends() {
    check("", 0, false, "");
    check("\n  \n\t\r\n", 0, false, "");
    check("ipvsadm ipvsadm -A\t-t  9.9.9.9:1\r -s rr\r\n", 0, false, ONE);
    check("-A -t 9.9.9.9:1 -s rr", 0, false, ONE);
    check("ipvsadm\n-A -t 9.9.9.9:1 ipvsadm -s rr", 0, false, ONE);
    check("-A -t 9.9.9.9:1\u{b}-s rr", 2, true, "");
    check("-A -t 9.9.9.9:1 -s \"rr\"", 255, true, "");
}

#[test]
fn what_the_table_refuses_is_passed_over_and_the_last_line_decides() {
    let both = [ONE, TWO].concat();
    for bad in ["-D -t 8.8.8.8:1", "-Z -f 99", "-A -t 9.9.9.9:1", "--stop-daemon master"] {
        check(&format!("{ONE}{bad}\n{TWO}"), 0, true, &both);
        check(&format!("{ONE}{bad}\n"), 255, true, ONE);
        check(&format!("{ONE}{bad}\n\n  \n"), 255, true, ONE);
    }
}

#[test]
fn an_unknown_option_is_passed_over_like_a_refusal() {
    let both = [ONE, TWO].concat();
    for bad in ["-A -z", "-A -t", "--set -1 2 3", "-L --numeric=1"] {
        check(&format!("{ONE}{bad}\n{TWO}"), 0, true, &both);
        check(&format!("{ONE}{bad}"), 255, true, ONE);
    }
}

#[test]
fn a_line_without_command_ends_the_restore_with_255() {
    for bad in ["# a remark", "-z", "garbage", "-t 1.2.3.4:80", "-R", "--restore", "--"] {
        check(&format!("{ONE}{bad}\n{TWO}"), 255, true, ONE);
    }
}

#[test]
fn a_line_that_makes_no_sense_ends_the_restore_with_2() {
    for bad in ["-L # a remark", "-A -t x", "-C -n", "-L -n -n", "foo -L", "-A -A"] {
        check(&format!("{ONE}{bad}\n{TWO}"), 2, true, ONE);
    }
}

#[test]
fn a_list_that_fails_ends_the_restore_with_1() {
    check(&format!("{ONE}-L -t 8.8.8.8:1\n{TWO}"), 1, true, ONE);
}

#[test]
fn help_and_version_end_the_restore_with_0() {
    check(&format!("{ONE}-h\n{TWO}"), 0, false, ONE);
    check(&format!("{ONE}-A -t 9.9.9.9:1\n-v\n{TWO}"), 0, true, ONE);
}

#[test]
fn any_other_command_may_stand_in_a_line() {
    check(&format!("{ONE}-C\n{TWO}"), 0, false, TWO);
    let machine = Machine::new();
    let outcome = machine.run_words(&["-R"], &format!("{ONE}-S -n\n--set 1 2 3\n-L --timeout\n"));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert_eq!(outcome.stdout, format!("{ONE}Timeout (tcp tcpfin udp): 1 2 3\n"));
}

#[test]
fn a_message_names_the_line() {
    let outcome = Machine::new().run_words(&["-R"], "\n-A -f 7\n\n-A -f 7\n-A -f 8\n");
    assert_eq!(outcome.status, 0);
    assert_eq!(outcome.stderr, "ipvsadm: line 4: the virtual service exists already\n");
}

#[test]
fn a_line_has_a_limit() {
    let long = format!("-A -f 7 -s {}\n", "x".repeat(65_536));
    check(&format!("{ONE}{long}{TWO}"), 2, true, ONE);
    let blank = " ".repeat(65_000);
    check(&format!("{blank}{ONE}"), 0, false, ONE);
}

#[track_caller]
fn check(stdin: &str, status: u8, complains: bool, saved: &str) {
    let machine = Machine::new();
    let outcome = machine.run_words(&["-R"], stdin);
    assert_eq!(outcome.status, status, "{outcome:?}");
    assert_eq!(!outcome.stderr.is_empty(), complains, "{outcome:?}");
    assert_eq!(machine.ok("-S -n"), saved);
}
