//! The report of `check`: one row for each image and snapshotter, as a table or as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::short;
use crate::cli::style::{self, Style};
use crate::cli::table::Layout;
use crate::unpack::{ImageStatus, State};

/// The JSON output: one row for each image and snapshotter.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) images: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    /// `None` if the image cannot be read.
    pub(super) manifest: Option<String>,
    pub(super) snapshotter: String,
    pub(super) state: State,
    pub(super) layers: usize,
    pub(super) ready_layers: usize,
    /// Why the plugin makes it ready ahead; `None` if it does not.
    pub(super) ahead: Option<&'static str>,
    /// Why it is not ready; empty if it is ready.
    pub(super) reason: String,
}

pub(super) fn reason(status: &ImageStatus) -> String {
    let ImageStatus {
        layers,
        committed,
        ready_layers,
        ..
    } = status;
    match status.state {
        State::Ready => String::new(),
        _ if status.is_excluded => "excluded by the configuration".to_owned(),
        State::Missing => "not unpacked here".to_owned(),
        State::Partial => format!("{committed} of {layers} layers unpacked"),
        State::Unlabelled => format!("{} of {layers} layers lack labels", layers - ready_layers),
        State::Mixed => "layers that the host has unpacked lie over guest-pulled layers".to_owned(),
        State::Foreign => {
            "labels name another image, or a registry that this image is not from".to_owned()
        }
        State::Unanchored => "complete, but not protected from garbage collection".to_owned(),
        State::Lost => "containerd has records of layers that the snapshotter has lost".to_owned(),
        State::Unavailable => "the blob of a layer that has to be unpacked is gone".to_owned(),
    }
}

impl Report {
    pub(super) fn of_states(mut self, states: &[State]) -> Self {
        if !states.is_empty() {
            self.images.retain(|row| states.contains(&row.state));
        }
        self
    }

    /// Returns the table. Unless `whole`, names are short and lines are cut at the width of the terminal.
    pub(super) fn table(&self, whole: bool) -> String {
        let headings = ["IMAGE", "SNAPSHOTTER", "STATE", "LAYERS", "REASON"];
        let cells = |row: &Row| {
            let name = match whole {
                true => row.name.clone(),
                false => short::name(&row.name),
            };
            let Row {
                snapshotter,
                state,
                reason,
                ..
            } = row;
            [
                name,
                snapshotter.clone(),
                state.to_string(),
                row.count(),
                reason.clone(),
            ]
        };
        let width = match whole {
            true => None,
            false => style::width(),
        };
        self.lay_out(&headings, width, cells)
    }

    /// Returns the table with full names and manifest digests.
    pub(super) fn wide(&self) -> String {
        let headings = [
            "IMAGE",
            "SNAPSHOTTER",
            "STATE",
            "LAYERS",
            "AHEAD",
            "MANIFEST",
            "REASON",
        ];
        let cells = |row: &Row| {
            let Row {
                name,
                snapshotter,
                state,
                manifest,
                reason,
                ..
            } = row;
            let manifest = manifest.clone().unwrap_or_else(|| "-".to_owned());
            [
                name.clone(),
                snapshotter.clone(),
                state.to_string(),
                row.count(),
                row.ahead.unwrap_or("-").to_owned(),
                manifest,
                reason.clone(),
            ]
        };
        self.lay_out(&headings, None, cells)
    }

    fn lay_out<const N: usize>(
        &self,
        headings: &[&str; N],
        width: Option<usize>,
        cells: impl Fn(&Row) -> [String; N],
    ) -> String {
        if self.images.is_empty() {
            return String::new();
        }
        /// The index of the column STATE.
        const STATE: usize = 2;
        let paint = |column: usize, cell: &str| {
            let state = super::state(cell).ok().filter(|_| column == STATE)?;
            Some(style::painted(colour(state), cell))
        };
        let layout = Layout {
            width,
            paint: &paint,
        };
        let headings = headings.map(str::to_owned);
        let rows: Vec<_> = self.images.iter().map(|row| cells(row).to_vec()).collect();
        format!("{}\n", layout.table(&headings, &rows))
    }

    /// Returns a line for each snapshotter, such as «12 images, 3 not ready in nydus: 2 unlabelled, 1 missing».
    pub(super) fn summary(&self) -> String {
        let mut by_snapshotter: BTreeMap<&str, (usize, BTreeMap<State, usize>)> = BTreeMap::new();
        for row in &self.images {
            let (images, unready) = by_snapshotter.entry(&row.snapshotter).or_default();
            *images += 1;
            if row.state != State::Ready {
                *unready.entry(row.state).or_default() += 1;
            }
        }
        let lines = by_snapshotter
            .iter()
            .map(|(snapshotter, (images, unready))| {
                let all = match images {
                    1 => "1 image".to_owned(),
                    n => format!("{n} images"),
                };
                let counts = unready.iter();
                let counts: Vec<_> = counts
                    .map(|(state, count)| format!("{count} {state}"))
                    .collect();
                match unready.values().sum() {
                    0 => format!("{all}, all ready in {snapshotter}"),
                    n => format!(
                        "{all}, {n} not ready in {snapshotter}: {}",
                        counts.join(", ")
                    ),
                }
            });
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Row {
    fn count(&self) -> String {
        format!("{}/{}", self.ready_layers, self.layers)
    }
}

fn colour(state: State) -> Style {
    match state {
        State::Ready => Style::Good,
        State::Missing | State::Partial | State::Unanchored => Style::Attention,
        State::Unlabelled | State::Foreign => Style::Attention,
        State::Mixed | State::Lost | State::Unavailable => Style::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, snapshotter: &str, state: State) -> Row {
        Row {
            name: name.to_owned(),
            manifest: None,
            snapshotter: snapshotter.to_owned(),
            state,
            layers: 2,
            ready_layers: 1,
            ahead: None,
            reason: String::new(),
        }
    }

    #[test]
    fn a_summary_counts_what_is_not_ready() {
        let report = Report {
            images: vec![
                row("a:1", "nydus", State::Missing),
                row("b:1", "nydus", State::Unlabelled),
                row("c:1", "nydus", State::Unlabelled),
                row("d:1", "nydus", State::Ready),
                row("d:1", "erofs", State::Ready),
            ],
        };
        assert_eq!(
            report.summary(),
            "1 image, all ready in erofs\n\
             4 images, 3 not ready in nydus: 1 missing, 2 unlabelled"
        );
        let shown = report.of_states(&[State::Missing, State::Ready]);
        assert_eq!(shown.images.len(), 3);
    }
}
