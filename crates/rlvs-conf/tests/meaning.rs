//! What configurations mean, and what is said about them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rlvs_conf::desired::{CheckerKind, Persistence, Preempt, Target, Transport};
use rlvs_conf::{
    Configuration, Options, Secrets, Severity, Surroundings, Unread, print, read, read_text,
};
use rlvs_control::model::{ForwardingMethod, Netmask, Protocol, Tunnel};

const SECOND: Duration = Duration::from_secs(1);

fn told(read: &Configuration) -> Vec<String> {
    let line = |found: &rlvs_conf::Diagnostic| {
        let place = found.place(&read.sources).map_or((0, 0), |place| (place.line, place.column));
        let help = found.help.clone().unwrap_or_default();
        format!("{}:{} {}; {help}", place.0, place.1, found.message)
    };
    read.diagnostics.iter().filter(|found| found.severity > Severity::Note).map(line).collect()
}

fn how_to() -> Configuration {
    read_text(include_str!("keepalived/how-to.conf"))
}

#[test]
fn the_how_to_means_what_its_reader_means() {
    let desired = how_to().desired;
    let instance = &desired.instances[0];
    assert_eq!((instance.name.as_str(), instance.interface.as_deref()), ("VI_1", Some("eth0")));
    assert_eq!((instance.router_id.get(), instance.priority.get()), (51, 100));
    assert_eq!(instance.advert_interval, SECOND);
    assert_eq!(instance.preempt, Preempt::After(Duration::ZERO));
    assert_eq!(instance.transport, Transport::Multicast { group: [224, 0, 0, 18].into() });
    assert_eq!(instance.addresses[0].prefix, 32);
    let server = &desired.virtual_servers[0];
    assert_eq!(server.target, Target::Address([192, 168, 1, 200].into(), 80));
    assert_eq!((server.protocol, server.method), (Protocol::Tcp, ForwardingMethod::Masquerade));
    let weights: Vec<u32> = server.real_servers.iter().map(|real| real.weight).collect();
    assert_eq!(weights, [3, 2]);
    let timing = &server.real_servers[0].checkers[0].timing;
    assert_eq!((timing.delay_loop, timing.timeout), (SECOND * 6, Some(SECOND * 3)));
    assert_eq!((timing.fall, timing.rise, timing.retry), (2, 2, 0));
    assert_eq!(timing.connect_timeout, SECOND * 3);
}

fn timing(service: &str, real: &str, checker: &str) -> rlvs_conf::desired::Timing {
    let text = format!(
        "virtual_server 10.0.0.1 80 {{\n protocol TCP\n {service}\n real_server 10.0.0.2 80 {{\n {real}\n {checker}\n }}\n}}\n"
    );
    let read = read_text(&text);
    *read.desired.virtual_servers[0].real_servers[0].checkers[0].timing
}

#[test]
fn a_checker_takes_its_numbers_from_the_next_block_that_has_them() {
    let bare = timing("", "", "TCP_CHECK {\n }");
    assert_eq!((bare.retry, bare.delay_before_retry), (1, SECOND));
    assert_eq!((bare.delay_loop, bare.warmup), (SECOND * 60, SECOND * 60));
    let http = "HTTP_GET {\n url {\n path /\n }\n }";
    let web = timing("delay_loop 7", "", http);
    assert_eq!((web.retry, web.delay_before_retry, web.rise), (1, SECOND * 3, 2));
    assert_eq!((web.delay_loop, web.warmup), (SECOND * 7, SECOND * 7));
    let names = timing("delay_loop 7", "", "DNS_CHECK {\n }");
    assert_eq!((names.retry, names.delay_before_retry), (3, SECOND * 7));
    assert_eq!(timing("", "", "MISC_CHECK {\n misc_path /x\n }").retry, 0);
    assert_eq!(timing("retry 4", "", http).retry, 4);
    assert_eq!(timing("retry 4", "retry 5", http).retry, 5);
    assert_eq!(timing("retry 4", "retry 5", "TCP_CHECK {\n retry 6\n }").retry, 6);
    assert_eq!(timing("retry 4", "", "TCP_CHECK {\n nb_get_retry 6\n }").retry, 6);
    assert_eq!(timing("retry 4", "", "TCP_CHECK {\n fall 2\n }").retry, 4);
}

#[test]
fn what_inherits_prints_and_reads_back() {
    let text = include_str!("keepalived/tutorial_ok.conf");
    let read = read_text(text);
    assert_eq!(read_text(&print(&read.desired, Secrets::Shown)).desired, read.desired);
}

