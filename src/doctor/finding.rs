//! A finding: a value with the problem, its consequence, and its remedy.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub(super) use crate::ctr::word;
use crate::printable::{printable, printable_within};

/// The limit of the images' names in one command, in bytes. A terminal takes lines of 4,095 bytes.
const MAX_WORDS: usize = 1500;

/// The limit of the names that a text lists, in bytes. A text that is cut would end within a name.
const MAX_NAMES: usize = 1000;

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
        self.remedy.lines = lines.lines().map(uncut).collect();
        self
    }

    /// Adds a command to run.
    pub(super) fn run(mut self, command: impl Into<String>) -> Self {
        self.remedy.commands.push(uncut(&command.into()));
        self
    }

    /// Adds the commands that make these images ready. `ensure --all` is no substitute: it also unpacks images that the
    /// snapshotter has never had.
    pub(super) fn ensure(self, images: &[&str], snapshotter: &str) -> Self {
        let snapshotter = word(snapshotter);
        let words = images.iter().map(|name| word(name)).collect();
        let command =
            |words: String| format!("nri-unpack ensure {words} --snapshotter {snapshotter}");
        let commands = chunks(words).into_iter().map(command);
        commands.fold(self, Self::run)
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

/// Makes a command or a line of a file safe for a terminal. Half of one would do something else.
fn uncut(text: &str) -> String {
    printable_within(usize::MAX, text)
}

/// Joins words into lines of at most [`MAX_WORDS`] bytes; a longer word is a line of its own.
fn chunks(words: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < MAX_WORDS => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// Lists names: at most `most`, and fewer if they are long.
pub(super) fn some(names: &[&str], most: usize) -> String {
    let mut bytes = 0;
    let fits = |name: &&&str| {
        let is_first = bytes == 0;
        bytes += name.len();
        is_first || bytes <= MAX_NAMES
    };
    let shown = names.iter().take(most).take_while(fits).copied();
    let shown: Vec<_> = shown.collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_names_are_shortened() {
        assert_eq!(some(&["a", "b"], 3), "a, b");
        assert_eq!(some(&["a", "b", "c", "d", "e"], 3), "a, b, c and 2 more");
        let long = "a".repeat(400);
        let expected = format!("{long}, {long} and 1 more");
        assert_eq!(some(&[&long, &long, &long], 3), expected);
        assert_eq!(some(&[], 3), "");
    }

    #[test]
    fn no_command_is_cut() {
        let names: Vec<_> = (0..100)
            .map(|i| format!("r.example/{i} {}", "a".repeat(100)))
            .chain(["b".repeat(5000)])
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let finding = Finding::new("id", Severity::Note, "", "").ensure(&names, "nydus");
        let commands = finding.remedy.commands;
        for (i, command) in commands.iter().enumerate() {
            assert!(command.len() < 2048 || i + 1 == commands.len());
            assert!(command.starts_with("nri-unpack ensure "), "{command}");
            assert!(command.ends_with(" --snapshotter nydus"), "{command}");
        }
        let all = commands.join(" ");
        for name in names {
            assert!(all.contains(&word(name)), "{name}");
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let finding = Finding::new("id", Severity::Note, "a\nb", "\u{1b}[2J");
        let finding = finding.advise("\u{202e}").run("c\nd");
        assert_eq!((&*finding.found, &*finding.means), ("a\\nb", "\\u{1b}[2J"));
        assert_eq!(finding.remedy.say, "\\u{202e}");
        assert_eq!(finding.remedy.commands, ["c\\nd"]);
    }
}
