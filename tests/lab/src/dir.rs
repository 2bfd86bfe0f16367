//! The directory of all files of the lab.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Returns the directory, which exists: `NRI_UNPACK_LAB`, or `target/lab` of this checkout. The path is without
/// symbolic links, as in the kernel's table of mounts.
pub(crate) fn lab_dir() -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let dir = match (std::env::var_os("NRI_UNPACK_LAB"), checkout) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(checkout)) => checkout.join("target/lab"),
        (None, None) => bail!("the lab is not in a checkout: set NRI_UNPACK_LAB to a directory"),
    };
    let dir = fs::create_dir_all(&dir)
        .and_then(|()| dir.canonicalize())
        .with_context(|| format!("creating {}", dir.display()))?;
    let is_plain = |c: char| !c.is_whitespace() && !r#":,"\"#.contains(c);
    ensure!(
        dir.to_str().is_some_and(|path| path.chars().all(is_plain)),
        "{} holds a character that means something in PATH, mount options or TOML: set NRI_UNPACK_LAB to a plain path",
        dir.display()
    );
    Ok(dir)
}
