//! What the fuzzer has found worth keeping, played again.

use std::path::Path;

#[test]
fn the_corpus_breaks_no_promise() {
    play("corpus", 100, e2e::fuzz::run);
}

#[test]
fn replies_to_checks_break_no_promise() {
    play("corpus-replies", 5, e2e::replies::run);
}

fn play(corpus: &str, least: u32, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(corpus);
    let mut played = 0;
    for entry in folder.read_dir().expect("fuzz/corpus") {
        let path = entry.expect("fuzz/corpus").path();
        let data = std::fs::read(&path).expect("a file");
        println!("{}", path.display());
        run(&data);
        played += 1;
    }
    assert!(played > least, "{played} files in {}", folder.display());
}
