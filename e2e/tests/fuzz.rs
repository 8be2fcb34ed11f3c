//! What the fuzzer has found worth keeping, played again.

use std::path::Path;

#[test]
fn the_corpus_breaks_no_promise() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut played = 0;
    for entry in folder.read_dir().expect("fuzz/corpus") {
        let path = entry.expect("fuzz/corpus").path();
        let data = std::fs::read(&path).expect("a file");
        println!("{}", path.display());
        e2e::fuzz::run(&data);
        played += 1;
    }
    assert!(played > 100, "{played} files in {}", folder.display());
}
