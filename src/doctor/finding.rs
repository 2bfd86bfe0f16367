//! What was found: a value that says what it is, what it means, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub(super) use crate::ctr::word;
use crate::printable::printable;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods fail, or run on what they must not.
    Error,
    /// Something does not work as it should, or will not when it is needed.
    Warning,
    /// Worth knowing; nothing has to be done. It does not count for the exit status.
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

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// A word for scripts that stays the same from release to release.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is so, with the things named.
    pub found: String,
    /// What that does to the pods of this node.
    pub means: String,
    /// What to do about it.
    pub remedy: Remedy,
    /// What was done about it, where that was asked for and safe.
    pub fixed: Option<String>,
    /// What can be done about it without asking anybody.
    #[serde(skip)]
    pub(super) cure: Option<Cure>,
}

/// What to do about a finding.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Remedy {
    /// In words.
    pub say: String,
    /// The file that is to be changed, where there is one.
    pub file: Option<PathBuf>,
    /// The very lines to put into it.
    pub lines: Vec<String>,
    /// What to run, in this order; after the file was changed.
    pub commands: Vec<String>,
}

/// What is safe to do: it takes nothing away that anybody uses.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cure {
    /// Make an image ready.
    Ensure { image: String, snapshotter: String },
    /// Take away what a crash has left.
    Sweep,
}

impl Finding {
    /// Without a remedy yet.
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

    /// What to do, in words.
    pub(super) fn advise(mut self, say: impl Into<String>) -> Self {
        self.remedy.say = printable(say.into());
        self
    }

    /// These lines belong into this file.
    pub(super) fn lines(mut self, file: &Path, lines: &str) -> Self {
        self.remedy.file = Some(file.to_owned());
        self.remedy.lines = lines.lines().map(printable).collect();
        self
    }

    /// This is to be run.
    pub(super) fn run(mut self, command: impl Into<String>) -> Self {
        self.remedy.commands.push(printable(command.into()));
        self
    }

    /// This helps, and is safe.
    pub(super) fn cure(mut self, cure: Cure) -> Self {
        self.cure = Some(cure);
        self
    }

    /// Whether somebody still has to do something about it.
    pub fn is_open(&self) -> bool {
        self.severity != Severity::Note && self.fixed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_one_line() {
        let finding = Finding::new("id", Severity::Note, "a\nb", "\u{1b}[2J");
        let finding = finding.advise("\u{202e}").run("c\nd");
        assert_eq!((&*finding.found, &*finding.means), ("a\\nb", "\\u{1b}[2J"));
        assert_eq!(finding.remedy.say, "\\u{202e}");
        assert_eq!(finding.remedy.commands, ["c\\nd"]);
    }
}
