//! Every command with every option, against the matrix as the reference states it.

use proptest::prelude::*;

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

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn options_are_taken_together_in_any_order_or_refused(
        row in prop::sample::select(COMMANDS.to_vec()),
        // Most of those that it takes, so that most lines break one rule or none.
        own in any::<u64>(),
        others in prop::collection::vec(0..OPTIONS.len(), 0..2),
        order in any::<u64>(),
        tunnel in any::<bool>(),
        kind in prop::sample::select(vec!["ipip", "gue", "gre"]),
    ) {
        let is_own = |at: usize| has(row.2, OPTIONS[at].0) || has(row.3, OPTIONS[at].0);
        let is_chosen = |at: usize| {
            let is_left_out = own >> at & 1 == 0;
            others.contains(&at) || if has(row.1, OPTIONS[at].0) {
                own >> 60 != 0 || !is_left_out
            } else {
                is_own(at) && !is_left_out
            }
        };
        let mut chosen: Vec<usize> = (0..OPTIONS.len()).filter(|&at| is_chosen(at)).collect();
        chosen.sort_by_key(|&at| order.wrapping_mul(at as u64 * 2 + 1) >> 32);
        let names: Vec<&str> = chosen.iter().map(|&at| OPTIONS[at].0).collect();
        let words: Vec<String> = names.iter().map(|&name| match name {
            "fwd" if tunnel => "-i".to_owned(),
            "tun-type" => format!("--tun-type {kind}"),
            _ => words_of(name).to_owned(),
        }).collect();
        let line = format!("{} {}", row.0, words.join(" "));
        match makes_sense(row, &names, tunnel, kind) {
            true => accepted(&line),
            false => refused(&line),
        }
    }
}

fn has(list: &str, option: &str) -> bool {
    list.split_whitespace().any(|name| name == option)
}

/// Returns whether a row of the reference, and what it says besides, allow these options together.
fn makes_sense(
    (command, compulsory, optional, exclusive): (&str, &str, &str, &str),
    names: &[&str],
    tunnel: bool,
    kind: &str,
) -> bool {
    let is_there = |name: &str| names.contains(&name);
    let count = |list: &str| list.split_whitespace().filter(|name| is_there(name)).count();
    let all = [compulsory, optional, exclusive];
    let is_known = names.iter().all(|name| all.iter().any(|list| has(list, name)));
    if !is_known
        || count(compulsory) < compulsory.split_whitespace().count()
        || count(exclusive) > 1
    {
        return false;
    }
    if command == "-L" {
        let no_servers = count("timeout daemon");
        let is_odd = count("-c") + no_servers > 0 && count("stats rate thresholds") > 0
            || no_servers > 0 && is_there("persistent-conn");
        return !is_odd;
    }
    let (sums, port) = (count("tun-nocsum tun-csum tun-remcsum"), is_there("tun-port"));
    if !is_there("tun-type") && sums == 0 && !port {
        return true;
    }
    let fits = match (is_there("tun-type"), kind) {
        (true, "gue") => port && sums <= 1,
        (true, "gre") => !port && sums <= 1 && !is_there("tun-remcsum"),
        _ => !port && sums == 0,
    };
    fits && tunnel && is_there("fwd")
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
