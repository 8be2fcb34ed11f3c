//! What holds for any text: the tests and the fuzzer hold the reader to it.

use std::path::{Path, PathBuf};

use rlvs_conf::{Options, Secrets, Surroundings, Unread, print, read, read_text};

/// A folder in which every file has the same text.
struct Folder<'t>(&'t [u8]);

impl Surroundings for Folder<'_> {
    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unread> {
        if path.ends_with("missing") {
            return Err(Unread::Missing);
        }
        if self.0.len() > bytes_max { Err(Unread::TooLong) } else { Ok(self.0.to_vec()) }
    }
    fn matching(&mut self, pattern: &str) -> Vec<PathBuf> {
        vec![pattern.replace('*', "x").into(), pattern.replace('*', "y").into()]
    }
    fn variable(&self, name: &str) -> Option<String> {
        Some(format!("${name}"))
    }
}

/// Reads any text, and what is understood of it once more.
///
/// # Panics
/// A promise is broken.
pub(crate) fn keep(data: &[u8]) {
    let options = Options { id: "a".into(), ..Options::default() };
    let found = read(Path::new("folder/a.conf"), &mut Folder(data), &options);
    for diagnostic in found.diagnostics.iter() {
        let told = diagnostic.render(&found.sources, false);
        assert!(!told.contains("HIDDEN"), "a password is shown: {told}");
        if let Some(place) = diagnostic.place(&found.sources) {
            assert!(place.line > 0 && place.column > 0);
        }
    }
    let hidden = print(&found.desired, Secrets::Hidden);
    assert!(!hidden.contains("auth_pass HIDDEN"), "a password is shown: {hidden}");
    let text = print(&found.desired, Secrets::Shown);
    // A text in a text that means something again cannot be written down.
    if !text.contains(['$', '~', '\\', '\u{fffd}'])
        && !text.contains(|c: char| c.is_control() && c != '\n')
    {
        let again = read_text(&text);
        assert_eq!(again.desired, found.desired, "{text}");
    }
}
