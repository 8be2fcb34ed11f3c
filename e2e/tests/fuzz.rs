//! What the fuzzers have found worth keeping, played again.

use std::path::Path;

fn play(name: &str, least: usize, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name);
    let mut played = 0;
    for entry in folder.read_dir().expect("a folder of what is kept") {
        let path = entry.expect("a file").path();
        let data = std::fs::read(&path).expect("a file");
        println!("{}", path.display());
        run(&data);
        played += 1;
    }
    assert!(played > least, "{played} files in {}", folder.display());
}

#[test]
fn the_corpus_breaks_no_promise() {
    play("corpus", 100, e2e::fuzz::run);
}

#[test]
fn lines_to_restore_break_no_promise() {
    play("corpus-restore", 50, e2e::restore::run);
}
