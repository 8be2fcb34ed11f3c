//! What the lab tries and what must come of it: values only, nothing is run here.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rlvs_control::model::{Family, Protocol};

use super::client::Answers;
use super::topology::{Addresses, DIRECTOR, HTTP_PORT, REAL_SERVERS, RealServer, UDP_PORT, VIPS};

/// How packets reach the real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    DirectRoute,
    Masquerade,
    Tunnel,
    /// NAT of both ends: the real servers are in the client's own network.
    FullNat,
}

/// Who gets the next connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheduler {
    RoundRobin,
    WeightedRoundRobin,
}

/// One virtual service with its real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) method: Method,
    pub(super) scheduler: Scheduler,
    pub(super) protocol: Protocol,
    pub(super) family: Family,
}

/// The how-to's own: direct routing, round robin, TCP over IPv4.
pub(super) const HOW_TO: Case = Case {
    method: Method::DirectRoute,
    scheduler: Scheduler::RoundRobin,
    protocol: Protocol::Tcp,
    family: Family::V4,
};

impl Method {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::DirectRoute => &["-g"],
            Self::Masquerade => &["-m"],
            Self::Tunnel => &["-i"],
            Self::FullNat => &["-m", "--snat"],
        }
    }

    /// Returns the word of the listing's column `Forward`.
    fn column(self) -> &'static str {
        match self {
            Self::DirectRoute => "Route",
            Self::Masquerade | Self::FullNat => "Masq",
            Self::Tunnel => "Tunnel",
        }
    }

    fn addresses(self, server: &RealServer) -> Addresses {
        match self {
            Self::DirectRoute | Self::Tunnel | Self::FullNat => server.outside,
            Self::Masquerade => server.inside,
        }
    }
}

impl Scheduler {
    fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
        }
    }

    /// Returns the weights of the real servers; `None` leaves them unsaid, which means 1.
    fn weights(self) -> Option<[u32; 2]> {
        match self {
            Self::RoundRobin => None,
            Self::WeightedRoundRobin => Some([3, 1]),
        }
    }
}

