//! Services, real servers, checkers.

use std::net::Ipv4Addr;

use rlvs_control::model::{ForwardingMethod, Netmask, Protocol, Tunnel, TunnelChecksum};

use crate::desired::{
    AddressGroup, Checker, CheckerKind, Http, HttpVersion, Member, Misc, RealServer, Target,
    Timing, Udp, Url, VirtualServer,
};
use crate::print::vrrp::family_word;
use crate::print::{Printer, quoted};

impl Printer {
    pub(super) fn address_group(&mut self, group: &AddressGroup) {
        self.block(format!("virtual_server_group {}", quoted(&group.name)), |to| {
            for member in &group.members {
                to.line(match member {
                    Member::Mark(mark, family) => format!("fwmark {mark} {}", family_word(*family)),
                    Member::Addresses(range, port) if range.first == range.last => {
                        format!("{} {port}", range.first)
                    }
                    Member::Addresses(range, port) => {
                        format!("{}-{} {port}", range.first, range.last)
                    }
                });
            }
        });
    }

    pub(super) fn virtual_server(&mut self, server: &VirtualServer) {
        let head = match &server.target {
            Target::Address(address, 0) => address.to_string(),
            Target::Address(address, port) => format!("{address} {port}"),
            Target::Mark(mark, _) => format!("fwmark {mark}"),
            Target::Group(name) => format!("group {}", quoted(name)),
        };
        self.block(format!("virtual_server {head}"), |to| {
            if let Target::Mark(_, family) = server.target {
                to.line(format!("ip_family {}", family_word(family)));
            }
            to.line(format!("lb_algo {}", server.scheduler));
            to.line(format!("lb_kind {}", method_words(server.method)));
            if !matches!(server.target, Target::Mark(..)) {
                to.line(format!("protocol {}", protocol_word(server.protocol)));
            }
            for (bit, name) in [(1, "flag-1"), (2, "flag-2"), (4, "flag-3")] {
                to.flag(name, server.scheduler_flags & bit != 0);
            }
            to.flag("ops", server.one_packet);
            to.persistence(server);
            // What is 0 because all weights are comes to be 0 again.
            if server.quorum.weight > 0 {
                to.number("quorum", server.quorum.weight);
            }
            to.number("hysteresis", server.quorum.hysteresis);
            to.script("quorum_up", server.quorum.up.as_ref());
            to.script("quorum_down", server.quorum.down.as_ref());
            to.flag("omega", server.notify_at_stop);
            to.flag("ha_suspend", server.suspend);
            to.switch("smtp_alert", server.mail);
            if let Some(sorry) = &server.sorry_server {
                to.line(format!("sorry_server {}{}", sorry.address, port_word(sorry.port)));
                to.line(format!("sorry_server_lvs_method {}", method_words(sorry.method)));
                to.flag("sorry_server_inhibit", sorry.inhibit);
            }
            to.statements(&server.kept);
            for real in &server.real_servers {
                to.real_server(real);
            }
        });
    }

    fn persistence(&mut self, server: &VirtualServer) {
        let Some(persistence) = &server.persistence else { return };
        self.time("persistence_timeout", persistence.timeout);
        let granularity = match persistence.granularity {
            Netmask::V4(mask) => Ipv4Addr::from(mask).to_string(),
            Netmask::V6(length) => length.to_string(),
        };
        self.line(format!("persistence_granularity {granularity}"));
        self.word("persistence_engine", persistence.engine.as_deref());
    }

    fn real_server(&mut self, real: &RealServer) {
        let head = format!("real_server {}{}", real.address, port_word(real.port));
        self.block(head, |to| {
            to.number("weight", real.weight);
            to.line(format!("lvs_method {}", method_words(real.method)));
            to.number("uthreshold", real.upper_threshold);
            to.number("lthreshold", real.lower_threshold);
            to.flag("inhibit_on_failure", real.inhibit);
            to.script("notify_up", real.up.as_deref());
            to.script("notify_down", real.down.as_deref());
            to.switch("smtp_alert", real.mail);
            to.statements(&real.kept);
            for checker in real.checkers.iter() {
                to.checker(checker, real);
            }
        });
    }

    fn checker(&mut self, checker: &Checker, real: &RealServer) {
        let name = match &checker.kind {
            CheckerKind::Http(http) if http.tls => "SSL_GET",
            CheckerKind::Http(_) => "HTTP_GET",
            CheckerKind::Tcp => "TCP_CHECK",
            CheckerKind::Misc(_) => "MISC_CHECK",
            CheckerKind::Ping => "PING_CHECK",
            CheckerKind::Udp(_) => "UDP_CHECK",
            CheckerKind::Dns(_) => "DNS_CHECK",
            CheckerKind::Smtp { .. } => "SMTP_CHECK",
            CheckerKind::Bfd { .. } => "BFD_CHECK",
            CheckerKind::File { .. } => "FILE_CHECK",
        };
        self.block(name, |to| {
            to.kind(&checker.kind);
            let file = matches!(checker.kind, CheckerKind::File { .. });
            let bfd = matches!(checker.kind, CheckerKind::Bfd { .. });
            if !file {
                to.switch("alpha", checker.starts_down);
            }
            if !file && !bfd {
                to.switch("log_all_failures", checker.log_all_failures);
                to.timing(&checker.timing, &checker.kind);
            }
            if !file && !bfd && !matches!(checker.kind, CheckerKind::Misc(_)) {
                to.time("connect_timeout", checker.timing.connect_timeout);
                to.ends(checker, real);
            }
            to.statements(&checker.kept);
        });
    }

