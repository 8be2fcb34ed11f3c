//! Every command with every option, against the matrix as the reference states it.

use crate::machine::Machine;

const VIP: &str = "10.0.0.1:80";

/// Options in the reference's order, then ours, each with words that give it.
const OPTIONS: [(&str, &str); 37] = [
    ("-n", "-n"),
    ("-c", "-c"),
    ("svc", "-u 10.0.0.1:80"),
    ("-s", "-s rr"),
    ("-p", "-p 5"),
    ("-M", "-M 255.255.255.0"),
    ("-r", "-r 10.0.0.2:80"),
    ("fwd", "-m"),
    ("-w", "-w 3"),
    ("-x", "-x 9"),
    ("-y", "-y 0"),
    ("mcast-if", "--mcast-interface lo"),
    ("timeout", "--timeout"),
    ("daemon", "--daemon"),
    ("stats", "--stats"),
    ("rate", "--rate"),
    ("thresholds", "--thresholds"),
    ("persistent-conn", "--persistent-conn"),
    ("nosort", "--nosort"),
    ("syncid", "--syncid 7"),
    ("exact", "--exact"),
    ("ops", "-o"),
    ("pe", "--pe sip"),
    ("sched-flags", "-b flag-1"),
    ("mcast-group", "--mcast-group 224.0.0.81"),
    ("mcast-port", "--mcast-port 8848"),
    ("mcast-ttl", "--mcast-ttl 1"),
    ("sync-maxlen", "--sync-maxlen 1400"),
    ("tun-info", "--tun-info"),
    ("tun-type", "--tun-type gue"),
    ("tun-port", "--tun-port 6080"),
    ("tun-nocsum", "--tun-nocsum"),
    ("tun-csum", "--tun-csum"),
    ("tun-remcsum", "--tun-remcsum"),
    ("atomic", "--atomic"),
    ("json", "--json"),
    ("full", "--full"),
];

/// Rows of the reference: words of the command, compulsory, optional, mutually exclusive.
const COMMANDS: [(&str, &str, &str, &str); 14] = [
    ("-A", "svc", "-s -p -M ops pe sched-flags", ""),
    ("-E", "svc", "-s -p -M ops pe sched-flags", ""),
    ("-D", "svc", "", ""),
    ("-C", "", "", ""),
    ("--set 1 2 3", "", "", ""),
    ("-R", "", "atomic", ""),
    (
        "-L",
        "",
        "-n stats rate thresholds persistent-conn nosort syncid exact tun-info json",
        "-c svc timeout daemon",
    ),
    ("-a", "svc -r", "fwd -w -x -y tun-type tun-port tun-nocsum tun-csum tun-remcsum", ""),
    ("-e", "svc -r", "fwd -w -x -y tun-type tun-port tun-nocsum tun-csum tun-remcsum", ""),
    ("-d", "svc -r", "", ""),
    (
        "--start-daemon master",
        "",
        "mcast-if syncid mcast-group mcast-port mcast-ttl sync-maxlen",
        "",
    ),
    ("--stop-daemon backup", "", "syncid", ""),
    ("-S", "", "-n full", ""),
    ("-Z", "", "svc", ""),
];

#[test]
fn every_command_takes_the_options_of_its_row_and_no_others() {
    let mut met = 0;
    for (command, compulsory, optional, exclusive) in COMMANDS {
        for (option, words) in OPTIONS {
            met += 1;
            let base: Vec<_> = compulsory.split_whitespace().map(words_of).collect();
            let required = compulsory.split_whitespace().any(|name| name == option);
            let legal = [optional, exclusive]
                .iter()
                .any(|list| list.split_whitespace().any(|name| name == option));
            let line = format!("{command} {}", base.join(" "));
            if required {
                refused(&line.replace(words, ""));
                accepted(&line);
            } else if !legal {
                refused(&format!("{line} {words}"));
            } else if option.starts_with("tun-") && command != "-L" {
                // These make sense only together, for which there is another test.
                accepted(&format!("{line} -i {}", tunnel_words(words)));
            } else {
                accepted(&format!("{line} {words}"));
            }
        }
    }
    assert_eq!(met, COMMANDS.len() * OPTIONS.len());
}

