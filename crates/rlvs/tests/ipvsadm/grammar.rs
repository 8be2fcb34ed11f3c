//! Rules of the grammar, for any values: which numbers are taken, that options stand in any order, and
//! that a letter and its word are one option.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::machine::Machine;
use crate::props::contents;

/// Lines with a number in the place of `{}`, and the first and last number that they take.
const NUMBERS: [(&str, i64, i64); 13] = [
    ("-a -t 10.0.0.1:80 -r 10.0.0.9:80 -w {}", 0, i32::MAX as i64),
    ("-e -t 10.0.0.1:80 -r 10.0.0.2:80 -w {}", 0, i32::MAX as i64),
    ("-a -t 10.0.0.1:80 -r 10.0.0.9:80 -x {}", 0, i32::MAX as i64),
    ("-a -t 10.0.0.1:80 -r 10.0.0.9:80 -x 2147483647 -y {}", 0, i32::MAX as i64),
    ("-a -t 10.0.0.1:80 -r 10.0.0.9:80 -x 5 -y {}", 0, 5),
    ("-A -t 10.0.0.7:80 -p {}", 1, 2_678_400),
    ("-A -f {}", 1, u32::MAX as i64),
    ("-A -t 10.0.0.7:{} -p 5", 0, 65_535),
    ("-a -t 10.0.0.1:80 -r 10.0.0.9:{} -m", 0, 65_535),
    ("-A -t [2001:db8::1]:80 -p 5 -M {}", 1, 128),
    ("-a -t 10.0.0.1:80 -r 10.0.0.9:80 -i --tun-type gue --tun-port {}", 1, 65_535),
    ("--set {} 0 0", 0, 2_678_400),
    ("--set 0 0 {}", 0, 2_678_400),
];

/// Options of a service, but that which names it.
const OF_SERVICE: [&str; 5] =
    ["-s sh", "-p 77", "-M 255.255.255.0", "-o", "-b sh-port,sh-fallback"];
/// The same of a destination.
const OF_DESTINATION: [&str; 5] = ["-r 10.0.0.9:80", "-m", "-w 7", "-x 9", "-y 3"];

/// Lines in letters and in words.
const SPELLINGS: [(&str, &str); 12] = [
    ("-A", "--add-service"),
    ("-E", "--edit-service"),
    ("-a", "--add-server"),
    ("-e", "--edit-server"),
    ("-t", "--tcp-service"),
    ("-s", "--scheduler"),
    ("-r", "--real-server"),
    ("-w", "--weight"),
    ("-m", "--masquerading"),
    ("-x", "--u-threshold"),
    ("-y", "--l-threshold"),
    ("-p", "--persistent"),
];

/// Returns a machine with a service and a destination.
fn furnished() -> Machine {
    let machine = Machine::new();
    machine.ok("-A -t 10.0.0.1:80 -s rr");
    machine.ok("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m");
    machine
}

fn number(first: i64, last: i64) -> impl Strategy<Value = i64> {
    let edges = vec![first - 1, first, first + 1, last - 1, last, last + 1, -1, 1 << 32, 1 << 40];
    prop_oneof![select(edges), first..=last, -100..200_000_i64]
}

/// Returns some of the options, in some order.
fn some(options: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(options, 0..=options.len()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn numbers_are_taken_from_the_first_to_the_last(
        (line, first, last, number) in select(&NUMBERS[..]).prop_flat_map(|(line, first, last)| {
            (Just(line), Just(first), Just(last), number(first, last))
        }),
    ) {
        let machine = furnished();
        let before = contents(&machine);
        let line = line.replace("{}", &number.to_string());
        let outcome = machine.run(&line);
        let is_taken = (first..=last).contains(&number);
        prop_assert_eq!(outcome.status == 0, is_taken, "{} {:?}", line, outcome);
        if !is_taken {
            prop_assert_eq!(contents(&machine), before, "{}", line);
        }
    }

    #[test]
    fn options_stand_in_any_order(
        of_service in some(&OF_SERVICE),
        of_destination in some(&OF_DESTINATION),
        at in 0..6_usize,
    ) {
        let with = |machine: &Machine, options: &[&str], command: &str, name: &str, at: usize| {
            let mut words = options.to_vec();
            words.insert(at.min(words.len()), name);
            machine.run(&format!("{command} {}", words.join(" "))).status
        };
        let sorted = |options: &[&'static str], all: &[&'static str]| {
            all.iter().filter(|option| options.contains(option)).copied().collect::<Vec<_>>()
        };
        let (machine, other) = (furnished(), furnished());
        let of_other = (sorted(&of_service, &OF_SERVICE), sorted(&of_destination, &OF_DESTINATION));
        let (service, known) = ("-u 10.0.0.7:53", "-t 10.0.0.1:80");
        let statuses = (
            with(&machine, &of_service, "-A", service, at),
            with(&machine, &of_destination, "-a", known, at),
        );
        let others =
            (with(&other, &of_other.0, "-A", service, 0), with(&other, &of_other.1, "-a", known, 0));
        prop_assert_eq!(statuses, others, "{:?} {:?}", of_service, of_destination);
        prop_assert_eq!(contents(&machine), contents(&other), "{:?} {:?}", of_service, of_destination);
    }

    #[test]
    fn a_letter_and_its_word_are_one_option(
        words in prop::collection::vec(any::<bool>(), SPELLINGS.len()),
        weight in 0..9_u32,
    ) {
        let spelt = |line: &str| {
            let word = |letter: &str| {
                let at = SPELLINGS.iter().position(|(known, _)| *known == letter);
                match at {
                    Some(at) if words[at] => SPELLINGS[at].1.to_owned(),
                    _ => letter.to_owned(),
                }
            };
            line.split(' ').map(word).collect::<Vec<_>>().join(" ")
        };
        let (machine, other) = (Machine::new(), Machine::new());
        for line in [
            "-A -t 10.0.0.1:80 -s rr -p 60".to_owned(),
            format!("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w {weight} -x 9 -y 3"),
            "-E -t 10.0.0.1:80 -s wrr -p 70".to_owned(),
            format!("-e -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w {} -x 8 -y 2", weight + 1),
        ] {
            other.ok(&line);
            machine.ok(&spelt(&line));
            prop_assert_eq!(contents(&machine), contents(&other), "{}", spelt(&line));
        }
    }
}
