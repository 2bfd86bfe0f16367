//! The stargz snapshotter's program. Debian packages only the library, so `main.go` is compiled, in about two minutes,
//! once.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

use crate::go::Program;

const PROGRAM: Program = Program {
    name: "stargz",
    source: include_str!("main.go"),
    libraries: &["golang-github-containerd-stargz-snapshotter-dev=0.14.*"],
};

/// Returns the program, which is compiled if it is missing. Later calls in the same process return the same
/// result.
pub(super) fn built() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| PROGRAM.built().map_err(|e| format!("{e:#}")));
    built.clone().map_err(|message| anyhow!("{message}"))
}
