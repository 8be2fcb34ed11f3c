//! What the fuzzers have found worth keeping, played again.

use std::path::Path;

#[test]
fn the_corpus_breaks_no_promise() {
    play("corpus", 100, e2e::fuzz::run);
}

#[test]
fn the_corpus_of_vrrp_breaks_no_promise() {
    play("corpus-vrrp", 100, e2e::fuzz_vrrp::run);
}

#[test]
fn replies_to_checks_break_no_promise() {
    play("corpus-replies", 5, e2e::replies::run);
}

#[test]
fn lines_to_restore_break_no_promise() {
    play("corpus-restore", 50, e2e::restore::run);
}

fn play(name: &str, at_least: usize, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name);
    let mut played = 0;
    for entry in folder.read_dir().expect("a folder") {
        let path = entry.expect("a folder").path();
        let data = std::fs::read(&path).expect("a file");
        println!("{}", path.display());
        run(&data);
        played += 1;
    }
    assert!(played > at_least, "{played} files in {}", folder.display());
}