    fn timing(&mut self, timing: &Timing, kind: &CheckerKind) {
        self.time("delay_loop", timing.delay_loop);
        self.time("warmup", timing.warmup);
        self.number("retry", timing.retry);
        self.time("delay_before_retry", timing.delay_before_retry);
        if let Some(timeout) = timing.timeout {
            self.time("timeout", timeout);
        }
        // Words that keepalived does not know are written only where they say something.
        if timing.fall != 1 {
            self.number("fall", timing.fall);
        }
        if timing.rise != if matches!(kind, CheckerKind::Http(_)) { 2 } else { 1 } {
            self.number("rise", timing.rise);
        }
    }

    fn ends(&mut self, checker: &Checker, real: &RealServer) {
        if let Some(at) = checker.at.as_ref().filter(|at| at.ip() != real.address) {
            self.line(format!("connect_ip {}", at.ip()));
        }
        if let Some(at) = checker.at.as_ref().filter(|at| at.port() != real.port) {
            self.number("connect_port", at.port());
        }
        let Some(origin) = &checker.origin else { return };
        if let Some(source) = origin.address {
            self.line(format!("bindto {source}"));
        }
        if let Some(port) = origin.port {
            self.number("bind_port", port);
        }
        self.word("bind_if", origin.interface.as_deref());
        if origin.mark != 0 {
            self.number("fwmark", origin.mark);
        }
    }

    fn kind(&mut self, kind: &CheckerKind) {
        match kind {
            CheckerKind::Tcp | CheckerKind::Ping => {}
            CheckerKind::Http(http) => self.http(http),
            CheckerKind::Misc(misc) => self.misc(misc),
            CheckerKind::Udp(udp) => self.udp(udp),
            CheckerKind::Dns(dns) => {
                self.line(format!("type {}", dns.record));
                self.word("name", Some(&dns.name));
            }
            CheckerKind::Smtp { helo } => self.word("helo_name", Some(helo)),
            CheckerKind::Bfd { session } => self.word("name", Some(session)),
            CheckerKind::File { file, weight, reverse } => {
                self.word("track_file", Some(file));
                self.line(format!("weight {weight}{}", if *reverse { " reverse" } else { "" }));
            }
        }
    }

    fn http(&mut self, http: &Http) {
        self.line(match http.version {
            HttpVersion::V10 => "http_protocol 1.0",
            HttpVersion::V10Close => "http_protocol 1.0C",
            HttpVersion::V11 => "http_protocol 1.1",
        });
        self.switch("fast_recovery", http.fast_recovery);
        self.word("sni_name", http.server_name.as_deref());
        for url in &http.urls {
            self.block("url", |to| to.url(url));
        }
    }

    fn url(&mut self, url: &Url) {
        self.word("path", Some(&url.path));
        self.word("virtualhost", url.host.as_deref());
        let codes = url.status.iter().map(|(first, last)| match first == last {
            true => format!(" {first}"),
            false => format!(" {first}-{last}"),
        });
        self.line(format!("status_code{}", codes.collect::<String>()));
        if let Some(digest) = &url.digest {
            self.line(format!("digest {}", hex(digest)));
        }
        if let Some((regex, wanted)) = &url.regex {
            self.word("regex", Some(regex));
            self.flag("regex_no_match", !wanted);
        }
        self.statements(&url.kept);
    }

    fn misc(&mut self, misc: &Misc) {
        self.command("misc_path", &misc.command, misc.user.as_ref());
        self.time("misc_timeout", misc.timeout);
        self.flag("misc_dynamic", misc.dynamic);
    }

    fn udp(&mut self, udp: &Udp) {
        if !udp.payload.is_empty() {
            self.line(format!("payload {}", hex(&udp.payload)));
        }
        let Some(reply) = &udp.reply else { return };
        let digit = |nibble: &Option<u8>| {
            nibble.map_or('X', |nibble| char::from_digit(nibble.into(), 16).unwrap_or('X'))
        };
        let nibbles: String = reply.nibbles.iter().map(digit).collect();
        self.line(format!("require_reply {nibbles}").trim_end());
        self.number("min_reply_length", reply.length_min);
        self.number("max_reply_length", reply.length_max);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn port_word(port: u16) -> String {
    if port == 0 { String::new() } else { format!(" {port}") }
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Sctp => "SCTP",
        Protocol::Udp | Protocol::Other(_) => "UDP",
    }
}

fn method_words(method: ForwardingMethod) -> String {
    match method {
        // The configuration has no word for full NAT.
        ForwardingMethod::Masquerade | ForwardingMethod::FullNat => "NAT".into(),
        ForwardingMethod::DirectRoute => "DR".into(),
        ForwardingMethod::Tunnel(Tunnel::Ipip) => "TUN type ipip".into(),
        ForwardingMethod::Tunnel(Tunnel::Gre { checksum }) => {
            format!("TUN type gre {}", if checksum { "csum" } else { "nocsum" })
        }
        ForwardingMethod::Tunnel(Tunnel::Gue { port, checksum }) => {
            let checksum = match checksum {
                TunnelChecksum::None => "nocsum",
                TunnelChecksum::Outer => "csum",
                TunnelChecksum::Remote => "remcsum",
            };
            let port = if port == 0 { String::new() } else { format!(" port {port}") };
            format!("TUN type gue{port} {checksum}")
        }
    }
}
