//! A finding: a value with the problem, its consequence, and its remedy.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub(super) use crate::ctr::word;
use crate::printable::printable;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods fail, or run on wrong content.
    Error,
    /// Something does not work as it should, or will fail when it is needed.
    Warning,
    /// Information that needs no action. It does not count for the exit status.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The id, for scripts. It stays the same from release to release.
    pub id: &'static str,
    /// The severity.
    pub severity: Severity,
    /// The problem, with the names of the objects concerned.
    pub found: String,
    /// The consequence for the pods of this node.
    pub means: String,
    /// The remedy.
    pub remedy: Remedy,
    /// What `--fix` has done, if the remedy is safe and has succeeded.
    pub fixed: Option<String>,
    /// The safe remedy that `--fix` applies, if there is one.
    #[serde(skip)]
    pub(super) cure: Option<Cure>,
}

/// The remedy of a finding.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Remedy {
    /// The remedy in words.
    pub say: String,
    /// The file to change, if there is one.
    pub file: Option<PathBuf>,
    /// The lines to put into this file.
    pub lines: Vec<String>,
    /// The commands to run in this order, after the file was changed.
    pub commands: Vec<String>,
}

/// A safe remedy: it removes nothing that is in use.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cure {
    /// Make images ready.
    Ensure {
        images: Vec<String>,
        snapshotter: String,
    },
    /// Remove what a crash has left.
    Sweep,
}

impl Finding {
    /// Creates a finding without a remedy.
    pub(super) fn new(
        id: &'static str,
        severity: Severity,
        found: impl Into<String>,
        means: impl Into<String>,
    ) -> Self {
        Self {
            id,
            severity,
            found: printable(found.into()),
            means: printable(means.into()),
            remedy: Remedy::default(),
            fixed: None,
            cure: None,
        }
    }

    /// Sets the remedy in words.
    pub(super) fn advise(mut self, say: impl Into<String>) -> Self {
        self.remedy.say = printable(say.into());
        self
    }

    /// Sets the file to change and the lines to put into it.
    pub(super) fn lines(mut self, file: &Path, lines: &str) -> Self {
        self.remedy.file = Some(file.to_owned());
        self.remedy.lines = lines.lines().map(printable).collect();
        self
    }

    /// Adds a command to run.
    pub(super) fn run(mut self, command: impl Into<String>) -> Self {
        self.remedy.commands.push(printable(command.into()));
        self
    }

    /// Sets the safe remedy.
    pub(super) fn cure(mut self, cure: Cure) -> Self {
        self.cure = Some(cure);
        self
    }

    /// Whether the finding still needs an action of the operator.
    pub fn is_open(&self) -> bool {
        self.severity != Severity::Note && self.fixed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        let finding = Finding::new("id", Severity::Note, "a\nb", "\u{1b}[2J");
        let finding = finding.advise("\u{202e}").run("c\nd");
        assert_eq!((&*finding.found, &*finding.means), ("a\\nb", "\\u{1b}[2J"));
        assert_eq!(finding.remedy.say, "\\u{202e}");
        assert_eq!(finding.remedy.commands, ["c\\nd"]);
    }
}
