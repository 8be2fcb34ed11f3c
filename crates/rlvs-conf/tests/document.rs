//! The page about keywords is the table of keywords.

use std::collections::BTreeSet;
use std::path::Path;

use rlvs_conf::grammar::{Keyword, ROOT, document, inner, manual};

#[test]
fn the_page_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/keepalived.md");
    if std::env::var_os("RLVS_WRITE_DOCUMENTS").is_some() {
        std::fs::write(&path, document()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == document(), "docs/keepalived.md is old: run this with RLVS_WRITE_DOCUMENTS=1");
}

#[test]
fn a_block_has_a_keyword_once_and_a_meaning_for_each() {
    fn check(rows: &'static [Keyword], within: &str) {
        let mut met = BTreeSet::new();
        for row in rows {
            assert!(met.insert(row.name), "{} is twice in {within}", row.name);
            assert!(
                !row.about.is_empty()
                    || row.instead.is_some()
                    || row.status == rlvs_conf::grammar::Status::Void,
                "{} in {within}",
                row.name
            );
            check(inner(row), row.name);
        }
    }
    check(ROOT, "the top level");
}

#[test]
fn the_manual_page_has_every_keyword() {
    fn check(rows: &'static [Keyword], page: &str) {
        for row in rows {
            let item = format!(".TP\n.B {}", row.name.replace('-', "\\-"));
            assert!(page.contains(&item), "{}", row.name);
            check(inner(row), page);
        }
    }
    check(ROOT, &manual("0"));
}
