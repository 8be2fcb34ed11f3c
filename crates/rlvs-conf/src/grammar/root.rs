//! The top level, and its small blocks.

use super::*;

const WEIGHT254: &[Arg] = &[Arg::Number(-254, 254)];
const WEIGHT253: &[Arg] = &[Arg::Number(-253, 253)];
const MOMENT: &[Arg] = &[Arg::Seconds(1, 3600 * S)];

#[rustfmt::skip]
const TRACK_GROUP: &[Keyword] =
    &[kept("group", NONE, "", "instances that fail with them").words(Arg::Name)];

#[rustfmt::skip]
const TRACK_FILE: &[Keyword] = &[
    done("file", &[Arg::Text], "required", "file with a number"),
    done("weight", WEIGHT254, "1", "factor of the number; 0: another number than 0 is a fault").options(&[REVERSE]),
    done("init_file", &[Arg::Maybe(&Arg::Number(-0x8000_0000, I31)), Arg::Maybe(&Arg::OneOf(&["overwrite"]))], "", "write this number at start"),
];

#[rustfmt::skip]
const TRACK_PROCESS: &[Keyword] = &[
    done("process", &[Arg::Text, Arg::Many(&Arg::Text)], "required", "program that must run"),
    done("param_match", &[Arg::OneOf(&["initial", "partial"])], "", "how arguments are compared"),
    done("weight", WEIGHT254, "1", "change of priority; 0: fault").options(&[REVERSE]),
    done("quorum", &[Arg::Number(1, 65535)], "1", "processes at least"),
    done("quorum_max", &[Arg::Number(0, 65535)], "", "processes at most"),
    done("delay", MOMENT, "0", "wait before a change counts"),
    done("fork_delay", MOMENT, "0", "wait before a new process counts"),
    done("terminate_delay", MOMENT, "0", "wait before a lost process counts"),
    done("full_command", NONE, "", "compare the whole path"),
];

#[rustfmt::skip]
const BFD: &[Keyword] = &[
    kept("neighbor_ip", &[Arg::Address], "required", "the other end"),
    kept("source_ip", &[Arg::Address], "", "our end"),
    kept("min_rx", &[Arg::Number(1, 1000)], "10", "milliseconds between packets that we take"),
    kept("min_tx", &[Arg::Number(1, 1000)], "10", "milliseconds between packets that we send"),
    kept("idle_tx", &[Arg::Number(1000, 10000)], "1000", "the same while the session is down"),
    kept("multiplier", &[Arg::Number(1, 255)], "5", "missed packets until it is down"),
    kept("passive", NONE, "", "wait for the other end"),
    kept("ttl", &[Arg::Number(1, 255)], "255", "time to live"),
    kept("hoplimit", &[Arg::Number(1, 255)], "64", "time to live of IPv6"),
    kept("max_hops", &[Arg::Number(-1, 255)], "0", "routers between the ends"),
    kept("multihop", NONE, "", "the multihop port").newer(),
    kept("weight", WEIGHT253, "0", "change of priority; 0: fault").options(&[REVERSE]),
    kept("vrrp", NONE, "", "only instances learn of it"),
    kept("checker", NONE, "", "only checkers learn of it"),
];

#[rustfmt::skip]
const SCRIPT_BLOCK: &[Keyword] = &[
    done("script", SCRIPT, "required", "command to run"),
    done("interval", &[Arg::Seconds(1000, EVER)], "1", "time from run to run"),
    done("timeout", &[TIME0], "interval", "longest run; longer ones are killed and have failed"),
    done("weight", WEIGHT253, "0", "change of priority; 0: fault").options(&[REVERSE]),
    done("rise", &[Arg::Number(1, I31)], "1", "successes until it is good"),
    done("fall", &[Arg::Number(1, I31)], "1", "failures until it is bad"),
    done("user", USER, "script_user", "who runs it"),
    done("init_fail", NONE, "", "bad until it was good"),
];

