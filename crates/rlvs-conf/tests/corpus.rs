//! What the fuzzer found worth keeping, and the recorded configurations.

use std::path::Path;

mod promise;

#[test]
fn every_kept_text_keeps_the_promise() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut played = 0;
    for folder in [here.join("tests/keepalived"), here.join("../../fuzz/corpus-conf")] {
        for entry in folder.read_dir().expect("a folder of texts") {
            promise::keep(&std::fs::read(entry.expect("an entry").path()).expect("a text"));
            played += 1;
        }
    }
    assert!(played > 25);
}

#[test]
fn texts_that_were_trouble() {
    for text in
        ["\"", "{", "}", "a {", "$", "${", "@", "@^", "~SEQ(", "include", "\\#", "~LST({a,b},{1})x"]
    {
        promise::keep(text.as_bytes());
    }
    promise::keep(b"vrrp_instance V {\nauthentication { auth_pass HIDDEN\nauth_pss HIDDEN\npriority x\n auth_pass \"HIDDEN\n}\n");
    promise::keep(b"vrrp_instance V { authentication { auth_type PASS auth_pass HIDDEN foo } }");
    promise::keep(b"SSL {\npassword HIDDEN more\n}");
}
