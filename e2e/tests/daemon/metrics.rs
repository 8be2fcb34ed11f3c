//! Metrics, scraped by a real Prometheus: the dashboard's queries, the alerts.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::lab::{inside, run, tool, wait_for, wait_until};
use e2e::schema;
use nix::sys::signal::Signal;
use rlvs::keepalived::daemon::state::{self, RouterState};
use rlvs::lab::site::Host::{self, Client, First, Second, Web1, Web2};
use rlvs::lab::site::{HOW_TO, VIP};
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::process::Guard;
use serde_json::Value;

use crate::site::{Daemon, Site};

const PROMETHEUS: &str = "127.0.0.1:9090";
/// How long a script's toggling takes to be seen, at most.
const CONNECT_MAX: Duration = Duration::from_secs(1);

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name)
}

/// Holds a page of metrics against what `promtool` objects to.
#[track_caller]
fn check_page(page: &str) {
    let mut command = Command::new(tool("promtool").unwrap());
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(
        said.status.success() && said.stdout.is_empty() && said.stderr.is_empty(),
        "{said:?}\n{page}"
    );
}

fn curl(site: &Site, host: Host, words: &[&str]) -> String {
    let mut all = vec!["-sS", "--max-time", "5"];
    all.extend(words);
    run(site.host(host), &tool("curl").unwrap(), &all).ok()
}

/// Asks Prometheus; returns what it answers, if that is anything.
fn query(site: &Site, text: &str) -> Result<Vec<Value>, String> {
    let words = ["-G", &format!("http://{PROMETHEUS}/api/v1/query"), "--data-urlencode"];
    let answer = curl(site, First, &[&words[..], &[&format!("query={text}")]].concat());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"], "success", "{text}: {answer}");
    match answer["data"]["result"].as_array().unwrap() {
        found if found.is_empty() => Err(format!("{text}: nothing")),
        found => Ok(found.clone()),
    }
}

