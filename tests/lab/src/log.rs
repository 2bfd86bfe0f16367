//! The log file of a process, which is read while the process writes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::POLL;

/// The part of a log that error messages contain: enough for a failed start of containerd.
const TAIL_LINES: usize = 30;

/// The maximum length of each line in error messages: containerd logs whole container specifications in one
/// line.
const TAIL_COLUMNS: usize = 400;

/// A log file, or the part of it after a mark. It remains after the process, and a restarted process appends to
/// it.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    /// The number of bytes at the beginning that are ignored.
    skip: usize,
}

impl Log {
    /// Returns the log in this file, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, skip: 0 }
    }

    /// Returns the part of the log that is written from now on, without older lines.
    pub fn from_now(&self) -> Self {
        let length = fs::metadata(&self.path).map_or(0, |file| file.len());
        Self {
            path: self.path.clone(),
            skip: length as usize,
        }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the whole text so far; empty if nothing was logged.
    pub fn text(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.skip..).unwrap_or_default()).into_owned()
    }

    /// Returns the lines that contain `pattern`.
    pub fn lines_with(&self, pattern: &str) -> Vec<String> {
        self.text()
            .lines()
            .filter(|l| l.contains(pattern))
            .map(str::to_owned)
            .collect()
    }

    /// Returns the path and the last lines, for an error message.
    pub(crate) fn show(&self) -> String {
        let text = self.text();
        let mut shown = format!("the end of {}:", self.path.display());
        let lines = text.lines().count();
        for line in text.lines().skip(lines.saturating_sub(TAIL_LINES)) {
            let cut = line
                .char_indices()
                .nth(TAIL_COLUMNS)
                .map_or(line.len(), |(at, _)| at);
            shown = format!(
                "{shown}\n{}{}",
                &line[..cut],
                if cut < line.len() { "…" } else { "" }
            );
        }
        shown
    }

    /// Waits for the first line that contains `pattern`, and returns it.
    ///
    /// # Errors
    /// If there is none within `timeout`; the message has the end of the log.
    pub async fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(line) = self.lines_with(pattern).into_iter().next() {
                return Ok(line);
            }
            if Instant::now() > deadline {
                bail!("no «{pattern}» within {timeout:?}; {}", self.show());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("a.log"));
        assert_eq!(log.text(), "", "a log without a writer");
        let long = "é".repeat(TAIL_COLUMNS + 1);
        let lines: Vec<String> = (0..=TAIL_LINES).map(|n| format!("line {n}")).collect();
        fs::write(log.path(), format!("{}\n{long}\n", lines.join("\n"))).unwrap();
        let shown = log.show();
        assert!(
            !shown.contains("line 1\n") && shown.contains("\nline 2\n"),
            "{shown}"
        );
        assert!(
            shown.ends_with(&format!("\n{}…", "é".repeat(TAIL_COLUMNS))),
            "{shown}"
        );
    }

    #[test]
    fn from_now_ignores_older_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("a.log"));
        fs::write(log.path(), "ready\n").unwrap();
        let later = log.from_now();
        assert_eq!(later.lines_with("ready"), Vec::<String>::new());
        fs::write(log.path(), "ready\nready again\n").unwrap();
        assert_eq!(later.lines_with("ready"), ["ready again"]);
        assert_eq!(log.lines_with("ready").len(), 2);
    }
}