#[test]
fn every_problem_is_told_once_with_its_place_and_its_likely_meaning() {
    let read = read_text(
        "vrrp_instance VI_1 {\n    interfase eth0\n    interface eth0\n    virtual_router_id 300\n    \
         state MASTR\n    virtual_ipaddress {\n        10.0.0.300\n        10.0.0.1 def eth1\n    }\n}\n\
         virtual_sever 10.0.0.1 80 {\n    protocol TCP\n}\n",
    );
    assert_eq!(
        told(&read),
        [
            "2:5 `interfase` is no keyword in `vrrp_instance`; did you mean `interface`?",
            "4:23 300 is out of range; ",
            "5:11 `MASTR` is not known here; did you mean `MASTER`?",
            "7:9 `10.0.0.300` is no IP address; ",
            "8:18 `def` is not known here; did you mean `dev`?",
            "11:1 `virtual_sever` is no keyword here; did you mean `virtual_server`?",
        ]
    );
}

#[test]
fn a_missing_brace_is_told_where_it_is_missed() {
    let read = read_text(
        "virtual_server 10.0.0.1 80 {\n protocol TCP\n lb_algo rr\n lb_kind NAT\n real_server 10.0.0.2 80 {\n  \
         TCP_CHECK {\n  }\n real_server 10.0.0.3 80 {\n }\n}\n",
    );
    assert_eq!(told(&read), ["5:2 the block of `real_server` is not closed; "]);
    assert_eq!(read.desired.virtual_servers[0].real_servers.len(), 2);
}

#[test]
fn a_keyword_in_the_wrong_place_is_sent_home() {
    let read = read_text(
        "vrrp_instance V {\n interface eth0\n virtual_router_id 1\n delay_loop 6\n virtual_ipaddress {\n 10.0.0.1\n }\n}\n",
    );
    assert_eq!(
        told(&read),
        ["4:2 `delay_loop` is no keyword in `vrrp_instance`; it belongs to `virtual_server`"]
    );
}

#[test]
fn passwords_are_never_shown() {
    let text = "vrrp_instance V {\n interface eth0\n virtual_router_id 1\n authentication { auth_type PASS auth_pass geheim99x\n }\n auth_pss geheim99x\n virtual_ipaddress {\n 10.0.0.1\n }\n}\nSSL {\n password geheim99x y\n}\nvrrp_instance W {\n auth_hmac {\n key 1 geheim99x y\n }\n}\n";
    let read = read_text(text);
    assert!(told(&read).len() >= 3);
    let mut shown = format!("{:?} {}", read.desired, print(&read.desired, Secrets::Hidden));
    for found in read.diagnostics.iter() {
        shown += &found.render(&read.sources, false);
        shown += &format!("{found:?}");
    }
    assert!(!shown.contains("geheim"), "{shown}");
    assert!(print(&read.desired, Secrets::Shown).contains("auth_pass geheim99\n"));
}

#[test]
fn services_have_what_the_kernel_needs() {
    let read = read_text(
        "virtual_server_group G {\n 10.0.0.1-3 80\n 10.0.1.0/30 81\n fwmark 7 inet6\n}\n\
         virtual_server group G {\n protocol UDP\n lb_algo sh\n sh-port\n lb_kind TUN type gue port 6080 csum\n \
         persistence_timeout\n persistence_granularity 24\n sorry_server 10.0.0.9 80\n quorum 4\n hysteresis 9\n \
         weight 3\n real_server 10.0.0.4 80 {\n lb_kind NAT\n SSL_GET {\n enable_sni\n virtualhost a.example\n \
         url {\n path /\n status_code 200-204 301\n }\n }\n }\n}\n",
    );
    let server = &read.desired.virtual_servers[0];
    assert_eq!(read.desired.address_groups[0].members.len(), 3);
    assert_eq!((server.scheduler.as_str(), server.scheduler_flags), ("sh", 2));
    assert!(matches!(server.method, ForwardingMethod::Tunnel(Tunnel::Gue { port: 6080, .. })));
    let granularity = Netmask::V4([255, 255, 255, 0]);
    let persistence = Persistence { timeout: SECOND * 360, granularity, engine: None };
    assert_eq!(server.persistence, Some(persistence));
    assert_eq!((server.quorum.weight, server.quorum.hysteresis), (3, 2));
    let real = &server.real_servers[0];
    assert_eq!((real.weight, real.method), (3, ForwardingMethod::Masquerade));
    let CheckerKind::Http(http) = &real.checkers[0].kind else { panic!("{real:?}") };
    assert_eq!(http.server_name.as_deref(), Some("a.example"));
    assert_eq!(http.urls[0].host.as_deref(), Some("a.example"));
    assert_eq!(http.urls[0].status, [(200, 204), (301, 301)]);
}

