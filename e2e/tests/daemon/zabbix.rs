//! What Zabbix' agent hands over, and whether the template finds everything in it.

use std::fs;
use std::path::Path;

use e2e::lab::{run, tool, wait_for};
use e2e::schema;
use regex::Regex;
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{First, Web1};
use serde_json::Value;

use crate::site::{Daemon, PROGRAM, Site};

/// What the template's paths and keys have for names of things that are discovered.
const MACROS: [&str; 2] = ["{#ID}", "{#NAME}"];

fn contrib(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/zabbix");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// Follows a path of the kinds that the template has.
fn follow(document: &Value, path: &str) -> Vec<Value> {
    let step = Regex::new(r"^(?:\.(\w+\(\)|\w+)|\[\*\]|\[\?\(@\.(\w+)=='([^']*)'\)\])").unwrap();
    let mut found = vec![document.clone()];
    let mut rest = path.strip_prefix('$').unwrap();
    while let Some(this) = step.captures(rest) {
        rest = &rest[this[0].len()..];
        let inside = |value: Value| value.as_array().cloned().unwrap_or_default();
        found = match (this.get(1).map(|word| word.as_str()), this.get(2), this.get(3)) {
            (Some("first()"), ..) => found.into_iter().take(1).collect(),
            (Some("length()"), ..) => {
                found.into_iter().map(|value| inside(value).len().into()).collect()
            }
            (Some("sum()"), ..) => {
                vec![found.iter().map(|value| value.as_u64().unwrap()).sum::<u64>().into()]
            }
            (Some(name), ..) => found.iter().filter_map(|value| value.get(name)).cloned().collect(),
            (None, Some(key), Some(wanted)) => {
                let all = found.into_iter().flat_map(inside);
                all.filter(|value| value[key.as_str()] == wanted.as_str()).collect()
            }
            (None, ..) => found.into_iter().flat_map(inside).collect(),
        };
    }
    assert!(rest.is_empty(), "{path}: {rest}");
    found
}

#[test]
fn zabbix_finds_all_that_its_template_names() {
    let Some(agent) = tool("zabbix_agent2") else { return };
    let site = Site::new();
    let _first = site.web(Web1);
    let daemon = Daemon::start(&site, First, &HOW_TO.replace("delay_loop 6", "delay_loop 0.2"));
    daemon.wait_said("Removing service", 1);
    daemon.wait_said("BACKUP to MASTER", 1);

    let conf = contrib("rlvs.conf").replace("sudo -n /usr/sbin/rlvs", PROGRAM);
    assert!(conf.contains(PROGRAM));
    let folder = site.directory().display();
    let conf = format!(
        "LogType=console\nServer=127.0.0.1\nHostname=director\nTimeout=10\n\
         ControlSocket={folder}/agent.sock\nPluginSocket={folder}/plugin.sock\n{conf}"
    );
    let file = site.directory().join("agent.conf");
    fs::write(&file, conf).unwrap();
    let words = ["-c", file.to_str().unwrap(), "-t", "rlvs.metrics"];
    let document: Value = wait_for("the agent", || {
        let said = run(site.host(First), &agent, &words);
        let text = said.output.trim().strip_prefix("rlvs.metrics").unwrap_or_default();
        let text = text.trim().strip_prefix("[s|").and_then(|text| text.strip_suffix(']'));
        text.and_then(|text| serde_json::from_str(text).ok()).ok_or_else(|| format!("{said:?}"))
    });
    schema::check("metrics", &document);
    let down = follow(&document, "$.servers[?(@.up=='x')].id");
    assert!(down.is_empty(), "a filter that nothing fits");

    let template = contrib("rlvs.yaml");
    let paths = Regex::new(r"(?m)^ *- '(\$.*)'$").unwrap();
    let mut number = 0;
    for found in paths.captures_iter(&template) {
        let path = found[1].replace("''", "'");
        // Of what is discovered, the last.
        let list = path.split_once("[?").map(|(list, _)| format!("{list}[*]"));
        let named = list.and_then(|list| follow(&document, &list).pop());
        let macros = MACROS.into_iter().zip(["id", "name"]);
        let path = macros.fold(path.clone(), |path, (macro_, key)| {
            let name = named.as_ref().and_then(|one| one[key].as_str()).unwrap_or_default();
            path.replace(macro_, name)
        });
        let seen = follow(&document, &path);
        assert!(!seen.is_empty(), "{path}: {document:#}");
        number += 1;
    }
    assert!(number > 35, "{number}");
    assert_eq!(follow(&document, "$.services[*].id"), ["TCP 192.168.1.200:80"]);
    let why = "$.servers[?(@.id=='[192.168.1.200]:tcp:80 192.168.1.102:80')].why.first()";
    assert!(follow(&document, why)[0].is_string(), "{document:#}");
}