#[rustfmt::skip]
const GARP_GROUP: &[Keyword] = &[
    kept("garp_interval", &[TIME0], "0", "pause between gratuitous ARPs"),
    kept("gna_interval", &[TIME0], "0", "pause between neighbour advertisements"),
    kept("interface", &[Arg::Interface], "", "interface of the group"),
    kept("interfaces", NONE, "", "interfaces of the group").words(Arg::Interface),
];

#[rustfmt::skip]
const SSL: &[Keyword] = &[
    kept("password", &[Arg::Secret], "", "password of the key"),
    kept("ca", &[Arg::Text], "", "file of authorities"),
    kept("certificate", &[Arg::Text], "", "file of our certificate"),
    kept("key", &[Arg::Text], "", "file of its key"),
];

#[rustfmt::skip]
const LINK: &[Keyword] = &[
    kept("MII", NONE, "", "asked by MII"),
    kept("ETHTOOL", NONE, "", "asked by ethtool"),
    kept("IOCTL", NONE, "", "asked by ioctl"),
];

/// The keywords outside every block.
#[rustfmt::skip]
pub const ROOT: &[Keyword] = &[
    done("global_defs", NONE, "", "what concerns all").block(global::GLOBAL),
    kept("global_tracking", NONE, "", "").void(),
    done("vrrp_instance", &[Arg::Name], "", "a virtual router").block(vrrp::INSTANCE),
    done("vrrp_sync_group", &[Arg::Name], "", "instances that change together").block(vrrp::GROUP),
    done("vrrp_script", &[Arg::Name], "", "a command that instances follow").block(SCRIPT_BLOCK),
    done("virtual_server", &[Arg::Text, Arg::Maybe(&Arg::Text), Arg::Maybe(&Arg::Text)], "", "a service: ADDRESS [PORT], fwmark N, group NAME").block(service::VIRTUAL_SERVER),
    done("virtual_server_group", &[Arg::Name], "", "addresses of a service").entries(Arg::Addresses, service::GROUP),
    done("track_file", &[Arg::Name], "", "a file that instances follow").block(TRACK_FILE),
    done("vrrp_track_file", &[Arg::Name], "", "a file that instances follow").block(TRACK_FILE),
    done("track_process", &[Arg::Name], "", "a process that instances follow").block(TRACK_PROCESS),
    done("vrrp_track_process", &[Arg::Name], "", "a process that instances follow").block(TRACK_PROCESS),
    kept("bfd_instance", &[Arg::Name], "", "a BFD session").block(BFD),
    done("static_ipaddress", NONE, "", "addresses that stay").entries(Arg::Prefix, route::ADDRESS),
    done("static_routes", NONE, "", "routes that stay").entries(Arg::Text, route::ROUTE),
    done("static_rules", NONE, "", "rules that stay").entries(Arg::Text, route::RULE),
    kept("track_group", &[Arg::Name], "", "instances that follow static addresses, routes, rules").block(TRACK_GROUP),
    kept("garp_group", NONE, "", "interfaces that share a pace").block(GARP_GROUP),
    kept("SSL", NONE, "", "certificates of SSL_GET").block(SSL),
    kept("linkbeat_interfaces", NONE, "", "interfaces that are polled").entries(Arg::Interface, LINK),
    kept("interface_up_down_delays", NONE, "", "interface, seconds down, seconds up: wait before a change counts").entries(Arg::Text, &[]),
    kept("linkbeat_use_polling", NONE, "", "poll links").void(),
    done("net_namespace", &[Arg::Name], "that of the start", "network namespace of all; `-s` goes before it"),
    kept("net_namespace_ipvs", &[Arg::Name], "", "network namespace of services"),
    kept("namespace_with_ipsets", NONE, "", "address sets in it"),
    kept("instance", &[Arg::Name], "", "name of this keepalived"),
    kept("use_pid_dir", NONE, "", "process ids in /run/keepalived"),
    kept("child_wait_time", &[COUNT], "5", "longest wait for a process to stop"),
];
