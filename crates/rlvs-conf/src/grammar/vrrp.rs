//! `vrrp_instance` and `vrrp_sync_group`.

use super::*;

#[rustfmt::skip]
const AUTHENTICATION: &[Keyword] = &[
    done("auth_type", &[Arg::OneOf(&["PASS", "AH"])], "none", "kind of authentication, of VRRPv2 only"),
    done("auth_pass", &[Arg::Secret], "", "password; eight characters count"),
];

#[rustfmt::skip]
const HMAC: &[Keyword] = &[
    kept("key", &[Arg::Number(1, 255), Arg::Secret], "", "number and value of a key").newer(),
    kept("active_key", &[Arg::Number(1, 255)], "", "key that we sign with").newer(),
    kept("anti_replay", &[Arg::OneOf(&["time", "monotonic"])], "time", "what makes old packets known").newer(),
    kept("time_window", &[Arg::Number(1, 300)], "", "difference of clocks in seconds").newer(),
    kept("mode", &[Arg::OneOf(&["enforce", "permissive", "receive-only"])], "enforce", "what is taken").newer(),
];

#[rustfmt::skip]
const PEER: &[Keyword] = &[
    done("min_ttl", &[Arg::Number(0, 255)], "", "least time to live"),
    done("max_ttl", &[Arg::Number(0, 255)], "", "largest time to live"),
];

#[rustfmt::skip]
const TRACK253: &[Keyword] =
    &[done("weight", &[Arg::Number(-253, 253)], "", "change of priority; 0: fault"), REVERSE];
#[rustfmt::skip]
const TRACK254: &[Keyword] =
    &[done("weight", &[Arg::Number(-254, 254)], "", "factor of priority; 0: fault"), REVERSE];

#[rustfmt::skip]
const VMAC: &[Keyword] = &[
    done("name", &[Arg::Name], "vrrp. or vrrp6. and the number", "name of the interface"),
    kept("netlink_notify_msg", NONE, "", "tell of the address"),
    kept("group", &[Arg::Number(0, I31)], "", "group of the interface"),
];

const MAYBE_TEXT: Arg = Arg::Maybe(&Arg::Text);

