//! The systemd unit with the path of the program, and the mark by which `install` recognizes a unit that it has written.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Error;

/// The unit that the project ships.
const UNIT: &str = include_str!("../../systemd/nri-unpack.service");

/// The line of the shipped unit that names the program.
const SHIPPED: &str = "ExecStart=/usr/local/bin/nri-unpack run";

/// The beginning of the last line. The line ends with the digest of all text before it.
const MARK: &str =
    "# Written by `nri-unpack install`, which leaves it alone when it was changed: sha256:";

/// Returns the unit that starts this program.
pub(super) fn text(program: &Path) -> Result<String, Error> {
    let text = UNIT.replace(SHIPPED, &start(program)?);
    let digest = digest(&text);
    Ok(format!("{text}{MARK}{digest}\n"))
}

/// Whether any version of `install` has written exactly this text.
pub(super) fn is_as_written(text: &str) -> bool {
    match text.rsplit_once(MARK) {
        Some((before, recorded)) => recorded.trim_end() == digest(before),
        None => false,
    }
}

/// Whether this unit starts this program.
pub(super) fn starts(unit: &Path, program: &Path) -> Result<bool, Error> {
    let text = fs::read_to_string(unit).map_err(|e| Error::io(unit, e))?;
    let start = start(program)?;
    Ok(text.lines().any(|line| line == start))
}

/// Returns the line that starts the program. Spaces, quotes, `%` and other characters have a meaning for systemd;
/// a path with them is rejected instead of escaped.
fn start(program: &Path) -> Result<String, Error> {
    let path = program.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    match path.starts_with('/') && path.chars().all(is_plain) {
        true => Ok(format!("ExecStart={path} run")),
        false => Err(Error::Program {
            path: program.to_owned(),
            why: "a unit needs an absolute path of letters, digits and `._+-`".to_owned(),
            remedy: "install it in /usr/local/bin for example".to_owned(),
        }),
    }
}

fn digest(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
