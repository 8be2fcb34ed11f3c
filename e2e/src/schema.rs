//! What commands say with `--json`, held against docs/json.md.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

/// Members whose own members are names of things and not of the schema.
const NAMED: [&str; 6] = ["refused", "packets", "reasons", "counts", "events", "rejected"];

/// Asserts that a line of JSON is of the schema, and that the document tells of each member in the section of
/// the command, in those that this one refers to, or, of what the daemon says, in its own page.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn check(command: &str, line: &Value) {
    assert_eq!(line["schema"], 1, "rlvs {command} --json: {line}");
    let told = told(command);
    let mut found = BTreeSet::new();
    members(line, &mut found);
    let untold: Vec<&String> = found.difference(&told).collect();
    assert!(untold.is_empty(), "docs/json.md, {command}: nothing of {untold:?}: {line}");
}

fn members(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.insert(name.clone());
                if !NAMED.contains(&name.as_str()) {
                    members(value, found);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| members(value, found)),
        _ => {}
    }
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns what is in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Returns the words in backquotes of a command's section and of those that it names.
fn told(command: &str) -> BTreeSet<String> {
    let page = format!("\n{}", self::page("json.md"));
    let sections: Vec<(&str, &str)> =
        page.split("\n# ").skip(1).filter_map(|section| section.split_once('\n')).collect();
    let of = |command: &str| {
        let command = command.trim_end_matches(" --json");
        let [plain, with_json] = [format!("{command} --json"), format!("rlvs {command} --json")];
        let is_it = |heading: &str| quoted(heading).any(|name| name == plain || name == with_json);
        sections.iter().find(|(heading, _)| is_it(heading)).map(|(_, text)| *text)
    };
    let own = of(command).unwrap_or_else(|| panic!("docs/json.md has no section of {command}"));
    let mut texts: Vec<String> = quoted(own).filter_map(of).map(str::to_owned).collect();
    texts.push(own.to_owned());
    if own.contains("state.md") {
        texts.push(self::page("state.md"));
    }
    let words = texts.iter().flat_map(|text| quoted(text));
    let words = words.flat_map(|words| words.split(['.', ' ', '…']));
    words.map(|word| word.trim_end_matches("[]").to_owned()).collect()
}
