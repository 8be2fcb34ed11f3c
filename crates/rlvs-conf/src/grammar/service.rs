//! `virtual_server_group`, `virtual_server`, `real_server`.

use super::*;

const SCHEDULERS: Arg = Arg::OneOf(&[
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "fo", "ovf", "sed", "nq", "twos",
]);

/// What may stand behind addresses of a group.
#[rustfmt::skip]
pub(super) const GROUP: &[Keyword] = &[
    done("fwmark", &[COUNT1], "", "packets with this mark"),
    done("inet", NONE, "", "the mark is for IPv4"),
    done("inet6", NONE, "", "the mark is for IPv6"),
];

#[rustfmt::skip]
const TUNNEL: &[Keyword] = &[
    done("type", &[Arg::OneOf(&["ipip", "gue", "gre"])], "ipip", "kind of tunnel"),
    done("port", &[Arg::Number(1, 65535)], "", "UDP port of gue"),
    done("nocsum", NONE, "so", "no outer checksum"),
    done("csum", NONE, "", "an outer checksum"),
    done("remcsum", NONE, "", "remote checksum offload"),
];

const METHOD: &[Arg] = &[Arg::OneOf(&["NAT", "DR", "TUN"])];

#[rustfmt::skip]
pub(super) const VIRTUAL_SERVER: &[Keyword] = &[
    done("delay_loop", &[TIME], "60", "seconds from check to check"),
    done("lb_algo", &[SCHEDULERS], "wlc", "how a real server is chosen"),
    done("lvs_sched", &[SCHEDULERS], "wlc", "how a real server is chosen"),
    done("lb_kind", METHOD, "NAT", "how packets reach real servers").options(TUNNEL),
    done("lvs_method", METHOD, "NAT", "how packets reach real servers").options(TUNNEL),
    done("protocol", &[Arg::OneOf(&["TCP", "UDP", "SCTP"])], "UDP, with a warning; TCP with a checker of TCP", "transport protocol"),
    done("persistence_timeout", &[Arg::Maybe(&Arg::Number(0, 2_678_400))], "off; 360 without a number", "seconds for which a client keeps its real server; 0: off"),
    done("persistence_granularity", &[Arg::Mask], "255.255.255.255, 128", "clients that count as one"),
    done("persistence_engine", &[Arg::Name], "", "what tells clients apart"),
    done("hashed", NONE, "", "flag of IPVS; always so"),
    done("flag-1", NONE, "", "flag 1 of the scheduler"),
    done("flag-2", NONE, "", "flag 2 of the scheduler"),
    done("flag-3", NONE, "", "flag 3 of the scheduler"),
    done("sh-port", NONE, "", "sh hashes the port too"),
    done("sh-fallback", NONE, "", "sh takes the next real server if one is not there"),
    done("mh-port", NONE, "", "mh hashes the port too"),
    done("mh-fallback", NONE, "", "mh takes the next real server if one is not there"),
    done("ops", NONE, "", "every datagram is scheduled for itself"),
    done("sorry_server", &[Arg::Address, Arg::Maybe(&PORT)], "", "takes all while the quorum is lost"),
    done("sorry_server_inhibit", NONE, "", "it stays, with weight 0"),
    done("sorry_server_lvs_method", METHOD, "lvs_method", "how packets reach it").options(TUNNEL),
    done("quorum", &[COUNT1], "1", "sum of weights at least"),
    done("hysteresis", &[COUNT], "0", "distance from the quorum before it is lost or gained"),
    done("quorum_up", SCRIPT, "", "run when the quorum is gained"),
    done("quorum_down", SCRIPT, "", "run when the quorum is lost"),
    done("alpha", NONE, "", "real servers are down until a check succeeds"),
    done("omega", NONE, "", "notify at stop"),
    done("ha_suspend", NONE, "", "no checks while the address is elsewhere"),
    done("inhibit_on_failure", NONE, "", "failed real servers stay, with weight 0"),
    done("retry", &[COUNT1], "the checker's", "attempts more in a round before a check has failed"),
    done("delay_before_retry", &[TIME0], "the checker's", "seconds before another attempt"),
    done("warmup", &[TIME0], "delay_loop", "first checks are spread over so many seconds"),
    done("connect_timeout", &[TIME], "5", "longest wait for an answer"),
    done("weight", &[Arg::Number(0, I31)], "1", "weight of real servers that name none"),
    done("virtualhost", &[Arg::Text], "", "host name in HTTP requests"),
    kept("snmp_name", &[Arg::Name], "", "name in SNMP"),
    done("smtp_alert", SWITCH, "smtp_alert_checker", "mails about the quorum"),
    done("ip_family", &[Arg::OneOf(&["inet", "inet6"])], "inet", "family of a mark"),
    kept("nat_mask", &[Arg::Text], "", "netmask of LinuxDirectors of old").void().ours(),
    done("real_server", &[Arg::Address, Arg::Maybe(&PORT)], "", "a real server").block(REAL_SERVER),
];

#[rustfmt::skip]
pub(super) const REAL_SERVER: &[Keyword] = &[
    done("weight", &[Arg::Number(0, I31)], "weight of the virtual_server", "share of new connections; 0: none"),
    done("lvs_method", METHOD, "that of the virtual_server", "how packets reach it").options(TUNNEL),
    done("lb_kind", METHOD, "that of the virtual_server", "how packets reach it").options(TUNNEL).instead("lvs_method").ours(),
    done("uthreshold", &[COUNT], "0", "connections at which it takes no more; 0: any"),
    done("lthreshold", &[COUNT], "0", "connections below which it takes new ones again"),
    done("notify_up", SCRIPT, "", "run when it is good"),
    done("notify_down", SCRIPT, "", "run when it is bad"),
    done("inhibit_on_failure", NONE, "that of the virtual_server", "when failed it stays, with weight 0"),
    done("alpha", SWITCH, "alpha of the virtual_server", "down until a check succeeds"),
    done("retry", &[COUNT], "retry of the virtual_server", "attempts more in a round"),
    done("delay_before_retry", &[TIME0], "that of the virtual_server", "seconds before another attempt"),
    done("warmup", &[TIME0], "that of the virtual_server", "first checks are spread over so many seconds"),
    done("connect_timeout", &[TIME], "that of the virtual_server", "longest wait for an answer"),
    done("delay_loop", &[TIME], "that of the virtual_server", "seconds from check to check"),
    done("virtualhost", &[Arg::Text], "that of the virtual_server", "host name in HTTP requests"),
    kept("snmp_name", &[Arg::Name], "", "name in SNMP"),
    done("smtp_alert", SWITCH, "smtp_alert_checker", "mails about it"),
    done("HTTP_GET", NONE, "", "check by HTTP").block(check::HTTP),
    done("SSL_GET", NONE, "", "check by HTTPS").block(check::HTTP),
    done("TCP_CHECK", NONE, "", "check by a TCP connection").block(check::TCP),
    done("MISC_CHECK", NONE, "", "check by a command").block(check::MISC),
    done("PING_CHECK", NONE, "", "check by ICMP echo").block(check::PING),
    done("UDP_CHECK", NONE, "", "check by a datagram").block(check::UDP),
    done("DNS_CHECK", NONE, "", "check by a DNS question").block(check::DNS),
    done("SMTP_CHECK", NONE, "", "check by a greeting to a mail server").block(check::SMTP),
    done("BFD_CHECK", NONE, "", "check by a BFD session").block(check::BFD),
    done("FILE_CHECK", NONE, "", "weight by a file").block(check::FILE),
];
