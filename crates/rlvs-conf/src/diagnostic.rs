//! What is wrong with a configuration, and how it is told.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::source::{Place, Sources, Span};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something that is worth knowing.
    Note,
    /// It is carried out, but perhaps not as meant.
    Warning,
    /// It is not carried out as written.
    Error,
}

/// What `keepalived -t` would make of it: its exit statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// None.
    None,
    /// None by us; the real one would object, with status 5.
    Foreign,
    /// A script is run without `enable_script_security`: status 6, if there is nothing else.
    Security,
    /// It would run with less than what is written: status 5.
    General,
    /// An included file that must be there is not: status 6.
    Include,
    /// There is no configuration: status 4.
    File,
    /// A keyword has no argument: status 2.
    Parameter,
}

/// A problem. Texts never hold a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is, unless it concerns the whole.
    pub span: Option<Span>,
    /// What is wrong, or what is done about it.
    pub message: String,
    /// What was expected at the marked place.
    pub expected: Option<String>,
    /// What to do, or what was probably meant.
    pub help: Option<String>,
    /// Another place that belongs to it, and why.
    pub related: Option<(Span, String)>,
    /// What `keepalived -t` would say.
    pub objection: Objection,
}

impl Diagnostic {
    fn new(severity: Severity, at: impl Into<Option<Span>>, message: String) -> Self {
        let objection =
            if severity == Severity::Error { Objection::General } else { Objection::None };
        let (expected, help, related) = (None, None, None);
        Self { severity, span: at.into(), message, expected, help, related, objection }
    }

    /// Returns an error.
    pub(crate) fn error(at: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, at, message.into())
    }

    /// Returns a warning, to which the real one would not object.
    pub(crate) fn warning(at: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, at, message.into())
    }

    /// Returns a note.
    pub(crate) fn note(at: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, at, message.into())
    }

    /// Says what the real one would do.
    pub(crate) fn objection(self, objection: Objection) -> Self {
        Self { objection, ..self }
    }

    /// Says what was expected at the marked place.
    pub(crate) fn expected(self, expected: impl Into<String>) -> Self {
        Self { expected: Some(expected.into()), ..self }
    }

    /// Says what to do.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Names another place that belongs to it.
    pub(crate) fn related(self, at: Span, why: impl Into<String>) -> Self {
        Self { related: Some((at, why.into())), ..self }
    }

    /// Returns the place, if it has one.
    pub fn place(&self, sources: &Sources) -> Option<Place> {
        self.span.map(|span| sources.place(span))
    }

    /// Writes it for people, with the line marked.
    pub fn render(&self, sources: &Sources, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let title = level.primary_title(shown(&self.message));
        let mut group = annotate_snippets::Group::with_title(title);
        if let Some(span) = self.span {
            group = group.element(snippet(sources, span, self.expected.as_deref(), true));
        }
        if let Some((span, why)) = &self.related {
            group = group.element(snippet(sources, *span, Some(why), false));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(shown(help)));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

/// One line of a text with something marked.
fn snippet<'a>(
    sources: &Sources,
    span: Span,
    label: Option<&str>,
    primary: bool,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let place = sources.place(span);
    let (line, range) = sources.marked_line(span);
    let kind = if primary { AnnotationKind::Primary } else { AnnotationKind::Context };
    let mut mark = kind.span(range);
    if let Some(label) = label {
        mark = mark.label(shown(label));
    }
    Snippet::source(line)
        .line_start(place.line as usize)
        .path(place.path.display().to_string())
        .annotation(mark)
}

/// Returns text that a terminal may get.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The problems of one configuration.
#[derive(Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    /// Problems that were not kept.
    left_out: usize,
    /// The gravest objection among those not kept.
    unkept: Option<Objection>,
}

/// More problems than this nobody reads.
const KEPT_MAX: usize = 1000;

impl Diagnostics {
    /// Adds one.
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.list.len() < KEPT_MAX {
            return self.list.push(diagnostic);
        }
        self.left_out += 1;
        if diagnostic.severity == Severity::Error {
            self.unkept = Some(diagnostic.objection);
        }
    }

    /// Puts them in the order of the text.
    pub(crate) fn sort(&mut self) {
        self.list.sort_by_key(|diagnostic| diagnostic.span);
    }

    /// Returns them in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// Returns how many more there were than are kept.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Returns whether something is not carried out as written.
    pub fn has_errors(&self) -> bool {
        self.unkept.is_some() || self.iter().any(|found| found.severity == Severity::Error)
    }

    /// Returns the exit status of `keepalived -t`; with `strict`, that of the real one, which knows
    /// less than we do.
    pub fn status(&self, strict: bool) -> u8 {
        let has = |objection| {
            self.unkept == Some(objection) || self.iter().any(|found| found.objection == objection)
        };
        let foreign = strict && has(Objection::Foreign);
        if has(Objection::Parameter) {
            2
        } else if has(Objection::File) {
            4
        } else if has(Objection::Include) {
            6
        } else if has(Objection::General) || foreign {
            5
        } else if has(Objection::Security) {
            6
        } else {
            0
        }
    }
}
