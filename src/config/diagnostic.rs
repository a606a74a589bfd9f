//! What is wrong with a configuration, where, and what to write instead.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// One mistake. `line` and `column` start at 1; columns count characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
    /// The key, as a path: `line[0].outputs.verdicts`. Empty for mistakes of syntax.
    pub key: String,
    pub message: String,
    pub help: Option<String>,
    /// The line of the file, and how many characters of it are meant.
    #[serde(skip)]
    source: String,
    #[serde(skip)]
    width: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message)?;
        if !self.source.trim().is_empty() {
            writeln!(f, "{:>5} | {}", self.line, self.source)?;
            // Tabs are kept, so that the carets stand under what they mean.
            let lead: String = self
                .source
                .chars()
                .take(self.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            writeln!(f, "      | {lead}{}", "^".repeat(self.width.max(1)))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "  try: {help}")?;
        }
        Ok(())
    }
}

/// Collects mistakes while a file is read, so that one run shows them all.
#[derive(Debug)]
pub struct Diagnostics<'t> {
    file: PathBuf,
    text: &'t str,
    found: Vec<(usize, Diagnostic)>,
}

impl<'t> Diagnostics<'t> {
    pub fn new(file: &Path, text: &'t str) -> Self {
        Diagnostics { file: file.to_owned(), text, found: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Adds a mistake at bytes `span` of the text.
    pub fn add(&mut self, span: Range<usize>, key: &str, message: String, help: Option<String>) {
        let start = floor_char(self.text, span.start);
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let source = self.text[line_start..].lines().next().unwrap_or("");
        let end =
            floor_char(self.text, span.end).clamp(start, line_start + source.len().max(start - line_start));
        let diagnostic = Diagnostic {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            key: key.to_owned(),
            message,
            help,
            source: mask(source),
            width: self.text[start..end].chars().count(),
        };
        self.found.push((start, diagnostic));
    }

    /// In the order of the file.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(at, _)| *at);
        self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }
}

/// A line of the file with user and password of URLs starred out. It stays as long as it was, so that
/// carets stand under what they mean.
fn mask(line: &str) -> String {
    let mut parts = line.split("://");
    let mut shown = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let authority = part.find(['/', ' ', '"', '\'', '!']).unwrap_or(part.len());
        let secret = part[..authority].rfind('@').unwrap_or(0);
        shown.push_str("://");
        shown.extend(part[..secret].chars().map(|_| '*'));
        shown.push_str(&part[secret..]);
    }
    shown
}

/// The nearest character boundary at or before `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The candidate that a typing mistake would turn into `typed`, if one is near enough: at most one
/// third of its letters wrong, or cut off after three letters or more.
pub fn nearest<'c>(typed: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let near = |candidate: &str, distance: usize| {
        distance <= (candidate.len().max(typed.len()) / 3).max(1)
            || (typed.len() >= 3 && candidate.starts_with(typed))
    };
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(typed, candidate), candidate))
        .filter(|(distance, candidate)| near(candidate, *distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_shows_its_place_with_carets() {
        let text = "a = 1\n\tümlaut = \"x\"\n";
        let mut diagnostics = Diagnostics::new(Path::new("c.toml"), text);
        let at = text.find("ümlaut").unwrap();
        diagnostics.add(at..at + "ümlaut".len(), "", "no such key".into(), Some("umlaut".into()));
        let found = diagnostics.into_sorted();
        assert_eq!(
            found[0].to_string(),
            "c.toml:2:2: no such key\n    2 | \tümlaut = \"x\"\n      | \t^^^^^^\n  try: umlaut\n"
        );
    }

    #[test]
    fn a_password_in_the_file_is_not_shown_with_the_mistake_beside_it() {
        let text = "source = \"rtspsrc location=rtsp://me:gehe1m@host/x\" # ftp://a:b@c\n";
        let mut diagnostics = Diagnostics::new(Path::new("c"), text);
        diagnostics.add(0..6, "", "no such key".into(), None);
        let found = diagnostics.into_sorted();
        let shown =
            "    1 | source = \"rtspsrc location=rtsp://*********@host/x\" # ftp://***@c\n      | ^^^^^^\n";
        assert!(found[0].to_string().contains(shown), "{}", found[0]);
    }

    #[test]
    fn spans_outside_the_text_or_inside_a_character_are_no_panic() {
        let text = "ü";
        for span in [0..0, 1..1, 1..9, 9..9, Range { start: 5, end: 2 }] {
            let mut diagnostics = Diagnostics::new(Path::new("c"), text);
            diagnostics.add(span, "", "m".into(), None);
            assert_eq!(diagnostics.into_sorted()[0].line, 1);
        }
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_not() {
        assert_eq!(nearest("deadlin_ms", ["deadline_ms", "drain_ms"]), Some("deadline_ms"));
        assert_eq!(nearest("thread", ["threads", "http"]), Some("threads"));
        assert_eq!(nearest("que", ["queue", "name"]), Some("queue"));
        assert_eq!(nearest("colour", ["threads", "http"]), None);
    }
}
