//! Exit statuses of `keepalived -t` 2.2.7, seen on a machine with an interface eth0.

use std::path::{Path, PathBuf};

use rlvs_conf::{ALONE, Alone, Options, Surroundings, Unread, read};

/// A text, and a machine with eth0 and all programs but `/no/such`.
struct Machine<'t>(Alone<'t>);

impl Surroundings for Machine<'_> {
    fn read(&mut self, path: &Path, most: usize) -> Result<Vec<u8>, Unread> {
        self.0.read(path, most)
    }
    fn matching(&mut self, _: &str) -> Vec<PathBuf> {
        Vec::new()
    }
    fn has_interface(&self, name: &str) -> Option<bool> {
        Some(name == "eth0")
    }
    fn has_program(&self, path: &str) -> Option<bool> {
        Some(path != "/no/such")
    }
}

fn check(text: &str, status: u8) {
    let mut machine = Machine(Alone(text.as_bytes()));
    let read = read(Path::new(ALONE), &mut machine, &Options::default());
    let told = read.diagnostics.iter().map(|found| found.render(&read.sources, false) + "\n");
    assert_eq!(read.diagnostics.status(true), status, "{text}\n{}", told.collect::<String>());
}

/// What stands in an instance that is right otherwise.
#[test]
fn instances() {
    for (status, text) in [
        (0, ""),
        (5, "version 3\n advert_int 50"),
        (5, "version 3\n advert_int 0.015"),
        (5, "version 3\n authentication {\n auth_type PASS\n auth_pass x\n }"),
        (5, "authentication {\n auth_type PASS\n }"),
        (5, "authentication {\n auth_type FOO\n auth_pass x\n }"),
        (5, "nopreempt\n preempt_delay 3"),
        (5, "state MASTER\n preempt_delay 3"),
        (5, "garp_master_delay -1"),
        (5, "linkbeat_use_polling"),
        (5, "lvs_sync_daemon_interface eth0"),
        (0, "debug 3"),
        (5, "native_ipv6"),
        (0, "unicast_peer {\n 10.0.0.9 min_ttl 3\n }"),
        (5, "unicast_peer {\n fd00::1\n }"),
        (5, "unicast_peer {\n }"),
        (5, "unicast_src_ip 10.0.0.3"),
        (0, "notify_master \"/no/such\""),
        (6, "notify_master \"/bin/true\""),
        (5, "track_file {\n nosuch\n }"),
        (5, "track_interface {\n eth0 weight 10\n }"),
        (0, "virtual_ipaddress_excluded {\n 10.0.0.3\n fd00::3\n }"),
    ] {
        let instance = "vrrp_instance V {\n interface eth0\n virtual_router_id 5\n";
        check(&format!("{instance} {text}\n virtual_ipaddress {{\n 10.0.0.1\n }}\n}}\n"), status);
    }
}

#[test]
fn instances_without_something() {
    for (status, text) in [
        (
            5,
            "virtual_router_id 5\n unicast_peer {\n 10.0.0.9\n }\n virtual_ipaddress {\n 10.0.0.1\n }",
        ),
        (5, "interface eth0\n virtual_router_id 5"),
        (5, "interface eth0\n virtual_router_id 5\n virtual_ipaddress {\n }"),
        (5, "interface eth0\n virtual_router_id 5\n version 3"),
    ] {
        check(&format!("vrrp_instance V {{\n {text}\n}}\n"), status);
    }
}

/// What stands in a virtual server that is right otherwise.
#[test]
fn virtual_servers() {
    for (status, text) in [
        (0, "persistence_timeout"),
        (5, "persistence_timeout 0"),
        (0, "persistence_granularity 24"),
        (5, "lb_algo foo"),
        (5, "lb_kind XXX"),
        (0, "lb_kind TUN type gue port 3"),
        (5, "lb_kind TUN type gue"),
        (5, "delay_loop 0"),
        (0, "delay_loop 0.5"),
        (0, "sorry_server 10.0.0.9 80"),
        (5, "sorry_server_inhibit\n sorry_server 10.0.0.9 80"),
        (0, "alpha\n omega\n ha_suspend"),
        (5, "ops"),
        (0, "persistence_engine sip"),
        (5, "nat_mask 255.255.255.0"),
        (5, "quorum 3"),
        (0, "weight 3 4"),
        (5, "protocol ICMP"),
    ] {
        let service = "virtual_server 10.0.0.1 80 {\n protocol TCP\n lb_algo rr\n lb_kind NAT\n";
        check(&format!("{service} {text}\n real_server 10.0.0.2 80 {{\n }}\n}}\n"), status);
    }
}