impl Case {
    /// Returns every case, the how-to's own first.
    pub(super) fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for family in [Family::V4, Family::V6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for method in [Method::DirectRoute, Method::Masquerade] {
                    for scheduler in [Scheduler::RoundRobin, Scheduler::WeightedRoundRobin] {
                        cases.push(Self { method, scheduler, protocol, family });
                    }
                }
            }
        }
        cases.extend(Self::tunnels());
        cases.extend(Self::full_nat());
        cases
    }

    /// Returns the cases of full NAT.
    fn full_nat() -> [Self; 2] {
        let four = Self { method: Method::FullNat, ..HOW_TO };
        [four, Self { protocol: Protocol::Udp, family: Family::V6, ..four }]
    }

    /// Returns the arguments of the `rlvs` command without which `ipvsadm` refuses the case.
    pub(super) fn preparation(self) -> Option<Vec<String>> {
        let address = DIRECTOR.of(self.family).to_string();
        let is_full = self.method == Method::FullNat;
        is_full.then(|| vec!["snat".to_owned(), "add".to_owned(), address])
    }

    /// Returns the cases of tunnelling, as the how-to has them.
    fn tunnels() -> [Self; 2] {
        [Family::V4, Family::V6].map(|family| Self { method: Method::Tunnel, family, ..HOW_TO })
    }

    /// Returns the cases of the quick run, in which every method, scheduler, protocol and family
    /// occurs, but not every combination.
    pub(super) fn quick() -> Vec<Self> {
        let mut cases = Self::all();
        cases.retain(|case| {
            let is_tcp_over_ipv4 = case.protocol == Protocol::Tcp && case.family == Family::V4;
            let is_udp_over_ipv6 = case.protocol == Protocol::Udp && case.family == Family::V6;
            is_tcp_over_ipv4 || (is_udp_over_ipv6 && case.scheduler == Scheduler::RoundRobin)
        });
        cases
    }

    /// Returns the address and port that the client asks.
    pub(super) fn target(self) -> SocketAddr {
        SocketAddr::new(self.vip().of(self.family), self.port())
    }

    /// Returns a virtual address at which no other case has the same real servers, so that each
    /// begins with no connections.
    fn vip(self) -> Addresses {
        match (self.method, self.scheduler) {
            (Method::Tunnel, _) => VIPS[2],
            (Method::FullNat, _) => VIPS[3],
            (_, Scheduler::RoundRobin) => VIPS[0],
            (_, Scheduler::WeightedRoundRobin) => VIPS[1],
        }
    }

    fn port(self) -> u16 {
        match self.protocol {
            Protocol::Udp => UDP_PORT,
            _ => HTTP_PORT,
        }
    }

    fn destination(self, server: &RealServer) -> SocketAddr {
        SocketAddr::new(self.method.addresses(server).of(self.family), self.port())
    }

    /// Returns the arguments of the `ipvsadm` commands that set the service up.
    pub(super) fn commands(self) -> Vec<Vec<String>> {
        let service_flag = match self.protocol {
            Protocol::Udp => "-u",
            _ => "-t",
        };
        let target = self.target().to_string();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let mut commands = vec![words(&["-A", service_flag, &target, "-s", self.scheduler.name()])];
        for (position, server) in REAL_SERVERS.iter().enumerate() {
            let destination = self.destination(server).to_string();
            let mut command: Vec<String> =
                words(&["-a", service_flag, &target, "-r", &destination]);
            command.extend(words(self.method.flags()));
            let weights = self.scheduler.weights();
            if let Some(weight) = weights.as_ref().and_then(|weights| weights.get(position)) {
                command.extend(["-w".to_owned(), weight.to_string()]);
            }
            commands.push(command);
        }
        commands
    }

    /// Returns what `ipvsadm -L -n` must print while there has been no connection.
    pub(super) fn listing(self) -> String {
        let protocol = self.protocol;
        let mut text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                        Prot LocalAddress:Port Scheduler Flags\n  \
                          -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
            .to_owned();
        text += &format!("{protocol:<4} {} {}\n", self.target(), self.scheduler.name());
        for (server, weight) in REAL_SERVERS.iter().zip(self.weights()) {
            let destination = self.destination(server).to_string();
            let forward = self.method.column();
            text +=
                &format!("  -> {destination:<28} {forward:<7} {weight:<6} {:<10} {:<10}\n", 0, 0);
        }
        text
    }

    fn weights(self) -> [u32; 2] {
        self.scheduler.weights().unwrap_or([1, 1])
    }

    /// Returns how many of `requests` each server must answer, by its name, exact to one in an
    /// unfinished round.
    pub(super) fn shares(self, requests: u32) -> BTreeMap<String, f64> {
        let weights = self.weights();
        let total: u32 = weights.iter().sum();
        let share = |weight: u32| f64::from(requests) * f64::from(weight) / f64::from(total);
        REAL_SERVERS
            .iter()
            .zip(weights)
            .map(|(server, weight)| (server.title.to_owned(), share(weight)))
            .collect()
    }

    /// Returns what is wrong with the answers.
    pub(super) fn judge_answers(self, requests: u32, answers: &Answers) -> Vec<String> {
        let mut problems = answers.failures.clone();
        let shares = self.shares(requests);
        for (name, share) in &shares {
            let count = f64::from(answers.counts.get(name).copied().unwrap_or(0));
            let difference = (count - share).abs();
            let is_right = if share.fract() == 0.0 { difference == 0.0 } else { difference < 1.0 };
            if !is_right {
                problems.push(format!("{name} answered {count} times instead of {share}"));
            }
        }
        for (name, count) in &answers.counts {
            if !shares.contains_key(name) {
                problems.push(format!("`{name}`, which is no real server, answered {count} times"));
            }
        }
        problems
    }

    /// Returns what is wrong with the listing after the answers: it must count each connection.
    pub(super) fn judge_listing(self, listing: &str, answers: &Answers) -> Vec<String> {
        let mut problems = Vec::new();
        for server in &REAL_SERVERS {
            let destination = self.destination(server).to_string();
            let expected = answers.counts.get(server.title).copied().unwrap_or(0);
            let listed = listing.lines().find_map(|line| connections_of(line, &destination));
            if listed != Some(expected) {
                let listed = listed.map_or("nothing".to_owned(), |count| count.to_string());
                problems.push(format!(
                    "the listing shows {listed} for {destination} instead of {expected} connections"
                ));
            }
        }
        problems
    }
}

/// Returns active and inactive connections together, if the line is that destination's.
fn connections_of(line: &str, destination: &str) -> Option<u32> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let ["->", address, _forward, _weight, active, inactive] = words.as_slice() else {
        return None;
    };
    if *address != destination {
        return None;
    }
    active.parse::<u32>().ok()?.checked_add(inactive.parse().ok()?)
}

