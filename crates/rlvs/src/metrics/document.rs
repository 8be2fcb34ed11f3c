//! docs/metrics.md, made from the table of metrics.

use std::fmt::Write;

use super::exposition::{Section, sections};

/// What stands before the tables.
const HEAD: &str = include_str!("metrics.head.md");

/// Returns docs/metrics.md.
pub fn document() -> String {
    let mut text = HEAD.to_owned();
    let mut title = "";
    for Section { title: its, labels, rows } in sections() {
        if its != title {
            title = its;
            put(&mut text, format_args!("\n### {its}\n"));
        }
        let labels = match labels.as_slice() {
            [] => "Without labels.".to_owned(),
            labels => format!("Labels: `{}`.", labels.join("`, `")),
        };
        put(
            &mut text,
            format_args!("\n{labels}\n\n| metric | type | what |\n| --- | --- | --- |\n"),
        );
        for (name, kind, help) in rows {
            put(&mut text, format_args!("| `{name}` | {} | {help} |\n", kind.name()));
        }
    }
    text
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes everything.
    text.write_fmt(what).ok();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::metrics::text::Kind;

    #[test]
    fn the_reference_is_of_today() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        if std::env::var_os("RLVS_WRITE_DOCUMENTS").is_some() {
            fs::write(&path, document()).unwrap();
        }
        let page = fs::read_to_string(path).unwrap();
        assert!(page == document(), "docs/metrics.md is old: run this with RLVS_WRITE_DOCUMENTS=1");
    }

    #[test]
    fn names_are_once_and_as_prometheus_wants_them() {
        let mut seen = BTreeSet::new();
        for (name, kind, help) in sections().into_iter().flat_map(|section| section.rows) {
            assert!(seen.insert(name), "{name} is there twice");
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
        }
    }
}
