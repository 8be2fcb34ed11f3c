//! Two versions of the program whose maps are laid out otherwise, for tests of upgrades.
//!
//! The other one is the program under test that pretends another layout, with another object; or one whose
//! records differ indeed, which `cargo xtask succession` builds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rlvs_datapath::abi::LAYOUT;

use crate::lab::OtherObjects;

/// Makes a program pretend a layout.
const PRETENDED: &str = "RLVS_TEST_LAYOUT";
const OBJECTS: &str = "RLVS_BPF_OBJECT_DIR";
/// Says where a program is whose records differ.
const OTHER: &str = "RLVS_OTHER_PROGRAM";
/// What such a one adds to [`LAYOUT`].
const OTHER_ADDS: u32 = 1000;

/// A version of the program.
#[derive(Debug)]
pub struct Version {
    /// Is this version whoever runs it, another version too.
    pub program: PathBuf,
    /// How its maps are laid out.
    pub layout: u32,
}

/// The version under test, and another one.
#[derive(Debug)]
pub struct Versions {
    /// Both.
    pub of: [Version; 2],
    _objects: OtherObjects,
}

impl Versions {
    /// Makes them of the program under test, in an existing folder; `role` is a name of the test's own.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn new(role: &str, program: &str, folder: &Path) -> Self {
        let objects = OtherObjects::new(role, program);
        let own = format!("unset {PRETENDED} {OBJECTS}\nexec {program} \"$@\"\n");
        let (layout, other) = match std::env::var(OTHER) {
            Ok(other) => {
                (LAYOUT + OTHER_ADDS, format!("unset {PRETENDED} {OBJECTS}\nexec {other} \"$@\"\n"))
            }
            Err(_) => {
                let (layout, folder) = (LAYOUT + 1, objects.folder().display());
                let pretend = format!("export {PRETENDED}={layout} {OBJECTS}={folder}");
                (layout, format!("{pretend}\nexec {program} \"$@\"\n"))
            }
        };
        let version = |name: &str, text: String, layout| {
            let program = folder.join(name);
            fs::write(&program, format!("#!/bin/sh\n{text}")).expect("a script");
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&program, executable).expect("a script's mode");
            Version { program, layout }
        };
        let of = [version("version-0", own, LAYOUT), version("version-1", other, layout)];
        Self { of, _objects: objects }
    }
}