impl std::fmt::Display for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let method = match self.method {
            Method::DirectRoute => "direct routing",
            Method::Masquerade => "NAT",
            Method::Tunnel => "tunnels",
            Method::FullNat => "full NAT",
        };
        let protocol = self.protocol;
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let text = format!("{method}, {}, {protocol} over {family}", self.scheduler.name());
        formatter.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(one: u32, two: u32) -> Answers {
        let counts = [("Server 1".to_owned(), one), ("Server 2".to_owned(), two)];
        Answers { counts: counts.into(), failures: Vec::new() }
    }

    fn typed(case: Case) -> Vec<String> {
        case.commands().iter().map(|words| words.join(" ")).collect()
    }

    const WEIGHTED: Case = Case {
        method: Method::Masquerade,
        scheduler: Scheduler::WeightedRoundRobin,
        protocol: Protocol::Udp,
        family: Family::V6,
    };

    #[test]
    fn the_first_case_is_the_how_to_word_for_word() {
        assert_eq!(Case::all().first(), Some(&HOW_TO));
        let expected = [
            "-A -t 192.168.1.200:80 -s rr",
            "-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g",
            "-a -t 192.168.1.200:80 -r 192.168.1.102:80 -g",
        ];
        assert_eq!(typed(HOW_TO), expected);
        let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  192.168.1.200:80 rr
  -> 192.168.1.101:80             Route   1      0          0         
  -> 192.168.1.102:80             Route   1      0          0         
";
        assert_eq!(HOW_TO.listing(), expected);
    }

    #[test]
    fn weights_and_ipv6_are_typed_and_listed() {
        let expected = [
            "-A -u [fd00:1::201]:5300 -s wrr",
            "-a -u [fd00:1::201]:5300 -r [fd00:2::101]:5300 -m -w 3",
            "-a -u [fd00:1::201]:5300 -r [fd00:2::102]:5300 -m -w 1",
        ];
        assert_eq!(typed(WEIGHTED), expected);
        let listing = WEIGHTED.listing();
        let line = "  -> [fd00:2::101]:5300           Masq    3      0          0         ";
        assert_eq!(listing.lines().nth(4), Some(line));
    }

    #[test]
    fn tunnels_are_typed_and_listed() {
        let expected = [
            "-A -t 192.168.1.202:80 -s rr",
            "-a -t 192.168.1.202:80 -r 192.168.1.101:80 -i",
            "-a -t 192.168.1.202:80 -r 192.168.1.102:80 -i",
        ];
        let [four, six] = Case::tunnels();
        assert_eq!(typed(four), expected);
        let line = "  -> 192.168.1.102:80             Tunnel  1      0          0         ";
        assert_eq!(four.listing().lines().nth(5), Some(line));
        assert_eq!(typed(six).last().unwrap(), "-a -t [fd00:1::202]:80 -r [fd00:1::102]:80 -i");
        assert_eq!(six.to_string(), "tunnels, rr, TCP over IPv6");
    }

    #[test]
    fn full_nat_is_typed_with_its_pool() {
        let [four, six] = Case::full_nat();
        let expected = [
            "-A -t 192.168.1.203:80 -s rr",
            "-a -t 192.168.1.203:80 -r 192.168.1.101:80 -m --snat",
            "-a -t 192.168.1.203:80 -r 192.168.1.102:80 -m --snat",
        ];
        assert_eq!(typed(four), expected);
        assert_eq!(four.preparation().unwrap().join(" "), "snat add 192.168.1.100");
        assert_eq!(six.preparation().unwrap().join(" "), "snat add fd00:1::100");
        assert_eq!(HOW_TO.preparation(), None);
    }

    #[test]
    fn only_the_right_distribution_passes() {
        let passes =
            |case: Case, requests, answers| case.judge_answers(requests, &answers).is_empty();
        assert!(passes(HOW_TO, 24, answers(12, 12)));
        assert!(!passes(HOW_TO, 24, answers(13, 11)));
        assert!(passes(HOW_TO, 25, answers(13, 12)) && passes(HOW_TO, 25, answers(12, 13)));
        assert!(!passes(HOW_TO, 25, answers(14, 11)));
        assert!(passes(WEIGHTED, 24, answers(18, 6)));
        assert!(!passes(WEIGHTED, 24, answers(12, 12)));
        assert!(!passes(HOW_TO, 24, Answers::default()));
        let mut foreign = answers(12, 12);
        foreign.counts.insert("nginx".to_owned(), 1);
        assert!(!passes(HOW_TO, 24, foreign));
        let mut failed = answers(12, 12);
        failed.failures.push("request 3: timed out".to_owned());
        assert!(!passes(HOW_TO, 24, failed));
    }

    #[test]
    fn the_listing_must_count_every_connection() {
        let listing = HOW_TO.listing().replace("1      0          0 ", "1      2          10");
        assert_eq!(HOW_TO.judge_listing(&listing, &answers(12, 12)), Vec::<String>::new());
        assert_eq!(HOW_TO.judge_listing(&listing, &answers(12, 11)).len(), 1);
        assert_eq!(HOW_TO.judge_listing("", &answers(12, 12)).len(), 2);
    }
}
