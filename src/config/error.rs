//! What can be wrong with a configuration, said in one line: the file, the line, the key, and why.

use std::{io, ops::Range, path::PathBuf};

/// Why there is no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read, or was named and does not exist.
    #[error("cannot read the configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },
    /// The text is no TOML, so there is no key to name; the line is quoted instead.
    #[error("{origin}:{line}:{column}: {message} in `{quoted}`")]
    Malformed {
        /// The file's path, or what the text was called.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What the parser stumbled over.
        message: String,
        /// The line itself.
        quoted: String,
    },
    /// A key or its value is not one of the schema's.
    #[error("{origin}:{line}:{column}: {key}: {message}")]
    Invalid {
        /// The file's path, or what the text was called.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The dotted key, `hooks.wait`.
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
            quoted: text
                .lines()
                .nth(line - 1)
                .unwrap_or_default()
                .trim()
                .to_owned(),
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

/// Where a span of `text` starts, both counted from 1; an error without a span concerns the whole
/// text.
pub(crate) fn line_and_column(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let start = span.map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// A value that is not one of its kind, with what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
