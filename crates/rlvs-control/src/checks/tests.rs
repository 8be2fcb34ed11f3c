//! Health of one service, attempt by attempt.

use std::time::Duration;

use super::*;
use crate::model::ForwardingMethod;

const SECOND: Duration = Duration::from_secs(1);

/// A service whose servers have one check each, named by the server's number.
struct Play {
    health: Health<u8>,
    now: Instant,
}

fn server(number: u8, weight: u32) -> Server<u8> {
    let timing = Timing {
        delay_loop: 10 * SECOND,
        warmup: SECOND,
        retry: 0,
        delay_before_retry: SECOND,
        deadline: 2 * SECOND,
        fall: 1,
        rise: 1,
        fast_recovery: false,
    };
    let destination = Destination {
        id: id(number),
        method: ForwardingMethod::DirectRoute,
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
    };
    let checks = vec![Check { request: number, timing: timing.into(), starts_down: false }];
    Server { destination, inhibit: false, checks }
}

fn id(number: u8) -> DestinationId {
    DestinationId { address: [10, 0, 0, number].into(), port: 80 }
}

fn service(servers: &[(u8, u32)], quorum: (u32, u32)) -> Service<u8> {
    let sorry = Sorry { destination: server(99, 1).destination, inhibit: false };
    Service {
        name: "VS".to_owned(),
        quorum: Quorum { weight: quorum.0, hysteresis: quorum.1 },
        sorry: Some(sorry),
        servers: servers.iter().map(|&(number, weight)| server(number, weight)).collect(),
    }
}

impl Play {
    fn new(service: Service<u8>) -> Self {
        let now = Instant::now();
        let health = Health::new(vec![service], 1, now);
        Self { health, now }
    }

    /// Goes on until an attempt of this server begins, answering all others as they were, and ends it.
    fn end(&mut self, server: u8, outcome: &Outcome) {
        loop {
            for (check, attempt) in self.begun() {
                let asked = self.health.request(check).copied().unwrap();
                if asked == server {
                    self.finish(check, attempt, outcome.clone());
                    return;
                }
                let up = self.health.is_up("VS", id(asked)).unwrap();
                let same = if up { Outcome::Good } else { Outcome::Bad("as before".into()) };
                self.finish(check, attempt, same);
            }
        }
    }

    fn finish(&mut self, check: CheckId, attempt: AttemptId, outcome: Outcome) {
        self.health.handle(Input::Finished(check, attempt, outcome), self.now);
    }

    /// Goes to the next moment, and returns the attempts that begin.
    fn begun(&mut self) -> Vec<(CheckId, AttemptId)> {
        self.now = self.health.poll_timeout().unwrap().0;
        self.health.handle_timeout(self.now);
        let outputs = std::iter::from_fn(|| self.health.poll_output());
        let start = |output| match output {
            Output::Start(check, attempt) => Some((check, attempt)),
            _ => None,
        };
        outputs.filter_map(start).collect()
    }

    /// Holds the destinations, by number and weight, against what is expected.
    #[track_caller]
    fn check(&self, expected: &[(u8, u32)]) {
        let seen = self.health.destinations("VS");
        let expected: Vec<_> =
            expected.iter().map(|&(number, weight)| (id(number), weight)).collect();
        assert_eq!(seen.iter().map(|to| (to.id, to.weight)).collect::<Vec<_>>(), expected);
    }
}

fn bad() -> Outcome {
    Outcome::Bad("refused".into())
}

#[test]
fn quorum_and_sorry_server_follow_the_sum_of_weights() {
    // The weights of an observation of keepalived, which had removed the last good server.
    let mut play = Play::new(service(&[(11, 10), (12, 10), (13, 10)], (20, 5)));
    play.check(&[(11, 10), (12, 10), (13, 10)]);
    play.end(11, &bad());
    play.check(&[(12, 10), (13, 10)]);
    play.end(12, &bad());
    play.check(&[(13, 0), (99, 1)]);
    play.end(11, &Outcome::Good);
    play.check(&[(11, 0), (13, 0), (99, 1)]);
    play.end(12, &Outcome::Good);
    play.check(&[(11, 10), (12, 10), (13, 10)]);
}

#[test]
fn a_weight_that_a_check_has_set_is_forgotten_with_a_failure() {
    let mut play = Play::new(service(&[(1, 10)], (1, 0)));
    play.end(1, &Outcome::Weight(20));
    play.check(&[(1, 20)]);
    play.end(1, &Outcome::Good);
    play.check(&[(1, 20)]);
    play.end(1, &Outcome::Weight(0));
    play.check(&[(1, 0), (99, 1)]);
    play.end(1, &bad());
    play.check(&[(99, 1)]);
    play.end(1, &Outcome::Good);
    play.check(&[(1, 10)]);
}

#[test]
fn an_attempt_that_does_not_end_is_a_failure_and_its_late_result_is_nothing() {
    let mut play = Play::new(service(&[(1, 10)], (1, 0)));
    let [(check, attempt)] = play.begun()[..] else { panic!("one attempt") };
    let begin = play.now;
    assert!(play.begun().is_empty());
    assert_eq!(play.now - begin, 2 * SECOND);
    play.check(&[(99, 1)]);
    play.finish(check, attempt, Outcome::Good);
    play.check(&[(99, 1)]);
}

#[test]
fn what_this_host_lacks_says_nothing_about_a_server() {
    let mut play = Play::new(service(&[(1, 10), (2, 10)], (1, 0)));
    play.end(1, &bad());
    play.end(1, &Outcome::Unknown("no descriptors".into()));
    play.end(2, &Outcome::Unknown("no descriptors".into()));
    play.check(&[(2, 10)]);
}

#[test]
fn a_reload_keeps_what_is_known_and_what_is_planned() {
    let mut play = Play::new(service(&[(1, 10), (2, 10)], (1, 0)));
    play.end(1, &bad());
    let planned = play.health.timers.clone();
    play.health.reload(vec![service(&[(1, 5), (2, 7), (3, 1)], (1, 0))], play.now);
    play.check(&[(2, 7), (3, 1)]);
    assert!(planned.is_subset(&play.health.timers));
    // Another check of a server that is known does not bring it back before it has looked.
    let mut other = service(&[(1, 5), (2, 7)], (1, 0));
    other.servers[0].checks[0].request = 4;
    play.health.reload(vec![other], play.now);
    play.check(&[(2, 7)]);
}

#[test]
fn what_became_of_checks_and_servers_is_told() {
    let mut play = Play::new(service(&[(1, 1), (2, 1)], (2, 0)));
    let begin = play.now;
    play.end(1, &Outcome::Good);
    play.end(2, &Outcome::Bad("no".to_owned()));
    let service = play.health.report().next().expect("a service");
    assert!(!service.has_quorum && service.since > begin);
    assert_eq!((service.losses, service.weight, service.gained_at), (1, 1, 2));
    let [good, bad] = service.servers.as_slice() else { panic!("two servers") };
    assert!(good.up && good.since == begin && good.downs == 0);
    assert_eq!((bad.up, bad.downs, bad.why), (false, 1, Some("no")));
    assert_eq!(bad.since, bad.checks[0].last.expect("an attempt").at);
    assert!(bad.checks[0].attempts >= 1 && bad.checks[0].failures == 1);

    play.end(2, &Outcome::Good);
    let service = play.health.report().next().expect("a service");
    let bad = &service.servers[1];
    assert!(service.has_quorum && bad.up && bad.why.is_none());
    assert_eq!((service.losses, bad.downs, bad.checks[0].failures), (1, 1, 1));
}
