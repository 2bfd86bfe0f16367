//! `purge`: removes what the plugin has left in containerd, when it leaves the node.

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::doctor::{Search, search};
use crate::node::Node;
use crate::printable::printable;
use crate::unpack::{Fate, Leftover, LeftoverKind, Role};

use super::{Exit, Failure, Output, table};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// List what is left, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not look for a running plugin first, where this process does not see the node's processes
    #[arg(long)]
    force: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The JSON output.
#[derive(Debug, Serialize)]
struct Report {
    leftovers: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    kind: LeftoverKind,
    /// `null` for a lease.
    snapshotter: Option<String>,
    name: String,
    /// `null` if no label belongs to it.
    label: Option<String>,
    /// `null` if it belongs to no image of the store.
    image: Option<String>,
    state: &'static str,
    /// Empty if there is nothing to say.
    reason: String,
}

pub(super) async fn purge(config: Config, arguments: &Arguments) -> Result<Exit, Failure> {
    if !arguments.dry_run {
        check_none_runs(&config, arguments.force).await?;
    }
    // As the plugin itself: its leases are those of an earlier plugin.
    let node = Node::open(config, Role::Daemon)?;
    let leftovers = match arguments.dry_run {
        true => node.engine.left_behind().await,
        false => node.engine.purge().await,
    };
    node.close().await;
    let leftovers = leftovers?;
    let is_open = |it: &Leftover| matches!(it.fate, Fate::Removable | Fate::Failed(_));
    let exit = match leftovers.iter().any(is_open) {
        true => Exit::NotReady,
        false => Exit::Ready,
    };
    let report = Report {
        leftovers: leftovers.into_iter().map(Row::from).collect(),
    };
    match arguments.output {
        Output::Json => super::print_json(&report)?,
        Output::Table => super::print(&report.text())?,
    }
    Ok(exit)
}

/// Fails while a plugin or an `ensure` runs: it would make anew what is removed, and its work would fail.
async fn check_none_runs(config: &Config, is_forced: bool) -> Result<(), Failure> {
    let list = |pids: Vec<u32>| {
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        pids.join(", ")
    };
    let why = match search(config).await {
        Search::None => return Ok(()),
        Search::Blind if is_forced => return Ok(()),
        Search::Blind => "this process does not see the processes of the node (a pod needs `hostPID: true`), so it \
             cannot look for a running plugin: end the plugin, and use --force"
            .to_owned(),
        Search::Plugins(pids) => format!(
            "the plugin runs on this node (process {}): end it first, by `systemctl disable --now nri-unpack`, by \
             deleting its DaemonSet, or where containerd launches it by `nri-unpack uninstall` and a restart of containerd",
            list(pids)
        ),
        Search::Commands(pids) => format!(
            "`nri-unpack ensure` runs on this node (process {}): wait for its end",
            list(pids)
        ),
    };
    Err(Failure::Other(anyhow::anyhow!(why)))
}

impl From<Leftover> for Row {
    fn from(leftover: Leftover) -> Self {
        Self {
            kind: leftover.kind,
            snapshotter: leftover.snapshotter,
            name: leftover.name,
            label: leftover.label,
            image: leftover.image,
            state: leftover.fate.word(),
            reason: printable(leftover.fate.reason()),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        if self.leftovers.is_empty() {
            return "nothing is left of the plugin".to_owned();
        }
        let rows: Vec<_> = self.leftovers.iter().map(Row::cells).collect();
        let headings = ["KIND", "SNAPSHOTTER", "NAME", "IMAGE", "STATE"];
        format!("{}\n{}", table::table(headings, &rows), self.summary())
    }

    /// Returns the number of leftovers in each state.
    fn summary(&self) -> String {
        let counted = |state: &str| {
            let of_it = self.leftovers.iter().filter(|row| row.state == state);
            match of_it.count() {
                0 => None,
                n => Some(format!("{n} {state}")),
            }
        };
        let counts = ["removable", "removed", "stays", "failed"].map(counted);
        counts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Row {
    fn cells(&self) -> [String; 5] {
        let none = || "-".to_owned();
        let name = match (self.kind, &self.label) {
            (LeftoverKind::Label, Some(label)) => label,
            _ => &self.name,
        };
        let state = match self.reason.as_str() {
            "" => self.state.to_owned(),
            reason => format!("{}: {reason}", self.state),
        };
        [
            self.kind.to_string(),
            self.snapshotter.clone().unwrap_or_else(none),
            name.clone(),
            self.image.clone().unwrap_or_else(none),
            state,
        ]
    }
}