#[test]
fn a_hysteresis_is_never_less_than_none() {
    let read = read_text(
        "virtual_server 10.0.0.1 80 {\n protocol TCP\n quorum 0\n hysteresis 9\n real_server 10.0.0.2 80 {\n }\n}\n",
    );
    assert_eq!(read.desired.virtual_servers[0].quorum.hysteresis, 0);
}

/// Files in memory.
struct Files(&'static [(&'static str, &'static str)]);

impl Surroundings for Files {
    fn read(&mut self, path: &Path, _: usize) -> Result<Vec<u8>, Unread> {
        let found = self.0.iter().find(|(name, _)| path == Path::new(name));
        found.map(|(_, text)| text.as_bytes().to_vec()).ok_or(Unread::Missing)
    }
    fn matching(&mut self, pattern: &str) -> Vec<PathBuf> {
        let (before, _) = pattern.split_once('*').expect("a pattern");
        self.0
            .iter()
            .map(|(name, _)| PathBuf::from(name))
            .filter(|path| path.to_str().expect("text").starts_with(before))
            .collect()
    }
    fn variable(&self, name: &str) -> Option<String> {
        (name == "SITE").then(|| "north".to_owned())
    }
}

fn router_id(text: &str) -> Option<String> {
    let text = format!("global_defs {{\n{text}\n}}\n");
    let leaked: &'static str = text.leak();
    let files: &'static [_] =
        vec![("/etc/a.conf", leaked), ("/etc/d/b.conf", "router_id b\n")].leak();
    let options = Options { id: "lb1".into(), instance: "blue".into(), ..Options::default() };
    let read = read(Path::new("/etc/a.conf"), &mut Files(files), &options);
    assert!(!read.diagnostics.has_errors(), "{:?}", told(&read));
    read.desired.global.router_id
}

#[test]
fn the_language_is_keepalived_s() {
    for (text, expected) in [
        ("router_id a#b", "a"),
        ("router_id a!b", "a"),
        ("router_id a\\#b", "a#b"),
        ("router_id \"a # ! { b\" # c", "a # ! { b"),
        ("router_id \"a \\\" b\"", "a \" b"),
        ("router_id a${_HASH}b${_BANG}", "a#b!"),
        ("$A=x\nrouter_id $A", "x"),
        ("$A=x\nrouter_id y${A}z", "yxz"),
        ("$A=x${B}\n$B=7\nrouter_id $A", "x7"),
        ("$A= \\\nrouter_id x \\\nrouter_id y\n$A", "y"),
        ("router_id ${NONE}", "${NONE}"),
        ("router_id ${_INSTANCE}-${_ENV SITE}", "blue-north"),
        ("router_id ${_PWD}", "/etc"),
        ("@lb1 router_id a\n@lb2 router_id b", "a"),
        ("@^lb1 router_id a\n@^lb2 router_id b", "b"),
        ("~SEQ(N,1,3) router_id r${N}", "r3"),
        ("~SEQ(N,1,4,10) router_id r${N}", "r9"),
        ("~SEQx(N,9,1,11) router_id r${N}", "rb"),
        ("~LST({A,B},{1,2},{3,4}) router_id ${A}${B}", "34"),
        ("~SEQ(N,1,2) ~SEQ(M,5,6) router_id ${N}${M}", "26"),
        ("include d/b.conf", "b"),
        ("include d/*.conf", "b"),
        ("router_id a\r\nrouter_id\tb\r", "b"),
    ] {
        assert_eq!(router_id(text).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn what_is_not_carried_out_is_kept_as_it_was_written() {
    let blocks = "static_routes {\n    10.9.0.0/24 via 10.0.0.9 dev Eth0 realms 3/4\n}\n\
                  static_rules {\n    inet not to fd09::/64 table 7 priority 3 realms 5\n}\n";
    let read = read_text(&blocks.replace("inet not", "inet6 not"));
    assert!(!read.diagnostics.has_errors());
    let text = print(&read.desired, Secrets::Shown);
    assert!(text.ends_with(&blocks.replace("inet not", "inet6 not")), "{text}");
    let instance = "vrrp_instance V {\n interface eth0\n virtual_router_id 1\n use_vmac Vm0\n virtual_routes {\n \
                    default via 10.0.0.9 rtt 3\n }\n virtual_ipaddress {\n 10.0.0.1 use_vmac\n }\n}\n";
    let read = read_text(instance);
    let text = print(&read.desired, Secrets::Shown);
    for words in ["use_vmac Vm0\n", "0.0.0.0/0 via 10.0.0.9 rtt 3\n", "10.0.0.1/32 use_vmac\n"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(read_text(&text).desired, read.desired);
}

#[test]
fn routes_and_rules_mean_one_thing_each() {
    let block = |words: &str, rule: bool| {
        let name = if rule { "static_rules" } else { "static_routes" };
        let read = read_text(&format!("{name} {{\n {words}\n}}\n"));
        let fixed = read.desired.fixed;
        let route = fixed.routes.first().map(|entry| entry.route.to_string());
        let rule = fixed.rules.first().map(|entry| entry.rule.to_string());
        route.or(rule).unwrap_or_else(|| read.diagnostics.iter().last().unwrap().message.clone())
    };
    for (words, expected) in [
        ("10.1.0.0/24 gw 10.0.0.1 oif eth1", "10.1.0.0/24 via 10.0.0.1 dev eth1"),
        ("src 10.0.0.2 to 10.1.0.1 dev e table local", "10.1.0.1/32 dev e src 10.0.0.2 table 255"),
        ("default via inet6 fd00::1 metric 3", "::/0 via fd00::1 metric 3"),
        ("inet6 default dev e", "::/0 dev e"),
        ("default6 via fd00::1", "::/0 via fd00::1"),
        (
            "default via 10.0.0.1 proto static scope link",
            "0.0.0.0/0 via 10.0.0.1 scope 253 proto 4",
        ),
        ("throw 10.1.0.0/16 table 0x10", "throw 10.1.0.0/16 table 16"),
        (
            "10.1.0.0/24 dev e mtu lock 1400 advmss 1300",
            "10.1.0.0/24 dev e mtu lock 1400 advmss 1300",
        ),
        (
            "10.1.0.0/24 nexthop via 10.0.0.1 onlink nexthop dev e weight 9",
            "10.1.0.0/24 nexthop via 10.0.0.1 weight 1 onlink nexthop dev e weight 9",
        ),
        (
            "10.1.0.0/24 via 10.0.0.1 or 10.0.0.2",
            "10.1.0.0/24 nexthop via 10.0.0.1 weight 1 nexthop via 10.0.0.2 weight 1",
        ),
        ("via 10.0.0.1", "a route without a destination"),
        ("10.1.0.0/33 dev e", "the length of the prefix of `10.1.0.0/33` is not from 0 to 32"),
        ("10.1.0.0/24 via fd00::1", "a route of IPv4 and of IPv6 addresses"),
        ("10.1.0.0/24 via east", "`east` is no IP address"),
        ("10.1.0.0/24 dev e table east", "there is no routing table `east`"),
        ("10.1.0.0/24 dev e scope 256", "there is no scope `256`"),
        ("10.1.0.0/24 dev e mtu lock", "`lock` is no number"),
        ("10.1.0.0/24 dev e weight 3", "a `weight` without a `nexthop`"),
    ] {
        assert_eq!(block(words, false), expected, "{words}");
    }
    for (words, expected) in [
        ("from all lookup main pref 3", "inet table 254 priority 3"),
        ("to fd00::/64 goto 9 priority 3", "inet6 to fd00::/64 goto 9 priority 3"),
        (
            "dev a oif b fwmark 7 nop priority 3",
            "inet iif a oif b fwmark 0x7/0xffffffff nop priority 3",
        ),
        ("not fwmark 0x7/9 table 3 priority 0", "inet not fwmark 0x7/0x9 table 3 priority 0"),
        (
            "ipproto tcp sport 1-2 dport 80 uidrange 5-6 l3mdev priority 3",
            "inet ipproto 6 sport 1-2 dport 80-80 uidrange 5-6 l3mdev priority 3",
        ),
        ("from 10.1.0.0/16 table 3", "inet from 10.1.0.0/16 table 3 priority 16384"),
        ("10.1.0.0/16 table 3 priority 3", "`10.1.0.0/16` is not known here"),
        ("from 10.1.0.0/16 priority 3", "a rule that does nothing"),
        ("from 10.1.0.0/16 to fd00::/8 nop priority 3", "a rule of IPv4 and of IPv6 addresses"),
        ("dport 90-80 nop priority 3", "`90-80` is no number or range that fits here"),
        ("dport 65536 nop priority 3", "`65536` is no number or range that fits here"),
        ("ipproto 256 nop priority 3", "there is no IP protocol `256`"),
    ] {
        assert_eq!(block(words, true), expected, "{words}");
    }
}

#[test]
fn a_checker_that_is_left_out_says_nothing_about_the_protocol() {
    let text = "virtual_server fwmark 3 {\n real_server 10.0.0.2 80 {\n HTTP_GET {\n }\n }\n}\n";
    let desired = read_text(text).desired;
    assert_eq!(read_text(&print(&desired, Secrets::Shown)).desired, desired);
}
