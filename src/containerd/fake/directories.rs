//! The content of snapshots: the part of overlayfs that shows whether deletions survive an unpack.
//!
//! All snapshotters of the fake work as overlayfs does. Each snapshot has its own directory, over those
//! of the snapshots below it. A whiteout is an entry that hides a file of a lower directory. The type of
//! the mount that a layer is applied through decides whether a deletion becomes a whiteout
//! (containerd's `core/diff/apply/apply_linux.go`).

use std::collections::{BTreeMap, HashMap};

use super::super::{ErrorKind, Mount};
use super::types::{At, Effect};

/// A layer's change to one file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// The file has this content.
    Put(&'static str, String),
    /// The file is deleted.
    Delete(&'static str),
}

/// A directory: for each name a file's content, or `None` for a whiteout.
type Directory = BTreeMap<String, Option<String>>;

#[derive(Default)]
pub(super) struct Directories {
    by_path: HashMap<String, Directory>,
    /// The path of each snapshot's own directory. A commit does not change it.
    paths: HashMap<At, String>,
    made: u64,
}

impl Directories {
    /// Makes a directory for the first snapshot of `chain`, over those of the others, the nearest first.
    /// `staged` fills it and makes it read-only.
    pub(super) fn make(&mut self, chain: &[At], staged: Option<&[Change]>) -> Vec<Mount> {
        let (snapshot, below) = (&chain[0], &chain[1..]);
        self.made += 1;
        let path = format!("/{}/{}/fs", snapshot.0, self.made);
        let directory = self.by_path.entry(path.clone()).or_default();
        apply(staged.unwrap_or_default(), directory, true);
        self.paths.insert(snapshot.clone(), path.clone());
        let write = if staged.is_some() { "ro" } else { "rw" };
        if below.is_empty() {
            return vec![mount("bind", &path, &[write, "rbind"])];
        }
        let below = below.iter().filter_map(|snapshot| self.paths.get(snapshot));
        let below: Vec<_> = below.map(String::as_str).collect();
        let upper = format!("upperdir={path}");
        let lower = format!("lowerdir={}", below.join(":"));
        vec![mount("overlay", "overlay", &[write, &upper, &lower])]
    }

    /// Applies changes through a single mount. An overlay mount writes to its upper directory, and deletions
    /// become whiteouts. A bind mount writes to its source, and deletions remove the file there.
    pub(super) fn apply(&mut self, changes: &[Change], mounts: &[Mount]) -> Effect {
        let [mount] = mounts else {
            return Err(ErrorKind::Other);
        };
        if mount.options.iter().any(|option| option == "ro") {
            return Err(ErrorKind::Other);
        }
        let upper = mount.options.iter();
        let upper = upper
            .filter_map(|option| option.strip_prefix("upperdir="))
            .next();
        let (path, whiteouts) = match (mount.r#type.as_str(), upper) {
            ("overlay", Some(upper)) => (upper, true),
            ("bind", _) => (mount.source.as_str(), false),
            _ => return Err(ErrorKind::Other),
        };
        let directory = self.by_path.get_mut(path).ok_or(ErrorKind::Other)?;
        apply(changes, directory, whiteouts);
        Ok(())
    }

    /// Gives the directory of `from` to `to`, for a commit.
    pub(super) fn rename(&mut self, from: &At, to: At) {
        if let Some(path) = self.paths.remove(from) {
            self.paths.insert(to, path);
        }
    }

    /// Removes the directories of all other snapshots.
    pub(super) fn retain(&mut self, is_there: impl Fn(&At) -> bool) {
        self.paths.retain(|snapshot, path| {
            let stays = is_there(snapshot);
            if !stays {
                self.by_path.remove(path);
            }
            stays
        });
    }

    /// Returns the files that are visible through the directories of `chain`, where each lies over the next.
    pub(super) fn merged(&self, chain: &[At]) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        for snapshot in chain.iter().rev() {
            for (name, content) in &self.by_path[&self.paths[snapshot]] {
                match content {
                    Some(content) => seen.insert(name.clone(), content.clone()),
                    None => seen.remove(name),
                };
            }
        }
        seen
    }
}

fn apply(changes: &[Change], directory: &mut Directory, whiteouts: bool) {
    for change in changes {
        match change {
            Change::Put(name, content) => {
                directory.insert((*name).to_owned(), Some(content.clone()))
            }
            Change::Delete(name) if whiteouts => directory.insert((*name).to_owned(), None),
            Change::Delete(name) => directory.remove(*name),
        };
    }
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}
