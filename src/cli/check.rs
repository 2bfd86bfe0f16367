//! `check`: shows the state of images in snapshotters. It changes nothing.

mod report;

use std::io::IsTerminal;

use clap::{Args, ValueEnum};

use crate::ahead::{Explainer, MAX_SNAPSHOTS};
use crate::config::Config;
use crate::node::Node;
use crate::printable::printable;
use crate::unpack::{Error, Listing, Role, State};

use super::scope::{self, Asked, Meant, Where};
use super::{Exit, Failure};
use report::{Report, Row, reason};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Images to check, by name, id, or pattern such as '*/pause:*' [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    scope: Where,
    /// Show only images in one of these states, comma-separated; only these count for the exit status
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<State>,
    /// Show names and reasons in full
    #[arg(long)]
    no_trunc: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table with short names.
    #[default]
    #[value(alias = "text")]
    Table,
    /// A table with full names and manifest digests.
    Wide,
    /// JSON, for scripts.
    Json,
}

/// Parses a state from its word.
fn state(word: &str) -> Result<State, String> {
    let all = State::ALL;
    let found = all.into_iter().find(|state| state.to_string() == word);
    found.ok_or_else(|| {
        let words: Vec<_> = all.iter().map(ToString::to_string).collect();
        format!("not a state: write one of {}", words.join(", "))
    })
}

pub(super) async fn check(config: Config, arguments: Arguments) -> Result<Exit, Failure> {
    let node = Node::open(config, Role::Command)?;
    let Meant { usable, unusable } = arguments.scope.snapshotters(&node).await?;
    let asked = scope::images(&node, &arguments.images).await?;
    let nothing_meant = usable.is_empty() && unusable.is_empty();
    let readable = asked.iter().filter_map(|asked| asked.image.as_ref().ok());
    let manifests = node.engine.read_manifests(readable);
    let (listed, ()) = futures::join!(listings(&node, &usable), manifests);
    let (listings, silent) = listed?;
    let explainer = Explainer::new(&node).await;
    let explainer = explainer.inspect_err(|e| {
        log::debug!(error:% = e; "handlers could not be read: the output does not say what is made ready ahead");
    });
    let mut explained = Vec::new();
    for (snapshotter, listing) in &listings {
        let explanations = match &explainer {
            Ok(explainer) => Some(explainer.of(listing).await),
            Err(_) => None,
        };
        explained.push((*snapshotter, listing, explanations));
    }
    let mut images = Vec::new();
    for asked in &asked {
        for (snapshotter, listing, explanations) in &explained {
            let row = row(&node, asked, snapshotter, listing).await?;
            let why = || explanations.as_ref()?.why(asked.image.as_ref().ok()?);
            images.extend(row.map(|row| Row {
                ahead: why(),
                ..row
            }));
        }
    }
    let all_seen = unusable.is_empty() && silent.is_empty();
    let report = Report { images };
    let summary = report.summary();
    let report = report.of_states(&arguments.state);
    let all_ready = report.images.iter().all(|row| row.state == State::Ready);
    match arguments.output {
        Format::Json => super::print_json(&report)?,
        Format::Table | Format::Wide if nothing_meant => {
            let message =
                "no runtime handler uses a snapshotter of its own; name one with --snapshotter";
            super::print(message)?;
        }
        Format::Table => {
            // A program that reads a pipe needs full names.
            let whole = arguments.no_trunc || !std::io::stdout().is_terminal();
            let table = report.table(whole);
            super::print(&format!("{table}{summary}"))?;
        }
        Format::Wide => super::print(&format!("{}{summary}", report.wide()))?,
    }
    unusable.iter().for_each(super::complain);
    silent.iter().for_each(super::complain);
    let full = listings.iter();
    let full = full.filter_map(|(snapshotter, listing)| full_enough(snapshotter, listing.len()));
    full.for_each(|remark| super::complain(&remark));
    Ok(if all_ready && all_seen {
        Exit::Ready
    } else {
        Exit::NotReady
    })
}

/// Returns a remark for a snapshotter with too many snapshots, in which eager images may be missing.
fn full_enough(snapshotter: &str, snapshots: usize) -> Option<String> {
    (snapshots >= MAX_SNAPSHOTS).then(|| {
        format!(
            "snapshotter {snapshotter} holds {snapshots} snapshots (limit {MAX_SNAPSHOTS}), and the cost of \
             further ones grows: only pinned images are unpacked ahead, others when a pod needs them"
        )
    })
}

/// Returns the listing of each snapshotter, and a message for each one that does not answer.
async fn listings<'a>(
    node: &Node,
    snapshotters: &'a [String],
) -> Result<(Vec<(&'a str, Listing)>, Vec<String>), Failure> {
    let mut lists = node.engine.lists();
    let (mut listings, mut silent) = (Vec::new(), Vec::new());
    for snapshotter in snapshotters {
        match lists.read(snapshotter).await {
            Ok(listing) => listings.push((snapshotter.as_str(), listing)),
            Err(source) => {
                // containerd returns a snapshotter's error as its own. If containerd does not answer either,
                // the error is about containerd.
                node.containerd.version().await?;
                silent.push(format!(
                    "snapshotter {snapshotter} does not answer: {source}; is its daemon running?"
                ));
            }
        }
    }
    Ok((listings, silent))
}

/// Returns the row of an image. `None` for an image that was not named and is excluded or not a container image.
async fn row(
    node: &Node,
    asked: &Asked,
    snapshotter: &str,
    listing: &Listing,
) -> Result<Option<Row>, Failure> {
    let status = match &asked.image {
        Ok(image) => node.engine.image_status(image, &asked.names, listing).await,
        Err(e) => Err(Error::Image(e.clone())),
    };
    let name = asked.name.clone();
    let snapshotter = snapshotter.to_owned();
    match status {
        Ok(status) if status.is_excluded && !asked.by_name => Ok(None),
        Ok(status) => Ok(Some(Row {
            name,
            snapshotter,
            reason: reason(&status),
            manifest: Some(status.manifest),
            state: status.state,
            layers: status.layers,
            ready_layers: status.ready_layers,
            ahead: None,
        })),
        Err(e) if e.is_of_artifact() && !asked.by_name => Ok(None),
        Err(e) if e.unreachable().is_some() => Err(e.into()),
        Err(e) => Ok(Some(Row {
            name,
            manifest: None,
            snapshotter,
            state: State::Unavailable,
            layers: 0,
            ready_layers: 0,
            ahead: None,
            reason: printable(&e),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_parsed_from_its_word() {
        for each in State::ALL {
            assert_eq!(state(&each.to_string()), Ok(each));
        }
        assert!(state("bad").unwrap_err().contains("unlabelled"));
    }

    #[test]
    fn a_remark_explains_the_limit_of_snapshots() {
        assert_eq!(full_enough("nydus", MAX_SNAPSHOTS - 1), None);
        let remark = full_enough("nydus", MAX_SNAPSHOTS + 7).unwrap();
        assert!(remark.contains("nydus holds 2007 snapshots"), "{remark}");
    }
}
