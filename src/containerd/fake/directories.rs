//! What is in the snapshots: as much of overlayfs as shows whether deletions survive an unpack.
//!
//! Every snapshotter here works as overlayfs does. A snapshot has a directory of its own, which lies
//! over those below it; what hides a file there is a whiteout, an entry as any other. Whether a
//! deletion in a layer becomes one is up to the mount that the layer is applied through
//! (containerd's `core/diff/apply/apply_linux.go`).

use std::collections::{BTreeMap, HashMap};

use super::super::{ErrorKind, Mount};
use super::types::{At, Effect};

/// What a layer says of one file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// It is there, with this content.
    Put(&'static str, String),
    /// It is there no more.
    Delete(&'static str),
}

/// A directory: each name with a file's content, or `None` for a whiteout.
type Directory = BTreeMap<String, Option<String>>;

#[derive(Default)]
pub(super) struct Directories {
    by_path: HashMap<String, Directory>,
    /// Where a snapshot's own directory is; it does not move when the snapshot is committed.
    paths: HashMap<At, String>,
    made: u64,
}

impl Directories {
    /// A directory for the first of these snapshots, over those of the others, the nearest first;
    /// filled already, and not to be written to, where there are changes to fill it with.
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

    /// Through a lone overlay mount into its upper directory, where deletions become whiteouts;
    /// through a lone bind mount into its source, from which deletions take what is there.
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

    /// A snapshot has been committed.
    pub(super) fn rename(&mut self, from: &At, to: At) {
        if let Some(path) = self.paths.remove(from) {
            self.paths.insert(to, path);
        }
    }

    /// Only these snapshots are there still.
    pub(super) fn retain(&mut self, is_there: impl Fn(&At) -> bool) {
        self.paths.retain(|snapshot, path| {
            let stays = is_there(snapshot);
            if !stays {
                self.by_path.remove(path);
            }
            stays
        });
    }

    /// What is seen of these snapshots' directories, of which each lies over the next.
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
