//! Errors of a configuration. Each message is one line: the file, the position, the key, and the reason.

use std::{io, ops::Range, path::PathBuf};

/// An error that leaves no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read, or it was named and does not exist.
    #[error("cannot read the configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        reason: io::Error,
    },
    /// The text is not TOML, so there is no key to name. The beginning of the line is quoted instead.
    #[error("{origin}:{line}:{column}: {message} in `{quoted}`")]
    Malformed {
        /// The file's path, or the name of the text's origin.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The error of the parser.
        message: String,
        /// The beginning of the line.
        quoted: String,
    },
    /// A key is unknown, or its value is not valid.
    #[error("{origin}:{line}:{column}: {key}: {message}")]
    Invalid {
        /// The file's path, or the name of the text's origin.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The dotted key, such as `hooks.wait`.
        key: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
}

impl ConfigError {
    pub(super) fn malformed(origin: &str, text: &str, error: &toml::de::Error) -> Self {
        let (line, column) = line_and_column(text, error.span());
        Self::Malformed {
            origin: origin.to_owned(),
            line,
            column,
            message: error.message().to_owned(),
            quoted: beginning(text.lines().nth(line - 1).unwrap_or_default()),
        }
    }

    pub(super) fn invalid(origin: &str, text: &str, error: &toml::de::Error, key: String) -> Self {
        let (line, column) = line_and_column(text, error.span());
        let message = error.message().to_owned();
        Self::Invalid {
            origin: origin.to_owned(),
            line,
            column,
            key,
            message,
        }
    }
}

/// The most characters of a line that are quoted.
const QUOTED: usize = 40;

/// Returns a line up to its value: the file may be another one that was named by mistake, such as one with credentials.
fn beginning(line: &str) -> String {
    let line = line.trim();
    let end = match line.find(['=', ':']) {
        Some(end) => end + 1,
        None if line.starts_with('[') => line.len(),
        None => 0,
    };
    let shown: String = line[..end].chars().take(QUOTED).collect();
    let rest = if shown.len() < line.len() { " …" } else { "" };
    shown + rest
}

/// Returns the line and column where a span of `text` starts, both counted from 1. An error without a
/// span concerns the whole text, and so is at its start.
pub(crate) fn line_and_column(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let start = span.map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// An error about a value: what is wrong with it, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