#[rustfmt::skip]
pub(super) const INSTANCE: &[Keyword] = &[
    done("interface", &[Arg::Interface], "required, but with unicast_peer", "interface that it speaks on"),
    done("virtual_router_id", &[Arg::Number(1, 255)], "required", "number of the virtual router"),
    done("state", &[Arg::OneOf(&["MASTER", "BACKUP"])], "BACKUP", "state at start; MASTER counts with priority 255"),
    done("priority", &[Arg::Number(1, 255)], "100", "who has the most is master; 255: owner of the addresses"),
    done("advert_int", &[Arg::Seconds(10_000, 255 * S)], "1", "seconds from advertisement to advertisement; whole ones in VRRPv2"),
    done("version", &[Arg::Number(2, 3)], "vrrp_version", "version of the protocol"),
    done("virtual_ipaddress", NONE, "", "addresses that the master has").entries(Arg::Prefix, route::ADDRESS),
    done("virtual_ipaddress_excluded", NONE, "", "addresses that are not advertised").entries(Arg::Prefix, route::ADDRESS),
    done("no_virtual_ipaddress", NONE, "", "there are no addresses").newer(),
    done("authentication", NONE, "none", "authentication of VRRPv2").block(AUTHENTICATION),
    kept("auth_hmac", NONE, "", "signed advertisements").block(HMAC).newer(),
    done("unicast_src_ip", &[Arg::Address], "the interface's", "source address of unicast"),
    done("unicast_peer", NONE, "multicast", "the other directors").entries(Arg::Address, PEER),
    done("unicast_ttl", &[Arg::Number(0, 255)], "255", "time to live of unicast"),
    done("check_unicast_src", NONE, "vrrp_check_unicast_src", "senders must be peers"),
    done("unicast_fault_no_peer", NONE, "", "without peers it is in fault"),
    kept("old_unicast_checksum", &[Arg::Maybe(&Arg::OneOf(&["never"]))], "", "sums of keepalived before 1.3.6"),
    done("mcast_src_ip", &[Arg::Address], "the interface's", "source address of multicast"),
    done("mcast_dst_ip", &[Arg::Address], "vrrp_mcast_group4, 6", "group of advertisements"),
    done("track_src_ip", NONE, "", "fault while the source address is missing"),
    done("nopreempt", NONE, "", "a master of lower priority stays"),
    done("preempt", NONE, "so", "a master of lower priority is replaced"),
    done("preempt_delay", &[Arg::Seconds(0, 1000 * S)], "0", "seconds before it is replaced"),
    done("track_interface", NONE, "", "interfaces that must be up").entries(Arg::Interface, TRACK253),
    done("track_script", NONE, "", "scripts that must be good").entries(Arg::Name, TRACK253),
    done("track_file", NONE, "", "files whose numbers count").entries(Arg::Name, TRACK254),
    done("track_process", NONE, "", "processes that must run").entries(Arg::Name, TRACK254),
    kept("track_bfd", NONE, "", "sessions that must be up").entries(Arg::Name, TRACK253),
    done("dont_track_primary", NONE, "", "the own interface may be down"),
    done("use_vmac", &[MAYBE_TEXT, MAYBE_TEXT], "off", "a virtual MAC address: name of the interface, the address").options(VMAC),
    kept("vmac_xmit_base", NONE, "", "advertise from the interface below"),
    kept("use_vmac_addr", NONE, "", "virtual MACs for addresses on other interfaces"),
    kept("use_ipvlan", &[MAYBE_TEXT, MAYBE_TEXT, MAYBE_TEXT], "", "an ipvlan interface"),
    done("garp_master_delay", &[COUNT], "vrrp_garp_master_delay", "seconds until the second set of gratuitous ARPs"),
    done("garp_master_repeat", &[COUNT], "vrrp_garp_master_repeat", "gratuitous ARPs in a set"),
    done("garp_master_refresh", &[COUNT], "vrrp_garp_master_refresh", "seconds between sets while master; 0: none"),
    done("garp_master_refresh_repeat", &[COUNT1], "vrrp_garp_master_refresh_repeat", "gratuitous ARPs in such a set"),
    done("garp_lower_prio_delay", &[COUNT], "vrrp_garp_lower_prio_delay", "the same after an advertisement of lower priority"),
    done("garp_lower_prio_repeat", &[COUNT], "vrrp_garp_lower_prio_repeat", "the same after an advertisement of lower priority"),
    kept("garp_extra_if", &[MAYBE_TEXT, Arg::Maybe(&Arg::Number(1, 86400))], "", "gratuitous ARPs on other interfaces too"),
    kept("vmac_garp_intvl", &[MAYBE_TEXT, Arg::Maybe(&Arg::Number(1, 86400))], "", "").instead("garp_extra_if"),
    done("lower_prio_no_advert", SWITCH, "vrrp_lower_prio_no_advert", "a master does not answer lower priorities"),
    done("higher_prio_send_advert", SWITCH, "vrrp_higher_prio_send_advert", "a master that yields advertises once more"),
    done("down_timer_adverts", &[Arg::Number(1, 100)], "vrrp_down_timer_adverts", "missed advertisements until the master is taken for dead"),
    done("accept", NONE, "so", "the master takes packets to the addresses"),
    done("no_accept", NONE, "", "it takes none"),
    done("strict_mode", SWITCH, "vrrp_strict", "hold it to the letter of the RFC"),
    done("skip_check_adv_addr", SWITCH, "vrrp_skip_check_adv_addr", "compare addresses only when the sender changes"),
    done("v3_checksum_as_v2", SWITCH, "v3_checksum_as_v2 of global_defs", "send VRRPv3 sums without the pseudo header").newer(),
    done("native_ipv6", NONE, "", "the addresses are of IPv6"),
    kept("owner_ignore_adverts", NONE, "", "an address owner ignores other masters").newer(),
    kept("timer_expired_backup", &[Arg::Maybe(&Arg::Number(1, 254))], "", "yield when late").newer(),
    kept("kernel_rx_buf_size", &[COUNT], "", "receive buffer"),
    kept("vrf", &[Arg::Interface], "", "VRF of the instance"),
    done("promote_secondaries", NONE, "", "other addresses of a prefix stay when the first goes"),
    kept("debug", &[Arg::Number(0, 4)], "", "").void(),
    done("virtual_routes", NONE, "", "routes of the master").entries(Arg::Text, route::ROUTE),
    done("virtual_rules", NONE, "", "rules of the master").entries(Arg::Text, route::RULE),
    done("notify_master", SCRIPT, "", "run when it becomes master"),
    done("notify_backup", SCRIPT, "", "run when it becomes backup"),
    done("notify_fault", SCRIPT, "", "run when it enters fault"),
    done("notify_stop", SCRIPT, "", "run when it stops"),
    done("notify", SCRIPT, "", "run at every change, with what, name, state and priority"),
    kept("notify_deleted", &[Arg::Maybe(&Arg::Script), Arg::Maybe(&Arg::Name), Arg::Maybe(&Arg::Name)], "", "run when a reload removes it"),
    done("notify_master_rx_lower_pri", SCRIPT, "", "run when a master hears a lower priority"),
    done("notify_priority_changes", SWITCH, "vrrp_notify_priority_changes", "tell of every change of priority"),
    done("smtp_alert", SWITCH, "smtp_alert_vrrp", "mails about changes"),
    kept("lvs_sync_daemon_interface", &[Arg::Interface], "", "").instead("lvs_sync_daemon in global_defs"),
    kept("linkbeat_use_polling", NONE, "", "").instead("linkbeat_interfaces at the top level"),
];

#[rustfmt::skip]
pub(super) const GROUP: &[Keyword] = &[
    done("group", NONE, "required", "its instances").words(Arg::Name),
    done("track_interface", NONE, "", "interfaces that must be up").entries(Arg::Interface, TRACK253),
    done("track_script", NONE, "", "scripts that must be good").entries(Arg::Name, TRACK253),
    done("track_file", NONE, "", "files whose numbers count").entries(Arg::Name, TRACK254),
    done("track_process", NONE, "", "processes that must run").entries(Arg::Name, TRACK254),
    kept("track_bfd", NONE, "", "sessions that must be up").entries(Arg::Name, TRACK253),
    done("notify_master", SCRIPT, "", "run when it becomes master"),
    done("notify_backup", SCRIPT, "", "run when it becomes backup"),
    done("notify_fault", SCRIPT, "", "run when it enters fault"),
    done("notify_stop", SCRIPT, "", "run when it stops"),
    done("notify", SCRIPT, "", "run at every change"),
    done("smtp_alert", SWITCH, "smtp_alert_vrrp", "mails about changes"),
    done("notify_priority_changes", SWITCH, "vrrp_notify_priority_changes", "tell of every change of priority"),
    kept("sync_group_tracking_weight", NONE, "", "weights count for a group too"),
    kept("global_tracking", NONE, "", "").instead("sync_group_tracking_weight"),
];