#[test]
fn what_a_list_shows_is_one_thing() {
    let things = ["-c", "svc", "timeout", "daemon"];
    for one in things {
        for other in things.into_iter().filter(|&other| other != one) {
            refused(&format!("-L {} {}", words_of(one), words_of(other)));
        }
    }
    for thing in ["-c", "timeout", "daemon"] {
        for format in ["stats", "rate", "thresholds"] {
            refused(&format!("-L {} {}", words_of(thing), words_of(format)));
        }
        let line = format!("-L {} --persistent-conn", words_of(thing));
        if thing == "-c" { accepted(&line) } else { refused(&line) }
    }
}

#[test]
fn tunnel_options_go_with_their_type_and_only_with_a_tunnel() {
    let legal = [
        ("", ""),
        ("--tun-type ipip", ""),
        ("--tun-type gue", "--tun-port 5"),
        ("--tun-type gue", "--tun-port 5 --tun-nocsum"),
        ("--tun-type gue", "--tun-port 5 --tun-csum"),
        ("--tun-type gue", "--tun-port 5 --tun-remcsum"),
        ("--tun-type gre", ""),
        ("--tun-type gre", "--tun-nocsum"),
        ("--tun-type gre", "--tun-csum"),
    ];
    let switches = ["--tun-port 5", "--tun-nocsum", "--tun-csum", "--tun-remcsum"];
    for kind in ["", "--tun-type ipip", "--tun-type gue", "--tun-type gre"] {
        for set in 0..1 << switches.len() {
            let chosen = (0..switches.len()).filter(|bit| set & 1 << bit != 0);
            let chosen = chosen.map(|bit| switches[bit]).collect::<Vec<_>>().join(" ");
            let line = format!("-a -t {VIP} -r 10.0.0.2 {kind} {chosen}");
            match legal.contains(&(kind, chosen.as_str())) {
                true => accepted(&format!("{line} -i")),
                false => refused(&format!("{line} -i")),
            }
            if !kind.is_empty() || !chosen.is_empty() {
                refused(&line);
                refused(&format!("{line} -m"));
            }
        }
    }
}

#[test]
fn no_option_is_given_twice() {
    for (option, words) in OPTIONS {
        let command = COMMANDS.iter().find(|row| {
            [row.1, row.2, row.3].iter().any(|list| list.split_whitespace().any(|o| o == option))
        });
        let (command, compulsory, ..) = command.unwrap();
        let base: Vec<_> = compulsory.split_whitespace().map(words_of).collect();
        refused(&format!("{command} {} {words} {words}", base.join(" ")));
    }
    accepted("-L --sort --sort");
    accepted("-L -f 1 -6 -6");
}

fn words_of(option: &str) -> &'static str {
    OPTIONS.iter().find(|(name, _)| *name == option).unwrap().1
}

fn tunnel_words(words: &str) -> String {
    match words {
        "--tun-type gue" => "--tun-type gre".to_owned(),
        "--tun-port 6080" => "--tun-type gue --tun-port 6080".to_owned(),
        _ => format!("--tun-type gue --tun-port 6080 {words}"),
    }
}

/// Expects that a line makes no sense: status 2, a message, nothing printed, no table opened.
#[track_caller]
fn refused(line: &str) {
    let outcome = Machine::new().run(line);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""), "{line}");
    assert!(outcome.stderr.starts_with("ipvsadm: ") && !outcome.opened, "{line}: {outcome:?}");
}

/// Expects that a line makes sense, whatever an empty table answers.
#[track_caller]
fn accepted(line: &str) {
    let outcome = Machine::new().run(line);
    assert_ne!(outcome.status, 2, "{line}: {outcome:?}");
}
