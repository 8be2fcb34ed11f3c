//! Large configurations, and texts that would grow without end.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use rlvs_conf::{Options, Surroundings, Unread, read, read_text};

/// Virtual servers with real servers that are checked.
fn large(services: u32, real_servers: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + service);
        let head = "delay_loop 6\n lb_algo wrr\n lb_kind NAT\n protocol TCP";
        writeln!(text, "virtual_server {address} 80 {{\n {head}")
            .expect("a String takes everything");
        for real in 0..real_servers {
            let address = std::net::Ipv4Addr::from(0xac10_0000 + real);
            let url = "url {\n path /health\n }";
            let check = format!("HTTP_GET {{\n {url}\n connect_timeout 3\n retry 2\n }}");
            writeln!(text, " real_server {address} 80 {{\n weight 3\n {check}\n }}")
                .expect("a String takes everything");
        }
        text.push_str("}\n");
    }
    text
}

/// Whatever is not linear takes minutes here.
#[test]
fn many_real_servers_are_read_wherever_they_stand() {
    for (services, real_servers) in [(2_000, 5), (1, 10_000)] {
        let read = read_text(&large(services, real_servers));
        assert_eq!(read.diagnostics.iter().count(), 0);
        let real = read.desired.virtual_servers.iter().map(|server| server.real_servers.len());
        assert_eq!(real.sum::<usize>(), (services * real_servers) as usize);
    }
}

/// A folder in memory in which every file has this text.
struct Folder(&'static str);

impl Surroundings for Folder {
    fn read(&mut self, _: &Path, _: usize) -> Result<Vec<u8>, Unread> {
        Ok(self.0.into())
    }
    fn matching(&mut self, _: &str) -> Vec<PathBuf> {
        (0..5).map(|number| format!("{number}.conf").into()).collect()
    }
}

fn check(text: &'static str, told: &str) {
    let read = read(Path::new("a.conf"), &mut Folder(text), &Options::default());
    let said: Vec<_> = read.diagnostics.iter().map(|found| &*found.message).collect();
    assert!(said.iter().any(|message| message.contains(told)), "{text}: {said:?}");
    assert!(said.len() < 20, "{text}: {said:?}");
}

#[test]
fn nothing_grows_without_end() {
    check("include a.conf\n", "includes itself");
    check("include *.conf\ninclude *.conf\n", "includes itself");
    check("$A=$A\n$A\n", "stands for itself");
    check("$A=$B $B\n$B=$A $A\n$A\n", "stands for itself");
    check("$A=${A}x${A}\nrouter_id ${A}\n", "stands for itself");
    check("~SEQ(A,1,9999999999) ~SEQ(B,1,9999999999) $A\n", "lines and definitions");
    check("$A=~SEQ(B,1,2) $A\n$A\n", "deep");
}

#[test]
fn a_bomb_of_definitions_is_cut() {
    let mut text = String::from("$A0=0123456789\n");
    for level in 1..30 {
        let below = level - 1;
        writeln!(text, "$A{level}=${{A{below}}}${{A{below}}}").expect("a String takes everything");
    }
    text.push_str("global_defs {\nrouter_id ${A29}\n}\n");
    let read = read_text(&text);
    assert!(read.diagnostics.has_errors());
    assert!(read.desired.global.router_id.unwrap_or_default().len() < 65 << 20);
}
