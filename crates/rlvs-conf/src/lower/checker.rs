//! Checkers, and the numbers that they inherit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::desired::{
    Checker, CheckerKind, Dns, Http, HttpVersion, Misc, Origin, RealServer, Reply, Timing, Udp, Url,
};
use crate::diagnostic::Diagnostic;
use crate::grammar::Status;
use crate::lower::track::{FILES, SESSIONS};
use crate::lower::{Lower, common};
use crate::tree::Node;

const SECOND: Duration = Duration::from_secs(1);
/// What `UDP_CHECK` sends by default.
const PAYLOAD: &[u8; 32] = b"keepalived check - keepalived ch";

/// A checker's block and those around it: what one does not say, the next does.
struct Blocks<'n>([&'n Node; 3]);

impl Blocks<'_> {
    fn time(&self, name: &str) -> Option<Duration> {
        self.0.iter().find_map(|node| node.time(name))
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.0.iter().find_map(|node| node.number(name))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find_map(|node| node.text(name))
    }

    fn switch(&self, name: &str) -> Option<bool> {
        self.0.iter().find_map(|node| node.switch(name))
    }
}

impl Lower<'_> {
    pub(super) fn checkers(
        &mut self,
        real: &Node,
        service: &Node,
        server: &RealServer,
    ) -> Arc<[Arc<Checker>]> {
        let is_checker = |child: &&Node| {
            child.row.status == Status::Done
                && (child.row.name.ends_with("_CHECK") || child.row.name.ends_with("_GET"))
        };
        let mut checkers = Vec::new();
        for node in real.children.iter().filter(is_checker) {
            let blocks = Blocks([node, real, service]);
            let timing = timing(&blocks);
            let file = node.row.name == "FILE_CHECK";
            let Some(kind) = self.checker_kind(node, &blocks, &timing) else { continue };
            let timing = self.shared(timing);
            checkers.push(Checker {
                kind,
                timing,
                at: at(node, server),
                origin: origin(node),
                starts_down: !file && blocks.switch("alpha").unwrap_or(false),
                log_all_failures: node
                    .switch("log_all_failures")
                    .unwrap_or(self.defaults.log_all_failures && runs(node)),
                kept: common::kept(&node.children),
            });
        }
        self.shared_list(checkers)
    }

    /// Returns a server's checkers, the same value as its predecessor's if they are equal.
    fn shared_list(&mut self, checkers: Vec<Checker>) -> Arc<[Arc<Checker>]> {
        let same = |last: &&Arc<[Arc<Checker>]>| last.iter().map(|it| &**it).eq(&checkers);
        if let Some(last) = self.checkers.as_ref().filter(same) {
            return last.clone();
        }
        self.checkers.insert(checkers.into_iter().map(Arc::new).collect()).clone()
    }

    /// Returns a checker's numbers, the same value as its predecessor's if they are equal.
    fn shared(&mut self, timing: Timing) -> Arc<Timing> {
        if let Some(last) = self.timing.as_ref().filter(|last| ***last == timing) {
            return last.clone();
        }
        self.timing.insert(Arc::new(timing)).clone()
    }

    fn checker_kind(
        &mut self,
        node: &Node,
        blocks: &Blocks<'_>,
        timing: &Timing,
    ) -> Option<CheckerKind> {
        Some(match node.row.name {
            "HTTP_GET" | "SSL_GET" => CheckerKind::Http(Box::new(self.http(node, blocks)?)),
            "TCP_CHECK" => CheckerKind::Tcp,
            "PING_CHECK" => CheckerKind::Ping,
            "MISC_CHECK" => CheckerKind::Misc(Box::new(self.misc(node, timing)?)),
            "UDP_CHECK" => CheckerKind::Udp(Box::new(udp(node))),
            "DNS_CHECK" => CheckerKind::Dns(Box::new(Dns {
                record: node.text("type").unwrap_or_else(|| "SOA".into()),
                name: node.text("name").unwrap_or_else(|| ".".into()),
            })),
            "SMTP_CHECK" => CheckerKind::Smtp {
                helo: node.text("helo_name").unwrap_or_else(|| "smtpchecker.keepalived.org".into()),
            },
            "BFD_CHECK" => CheckerKind::Bfd { session: self.reference(node, "name", SESSIONS)? },
            _ => CheckerKind::File {
                file: self.reference(node, "track_file", FILES)?,
                weight: node.number("weight").unwrap_or(1),
                reverse: node.child("weight").is_some_and(|row| row.has("reverse")),
            },
        })
    }

    /// Returns the name of another block.
    fn reference(&mut self, node: &Node, name: &str, keywords: &[&str]) -> Option<String> {
        let text = self.required(node, name)?;
        let span = node.word(name)?.span;
        self.check_known(keywords, &text, span).then_some(text)
    }

    fn required(&mut self, node: &Node, name: &str) -> Option<String> {
        let text = node.text(name);
        if text.is_none() && !node.has(name) {
            let found = Diagnostic::error(
                node.span,
                format!("`{}` without `{name}`; it is left out", node.row.name),
            );
            self.say(found.expected(format!("expected a `{name}` in it")));
        }
        text
    }

    fn http(&mut self, node: &Node, blocks: &Blocks<'_>) -> Option<Http> {
        let host = blocks.text("virtualhost");
        let urls = node.children.iter().filter(|child| child.row.name == "url");
        let urls: Vec<Url> = urls.map(|child| self.url(child, host.as_ref())).collect();
        if urls.is_empty() {
            let text = format!("`{}` without `url`; it is left out", node.row.name);
            self.say(Diagnostic::error(node.span, text).expected("expected a `url` in it"));
            return None;
        }
        let named = node.has("enable_sni").then_some(host).flatten();
        Some(Http {
            tls: node.row.name == "SSL_GET",
            urls,
            version: match node.text("http_protocol").as_deref() {
                Some("1.1") => HttpVersion::V11,
                Some("1.0C" | "1.0c") => HttpVersion::V10Close,
                _ => HttpVersion::V10,
            },
            fast_recovery: node.switch("fast_recovery").unwrap_or(false),
            server_name: node.text("sni_name").or(named),
        })
    }

    fn url(&mut self, node: &Node, host: Option<&String>) -> Url {
        if !node.has("path") {
            let found = Diagnostic::error(node.span, "a `url` without `path`: `/` is asked for");
            self.say(found.expected("expected a `path` in it"));
        }
        let status: Vec<(u16, u16)> = node
            .children
            .iter()
            .filter(|child| child.row.name == "status_code")
            .flat_map(|child| &child.args)
            .filter_map(|value| {
                let (first, last) =
                    value.text.split_once('-').unwrap_or((&value.text, &value.text));
                Some((first.parse().ok()?, last.parse().ok()?))
            })
            .collect();
        Url {
            path: node.text("path").unwrap_or_else(|| "/".into()),
            host: node.text("virtualhost").or_else(|| host.cloned()),
            status: if status.is_empty() { vec![(200, 299)] } else { status },
            digest: node.text("digest").and_then(|text| digest(&text)),
            regex: node.text("regex").map(|regex| (regex, !node.has("regex_no_match"))),
            kept: common::kept(&node.children),
        }
    }

    fn misc(&mut self, node: &Node, timing: &Timing) -> Option<Misc> {
        let Some(path) = node.child("misc_path") else {
            self.required(node, "misc_path");
            return None;
        };
        let command = self.command(path, false)?;
        let user = node.child("user").and_then(|user| user.user(0)).or_else(|| path.user(1));
        let timeout = node.time("misc_timeout").filter(|time| !time.is_zero());
        let dynamic = node.has("misc_dynamic");
        Some(Misc { command, user, timeout: timeout.unwrap_or(timing.delay_loop), dynamic })
    }
}