/// Starts Prometheus on the first director.
fn prometheus(site: &Site) -> Guard {
    let folder = site.directory();
    let rules = contrib("prometheus/rlvs-alerts.yml");
    let configuration = folder.join("prometheus.yml");
    let text = format!(
        "global:\n  scrape_interval: 250ms\n  scrape_timeout: 250ms\n  evaluation_interval: 250ms\n\
         rule_files: ['{}']\nscrape_configs:\n  - job_name: rlvs\n    static_configs:\n      \
         - targets: ['192.168.1.100:9165', '192.168.1.99:9165']\n",
        rules.display()
    );
    fs::write(&configuration, text).unwrap();
    let log = fs::File::create(folder.join("prometheus.log")).unwrap();
    let mut command = Command::new(tool("prometheus").unwrap());
    command.arg(format!("--config.file={}", configuration.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
    command.arg(format!("--web.listen-address={PROMETHEUS}"));
    command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
    inside(site.host(First), &mut command);
    Guard::new(command.spawn().unwrap())
}

/// A director whose virtual routers fail in every way, and virtual servers that do.
fn configuration(site: &Site, is_first: bool) -> String {
    let flip = format!("/usr/bin/test -e {}/flip", site.directory().display());
    let (router, servers) = HOW_TO.split_at(HOW_TO.find("virtual_server").unwrap());
    let mut text = format!(
        "global_defs {{\n script_user root\n}}\n\
         vrrp_script bad {{\n script /bin/false\n interval 0.1\n fall 1\n}}\n\
         vrrp_script flip {{\n script \"{flip}\"\n interval 0.1\n fall 1\n rise 1\n}}\n\
         {router}"
    );
    for (vrid, script) in [(52, "bad"), (53, "flip")] {
        text += &format!(
            "vrrp_instance VI_{vrid} {{\n interface eth0\n virtual_router_id {vrid}\n advert_int 1\n \
             track_script {{\n {script}\n }}\n virtual_ipaddress {{\n 192.168.1.{vrid}\n }}\n}}\n"
        );
    }
    if !is_first {
        return text.replace("auth_pass 1234", "auth_pass 4321");
    }
    text += &servers.replace("delay_loop 6", "delay_loop 0.2");
    for (port, check) in [
        ("81", format!("MISC_CHECK {{\n misc_path \"{flip}\"\n }}")),
        ("82", "TCP_CHECK {\n connect_port 9\n connect_timeout 1\n }".to_owned()),
    ] {
        text += &format!(
            "virtual_server {VIP} {port} {{\n delay_loop 0.2\n lb_algo rr\n lb_kind NAT\n protocol TCP\n \
             real_server 192.168.1.102 80 {{\n {check}\n }}\n}}\n"
        );
    }
    // As IPVS, the table takes no such real server.
    text + &format!(
        "virtual_server {VIP} 83 {{\n lb_algo rr\n lb_kind NAT\n protocol TCP\n \
         real_server 224.0.0.5 80 {{\n weight 1\n }}\n}}\n"
    )
}

/// Lets a script succeed and fail in turn, and waits until the virtual router has followed.
fn flip(site: &Site, times: usize) {
    let file = site.directory().join("flip");
    for number in 0..times {
        let (is_there, wanted) = (number % 2 == 0, [RouterState::Backup, RouterState::Fault]);
        if is_there {
            fs::write(&file, "").unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        wait_until("the script's consequences", &(wanted[number % 2], is_there), || {
            let state = site.host(First).run(state::ask).unwrap().unwrap();
            let name = |one: &&state::Service| one.name.ends_with(":81");
            let server = &state.services.iter().find(name).unwrap().servers[0];
            (state.instances[2].state, server.up)
        });
    }
}

/// Returns the dashboard's queries, with its variables filled in.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(contrib("grafana/rlvs.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries.map(|one| one.replace("$instance", ".*").replace("$__rate_interval", "1m")).collect()
}

/// Returns name and query of every alert that Prometheus has.
fn alerts(site: &Site) -> Vec<(String, String)> {
    let answer = curl(site, First, &[&format!("http://{PROMETHEUS}/api/v1/rules")]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let rules = answer["data"]["groups"][0]["rules"].as_array().unwrap();
    let word = |rule: &Value, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.iter().map(|rule| (word(rule, "name"), word(rule, "query"))).collect()
}

#[test]
fn prometheus_sees_everything_and_every_alert_can_fire() {
    let Some(promtool) = tool("promtool") else { return };
    for (what, file) in [("check", "rlvs-alerts.yml"), ("test", "rlvs-alerts-test.yml")] {
        let file = contrib("prometheus").join(file);
        let said = Command::new(&promtool).args([what, "rules"]).arg(file).output().unwrap();
        assert!(said.status.success(), "{said:?}");
    }
    let site = Site::new();
    let _servers = [site.web(Web1), site.web(Web2)];
    // So few that a dozen connections fill them.
    site.output(First, &["attach", "--connections", "2"]).unwrap();
    let _counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    let more = |address| ["--metrics", address];
    let text = configuration(&site, true);
    let first = Daemon::start_more(&site, First, &text, &more("192.168.1.100:9165"));
    let text = configuration(&site, false);
    let mut second = Daemon::start_more(&site, Second, &text, &more("0.0.0.0:9165"));
    let _prometheus = prometheus(&site);
    let ready = format!("http://{PROMETHEUS}/-/ready");
    wait_for("Prometheus", || {
        let said = run(site.host(First), &tool("curl").unwrap(), &["-sS", &ready]);
        if said.output.contains("Ready") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    wait_for("two directors", || {
        let found = query(&site, "rlvs_vrrp_state{iname=\"VI_1\"} == 2")?;
        if found.len() == 2 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    flip(&site, 8);
    for _ in 0..8 {
        // Some are refused: the table is full.
        site.ask().ok();
    }
    fs::write(&first.file, "vrrp_instance {").unwrap();
    first.signal(Signal::SIGHUP);
    let nowhere = SocketAddr::new(VIP, 82);
    let all = |query_text: &str| {
        wait_for(query_text, || {
            let refused = || TcpStream::connect_timeout(&nowhere, CONNECT_MAX).is_err();
            assert!(site.host(Client).run(refused).unwrap());
            query(&site, query_text)
        })
    };
    let queries = dashboard();
    assert!(queries.len() > 30, "{}", queries.len());
    for text in &queries {
        all(text);
    }
    let alerts = alerts(&site);
    assert_eq!(alerts.len(), 12);
    for (name, text) in &alerts {
        if name != "RlvsDaemonGone" {
            all(text);
        }
    }

    let page = curl(&site, First, &["http://192.168.1.100:9165/metrics"]);
    check_page(&page);
    let used = |page: &str| {
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix("rlvs_table_used_slots{table=\"ipv4\"} "));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert!(used(&page) >= 10, "{page}");
    assert_eq!(curl(&site, First, &["http://192.168.1.100:9165/healthz"]), "ok\n");
    let status = ["-o", "/dev/null", "-w", "%{http_code}", "http://192.168.1.100:9165/secret"];
    assert_eq!(curl(&site, First, &status), "404");
    let post = ["-X", "POST", "-o", "/dev/null", "-w", "%{http_code}"];
    let post = [&post[..], &["http://192.168.1.100:9165/metrics"]].concat();
    assert_eq!(curl(&site, First, &post), "405");

    // What a configuration does not name any more leaves the page of the daemon.
    let gone = ["VI_53", "local_port=\"82\""];
    assert!(gone.iter().all(|what| page.contains(what)), "{page}");
    let without = configuration(&site, true).replace("VI_53", "VI_54");
    let (without, _) = without.split_at(without.find(&format!("virtual_server {VIP} 82")).unwrap());
    fs::write(&first.file, without).unwrap();
    first.signal(Signal::SIGHUP);
    wait_for("what is gone to be gone", || {
        let page = curl(&site, First, &["http://192.168.1.100:9165/metrics"]);
        let is_gone = page.contains("VI_54") && !gone.iter().any(|what| page.contains(what));
        if is_gone { Ok(()) } else { Err(page) }
    });

    second.end(Signal::SIGTERM);
    let (_, gone) = alerts.iter().find(|(name, _)| name == "RlvsDaemonGone").unwrap();
    all(gone);
}

#[test]
fn an_exporter_serves_where_no_daemon_does() {
    let site = Site::new();
    let add = ["ipvsadm", "-A", "-t", "192.168.1.200:80", "-s", "wlc", "-p"];
    site.output(First, &add).unwrap();
    let add = ["ipvsadm", "-a", "-t", "192.168.1.200:80", "-r", "192.168.1.101", "-m", "-w", "7"];
    site.output(First, &add).unwrap();
    site.output(First, &["ipvsadm", "-A", "-f", "9"]).unwrap();
    let (_exporter, log) = site.start(First, &["exporter", "--listen", "127.0.0.1:0"]).unwrap();
    let address = wait_for("the exporter", || {
        let said = fs::read_to_string(&log).unwrap();
        let found = said.trim().strip_prefix("rlvs: metrics at ").map(str::to_owned);
        found.ok_or(said)
    });
    let page = curl(&site, First, &[&address]);
    check_page(&page);
    for line in [
        "rlvs_service_info{proto=\"TCP\",local_address=\"192.168.1.200\",local_port=\"80\",scheduler=\"wlc\"} 1",
        "rlvs_service_destinations{proto=\"FWM\",local_mark=\"9\"} 0",
        "rlvs_destination_weight{proto=\"TCP\",local_address=\"192.168.1.200\",local_port=\"80\",\
         remote_address=\"192.168.1.101\",remote_port=\"80\"} 7",
        "rlvs_table_used_slots{table=\"ipv4\"} 0",
        "rlvs_packets_total{reason=\"table_full\"} 0",
        "keepalived_up 0",
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line}\n{page}");
    }
    assert_eq!(
        page.matches("rlvs_packets_total{").count(),
        rlvs_datapath::reason::Reason::ALL.len()
    );

    // Whoever edits does not hold up who looks.
    let again = site.host(First).run(|| {
        let _locked = BpfTable::open().unwrap().expect("a table");
        curl(&site, First, &[&address])
    });
    assert!(again.unwrap().contains("keepalived_up 0"));

    // What is gone is gone from the page, and what is left is still there.
    site.output(First, &["ipvsadm", "-D", "-f", "9"]).unwrap();
    let add = ["ipvsadm", "-a", "-t", "192.168.1.200:80", "-r", "192.168.1.102", "-m"];
    site.output(First, &add).unwrap();
    let page = curl(&site, First, &[&address]);
    assert!(page.contains("remote_address=\"192.168.1.102\"") && !page.contains("FWM"), "{page}");
    let delete = ["ipvsadm", "-d", "-t", "192.168.1.200:80", "-r", "192.168.1.102"];
    site.output(First, &delete).unwrap();
    let page = curl(&site, First, &[&address]);
    assert!(!page.contains("192.168.1.102") && page.contains("192.168.1.101"), "{page}");
    check_page(&page);

    let json: Value =
        serde_json::from_str(&site.output(First, &["metrics", "--json"]).unwrap()).unwrap();
    schema::check("metrics", &json);
    assert_eq!(json["daemon"], Value::Null);
    assert_eq!(json["destinations"][0]["remote_address"], "192.168.1.101");
    check_page(&site.output(First, &["metrics"]).unwrap());
}