/// What stands in a real server.
#[test]
fn real_servers() {
    for (status, text) in [
        (5, "weight -1"),
        (5, "lb_kind DR"),
        (0, "notify_up \"/no/such\""),
        (0, "smtp_alert"),
        (0, "uthreshold 3\n lthreshold 5"),
        (0, "TCP_CHECK {\n retry 3\n connect_timeout 3\n }"),
        (5, "TCP_CHECK {\n retry 3\n fall 3\n }"),
        (5, "TCP_CHECK {\n nb_get_retry 3\n }"),
        (5, "HTTP_GET {\n nb_get_retry 3\n url {\n path /\n }\n }"),
        (0, "HTTP_GET {\n url {\n path /\n }\n }"),
        (5, "HTTP_GET {\n url {\n path /\n status_code 99\n }\n }"),
        (5, "HTTP_GET {\n url {\n path /\n digest 12\n }\n }"),
        // keepalived says what is missing, and crashes.
        (5, "HTTP_GET {\n }"),
        (5, "MISC_CHECK {\n misc_timeout 3\n }"),
        (6, "MISC_CHECK {\n misc_path \"/bin/true a\"\n }"),
        (5, "UDP_CHECK {\n payload 0g\n }"),
        (5, "DNS_CHECK {\n type XX\n }"),
        (5, "BFD_CHECK {\n name b\n }"),
        (5, "FILE_CHECK {\n track_file b\n }"),
    ] {
        let service = "virtual_server 10.0.0.1 80 {\n protocol TCP\n lb_algo rr\n lb_kind NAT\n";
        check(&format!("{service} real_server 10.0.0.2 80 {{\n {text}\n }}\n}}\n"), status);
    }
}

#[test]
fn services_by_other_names() {
    let real = "lb_kind NAT\n real_server 10.0.0.2 80 {\n }\n}\n";
    for (status, text) in [
        (5, "virtual_server 10.0.0.1 80 {\n lb_algo rr\n"),
        (5, "virtual_server 10.0.0.1 80 {\n protocol TCP\n"),
        (5, "virtual_server 10.0.0.1 {\n protocol TCP\n lb_algo rr\n"),
        (5, "virtual_server 10.0.0.1 99999 {\n protocol TCP\n lb_algo rr\n"),
        (0, "virtual_server fwmark 3 {\n lb_algo rr\n"),
        (5, "virtual_server fwmark 3 {\n protocol TCP\n lb_algo rr\n"),
        (5, "virtual_server_group g {\n 10.0.0.1-400 80\n}\n"),
    ] {
        let text = if text.ends_with("}\n") { text.to_owned() } else { format!("{text}{real}") };
        check(&text, status);
    }
    let group = "virtual_server_group g {\n 10.0.0.1-4 80\n fwmark 3\n 10.0.1.0/28 80\n}\n";
    check(&format!("{group}virtual_server group g {{\n protocol TCP\n lb_algo rr\n {real}"), 0);
}

#[test]
fn blocks_of_the_top_level() {
    let instance = "vrrp_instance V {\n interface eth0\n virtual_router_id 5\n virtual_ipaddress {\n 10.0.0.1\n }\n track_script { S }\n}\n";
    let script = "vrrp_script S {\n script \"/bin/true\"\n}\n";
    check(script, 0);
    check(&format!("{script}{instance}"), 6);
    check(&format!("global_defs {{\n enable_script_security\n}}\n{script}{instance}"), 0);
    check(&format!("vrrp_script S {{\n script \"/no/such\"\n}}\n{instance}"), 5);
    for (status, text) in [
        (5, "vrrp_script S {\n interval 5\n}\n"),
        (5, "global_defs {\n include_check foo\n}\n"),
        (0, "global_defs {\n lvs_timeouts tcp 3\n}\n"),
        (5, "global_defs {\n lvs_sync_daemon eth0 V id 300\n}\n"),
        (0, "global_defs {\n vrrp_rlimit_rtime 10\n enable_snmp_keepalived\n}\n"),
        (5, "global_defs {\n nosuch\n}\n"),
        (5, "static_routes {\n 10.9.9.0/24 via 10.0.0.9 dev eth0 fooo 3\n}\n"),
        (0, "static_ipaddress {\n 10.9.9.1/24 dev eth0\n}\n"),
        (5, "}\n"),
        (0, "global_defs {\n router_id a } \n"),
        (0, "global_defs { router_id a\n}\n"),
        (5, "global_defs {\n router_id a\n} foo\n"),
        (0, "SSL {\n password x\n}\n"),
        (0, "track_file F {\n file /tmp/x\n}\n"),
        (0, "bfd_instance b {\n neighbor_ip 10.0.0.9\n}\n"),
        (0, "vrrp_track_process p {\n process sshd\n}\n"),
    ] {
        check(text, status);
    }
}