/// Returns the longest wait for one answer: that for all of them, if that is less than nobody said.
fn connect_timeout(blocks: &Blocks<'_>) -> Duration {
    let node = blocks.0[0];
    let default = Timing::default().connect_timeout;
    if node.row.name == "MISC_CHECK" {
        return default;
    }
    let whole = node.time("timeout").unwrap_or(default);
    blocks.time("connect_timeout").unwrap_or(default.min(whole))
}

/// Returns whether a checker does something by itself, and does not only follow something.
fn runs(node: &Node) -> bool {
    !matches!(node.row.name, "BFD_CHECK" | "FILE_CHECK")
}

/// Returns a checker's numbers: its own, the real server's, the virtual server's, or its kind's.
fn timing(blocks: &Blocks<'_>) -> Timing {
    let node = blocks.0[0];
    if !runs(node) {
        return Timing::default();
    }
    let delay_loop = blocks.time("delay_loop").unwrap_or(SECOND * 60);
    let http = matches!(node.row.name, "HTTP_GET" | "SSL_GET");
    let (retry, delay) = match node.row.name {
        "DNS_CHECK" => (3, delay_loop),
        "MISC_CHECK" => (0, SECOND),
        _ if http => (1, SECOND * 3),
        _ => (1, SECOND),
    };
    let fall = node.number("fall");
    // Who counts rounds does not mean attempts within one, unless he says so.
    let retry = if fall.is_some() { 0 } else { retry };
    let said = node.number("nb_get_retry").or_else(|| blocks.number("retry"));
    Timing {
        delay_loop,
        warmup: blocks.time("warmup").unwrap_or(delay_loop),
        retry: node.number("retry").or(said).unwrap_or(retry),
        delay_before_retry: blocks.time("delay_before_retry").unwrap_or(delay),
        connect_timeout: connect_timeout(blocks),
        timeout: node.time("timeout"),
        fall: fall.unwrap_or(1),
        rise: node.number("rise").unwrap_or(if http { 2 } else { 1 }),
    }
}

/// Returns where a checker looks, if not at the server itself.
fn at(node: &Node, server: &RealServer) -> Option<Box<SocketAddr>> {
    let own = SocketAddr::new(server.address, server.port);
    let address = node.address("connect_ip").unwrap_or(server.address);
    let at = SocketAddr::new(address, node.number("connect_port").unwrap_or(server.port));
    (at != own).then(|| Box::new(at))
}

fn origin(node: &Node) -> Option<Box<Origin>> {
    let origin = Origin {
        address: node.address("bindto"),
        port: node.number("bind_port"),
        interface: node.text("bind_if"),
        mark: node.number("fwmark").unwrap_or(0),
    };
    (origin != Origin::default()).then(|| Box::new(origin))
}

fn udp(node: &Node) -> Udp {
    let payload = node.text("payload").map(|text| bytes(&text));
    let reply = node.child("require_reply").map(|child| Reply {
        nibbles: child.args.first().map(|value| nibbles(&value.text)).unwrap_or_default(),
        length_min: node.number("min_reply_length").unwrap_or(0),
        length_max: node.number("max_reply_length").unwrap_or(255),
    });
    Udp { payload: payload.unwrap_or_else(|| PAYLOAD.to_vec()), reply }
}

fn nibbles(text: &str) -> Vec<Option<u8>> {
    text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    let halves = nibbles(text);
    halves.chunks_exact(2).map(|pair| pair[0].unwrap_or(0) << 4 | pair[1].unwrap_or(0)).collect()
}

fn digest(text: &str) -> Option<[u8; 16]> {
    bytes(text).try_into().ok()
}
