//! What the plugin's process holds: memory, files and threads.

use anyhow::{Context, Result, ensure};

use crate::memory::Memory;
use crate::support::Node;

/// What the plugin may hold more afterwards: its caches fill, and glibc keeps some freed memory.
const MORE_ANONYMOUS: u64 = 8 << 10;
const MORE_FILES: usize = 4;
const MORE_THREADS: usize = 2;

/// What the plugin's process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resources {
    memory: Memory,
    files: usize,
    threads: usize,
}

impl Resources {
    pub(crate) fn by(node: &Node) -> Result<Self> {
        let plugin = node.plugin.as_ref().context("serving")?;
        let pid = plugin.pid().context("the plugin does not run")?;
        let entries = |name: &str| {
            Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{pid}/{name}"))?.count())
        };
        Ok(Self {
            memory: Memory::of(pid)?,
            files: entries("fd")?,
            threads: entries("task")?,
        })
    }

    /// Checks that no more is held than before.
    pub(crate) fn assert_as(&self, before: &Self) -> Result<()> {
        println!("before: {before}\nafter:  {self}");
        ensure!(
            self.files <= before.files + MORE_FILES,
            "files are left open"
        );
        ensure!(
            self.threads <= before.threads + MORE_THREADS,
            "threads are left"
        );
        ensure!(
            self.memory.anonymous <= before.memory.anonymous + MORE_ANONYMOUS,
            "memory is held"
        );
        Ok(())
    }
}

impl std::fmt::Display for Resources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            memory,
            files,
            threads,
        } = self;
        write!(f, "{memory}, {files} files, {threads} threads")
    }
}
