//! A snapshot as a tree: mounted with the mounts of its snapshotter, and read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::snapshots::{RemoveSnapshotRequest, ViewSnapshotRequest};
use containerd_client::types::Mount;
use lab::{images::digest, namespaced};
use rustix::buffer::spare_capacity;
use rustix::fs::{lgetxattr, lgetxattr_query, llistxattr, llistxattr_query};

use crate::support::Node;

/// The key of the view that a test reads.
const VIEW: &str = "a-test-looks";

/// All attributes of a file except its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Type and permissions.
    pub(crate) mode: String,
    pub(crate) owner: (u32, u32),
    /// In seconds and nanoseconds.
    pub(crate) time: (i64, i64),
    /// Size and digest, for files.
    pub(crate) content: Option<(u64, String)>,
    /// The target of a symbolic link.
    pub(crate) target: Option<PathBuf>,
    pub(crate) device: u64,
    /// All names of the same inode.
    pub(crate) names: Vec<PathBuf>,
    pub(crate) attributes: BTreeMap<String, Vec<u8>>,
}

/// A difference between two trees.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) path: PathBuf,
    /// `mode`, `time`, …; or `presence`.
    pub(crate) field: &'static str,
    /// Both values.
    pub(crate) values: String,
}

impl Entry {
    fn fields(&self) -> [(&'static str, String); 8] {
        [
            ("mode", self.mode.clone()),
            ("owner", format!("{:?}", self.owner)),
            ("time", format!("{:?}", self.time)),
            ("content", format!("{:?}", self.content)),
            ("target", format!("{:?}", self.target)),
            ("device", self.device.to_string()),
            ("names", format!("{:?}", self.names)),
            ("attributes", format!("{:?}", self.attributes)),
        ]
    }
}

/// Returns the differences between two trees.
pub(crate) fn differences(ours: &Tree, theirs: &Tree) -> Vec<Difference> {
    let absent = || [("presence", "absent".to_owned())].into();
    let fields = |entry: Option<&Entry>| entry.map_or_else(absent, |e| Vec::from(e.fields()));
    let mut found = vec![];
    for path in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let pairs = fields(ours.get(path))
            .into_iter()
            .zip(fields(theirs.get(path)));
        let differ = pairs.filter(|(ours, theirs)| ours != theirs);
        found.extend(differ.map(|((field, ours), (_, theirs))| Difference {
            path: path.clone(),
            field,
            values: format!("{ours}, not {theirs}"),
        }));
    }
    found
}

/// The entries by path, from the root.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// Returns the tree of the node's image in a snapshotter.
pub(crate) async fn of(node: &Node, snapshotter: &str) -> Result<Tree> {
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: VIEW.to_owned(),
        parent: node.image.top().to_owned(),
        // The lease protects the view from garbage collection.
        labels: [("containerd.io/gc.root".to_owned(), "yes".to_owned())].into(),
    };
    let mut snapshots = node.store.client.snapshots();
    let view = snapshots.view(namespaced(request)).await?.into_inner();
    let at = node.lab.path("view");
    fs::create_dir_all(&at)?;
    mount(&view.mounts, &at)?;
    let tree = walk(&at);
    // A process that another test is starting holds a file of the tree until it executes its program.
    run(Command::new("umount").arg("--lazy").arg(&at))?;
    let request = RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: VIEW.to_owned(),
    };
    snapshots.remove(namespaced(request)).await?;
    tree
}

fn mount(mounts: &[Mount], at: &Path) -> Result<()> {
    let [mount] = mounts else {
        anyhow::bail!("not one mount: {mounts:?}");
    };
    let mut command = Command::new("mount");
    if mount.r#type != "bind" {
        command.arg("-t").arg(&mount.r#type);
    }
    command
        .arg("-o")
        .arg(mount.options.join(","))
        .arg(&mount.source)
        .arg(at);
    run(&mut command)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {stderr}");
    Ok(())
}

fn walk(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut names: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut next = vec![PathBuf::new()];
    while let Some(path) = next.pop() {
        let at = root.join(&path);
        let metadata = fs::symlink_metadata(&at)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&at)? {
                next.push(path.join(entry?.file_name()));
            }
        }
        let shown = entry(&at).with_context(|| format!("reading {}", at.display()))?;
        // An overlay shows the inode numbers of its layers, each with its own device.
        let inode = (metadata.dev(), metadata.ino());
        names.entry(inode).or_default().push(path.clone());
        inodes.insert(path.clone(), inode);
        tree.insert(path, shown);
    }
    for (path, entry) in &mut tree {
        entry.names.clone_from(&names[&inodes[path]]);
        entry.names.sort();
    }
    Ok(tree)
}

fn entry(at: &Path) -> Result<Entry> {
    let metadata = fs::symlink_metadata(at)?;
    let content = match metadata.is_file() {
        true => Some((metadata.len(), digest(&fs::read(at)?))),
        false => None,
    };
    let target = match metadata.is_symlink() {
        true => Some(fs::read_link(at)?),
        false => None,
    };
    Ok(Entry {
        mode: format!("{:o}", metadata.mode()),
        owner: (metadata.uid(), metadata.gid()),
        time: (metadata.mtime(), metadata.mtime_nsec()),
        content,
        target,
        device: metadata.rdev(),
        names: vec![],
        attributes: attributes(at)?,
    })
}

fn attributes(at: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut list = Vec::with_capacity(llistxattr_query(at)?);
    if list.capacity() > 0 {
        llistxattr(at, spare_capacity(&mut list))?;
    }
    let mut attributes = BTreeMap::new();
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = Vec::with_capacity(lgetxattr_query(at, name)?);
        if value.capacity() > 0 {
            lgetxattr(at, name, spare_capacity(&mut value))?;
        }
        attributes.insert(String::from_utf8(name.to_vec())?, value);
    }
    Ok(attributes)
}
