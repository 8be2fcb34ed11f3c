//! keepalived.conf: from text to the desired state, and back.
//!
//! [`read`] never stops at the first error: it returns what the configuration means as far as it is
//! understood, and every problem with its place. Files and all else of the machine are asked of
//! [`Surroundings`]; this crate itself opens nothing.
#![forbid(unsafe_code)]

pub mod desired;
mod diagnostic;
mod expand;
pub mod grammar;
mod lexer;
mod lower;
mod nearest;
mod print;
mod shell;
mod source;
mod surroundings;
mod token;
mod tree;
mod value;

use std::path::Path;

use desired::Desired;
pub use diagnostic::{Diagnostic, Diagnostics, Objection, Severity};
pub use lexer::Options;
pub use print::{Secrets, print};
pub use source::{FileId, Place, Sources, Span};
pub use surroundings::{ALONE, Alone, Surroundings, Unread};

/// What a configuration means, and what is wrong with it.
#[derive(Debug)]
pub struct Configuration {
    /// What it means. What has an error is left out or has its default.
    pub desired: Desired,
    /// What is wrong with it, in the order of the text.
    pub diagnostics: Diagnostics,
    /// The texts.
    pub sources: Sources,
}

/// Reads the configuration at `path` and what it includes.
pub fn read(path: &Path, surroundings: &mut dyn Surroundings, options: &Options) -> Configuration {
    let mut sources = Sources::default();
    let mut diagnostics = Diagnostics::default();
    let lexer = lexer::Lexer::new(options, surroundings, &mut sources, &mut diagnostics);
    let tokens = lexer.run(path);
    let nodes = tree::parse(tokens, &mut sources, &mut diagnostics);
    let desired = lower::lower(&nodes, surroundings, &sources, &mut diagnostics);
    diagnostics.sort();
    Configuration { desired, diagnostics, sources }
}

/// Reads a text that stands alone.
pub fn read_text(text: &str) -> Configuration {
    read(Path::new(ALONE), &mut Alone(text.as_bytes()), &Options::default())
}
