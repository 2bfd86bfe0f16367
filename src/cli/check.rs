//! `check`: how images stand in the snapshotters. Changes nothing.

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::node::Node;
use crate::unpack::{Error, Listing, Look, Role, State};

use super::scope::{self, Asked, Meant, Where};
use super::table::table;
use super::{Exit, Failure, Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Images to look at [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    place: Where,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What scripts read: one row for each image and snapshotter.
#[derive(Debug, Serialize)]
struct Report {
    images: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// `None` where the image cannot be read.
    manifest: Option<String>,
    snapshotter: String,
    state: State,
    layers: usize,
    ready_layers: usize,
    /// Why it is not ready; empty when it is.
    reason: String,
}

pub(super) async fn check(config: Config, arguments: Arguments) -> Result<Exit, Failure> {
    let node = Node::open(config, Role::Command)?;
    let Meant { usable, unusable } = arguments.place.snapshotters(&node).await?;
    let asked = scope::images(&node, &arguments.images).await?;
    let nothing_meant = usable.is_empty() && unusable.is_empty();
    unusable.iter().for_each(super::complain);
    let (listings, silent) = listings(&node, &usable).await?;
    let mut images = Vec::new();
    for asked in &asked {
        for (snapshotter, listing) in &listings {
            images.extend(row(&node, asked, snapshotter, listing).await?);
        }
    }
    let all_seen = unusable.is_empty() && !silent;
    let all_ready = images.iter().all(|row| row.state == State::Ready);
    let report = Report { images };
    match arguments.output {
        Output::Json => super::print_json(&report)?,
        Output::Table if nothing_meant => {
            super::print(
                "no runtime handler uses a snapshotter of its own; name one with --snapshotter",
            )?;
        }
        Output::Table => super::print(&report.table())?,
    }
    Ok(if all_ready && all_seen {
        Exit::Ready
    } else {
        Exit::NotReady
    })
}

/// What each snapshotter has, and whether one did not answer: that one is named.
async fn listings<'a>(
    node: &Node,
    snapshotters: &'a [String],
) -> Result<(Vec<(&'a str, Listing)>, bool), Failure> {
    let mut listings = Vec::new();
    for snapshotter in snapshotters {
        match node.engine.list(snapshotter).await {
            Ok(listing) => listings.push((snapshotter.as_str(), listing)),
            Err(source) => {
                // Whose silence it is: containerd passes its snapshotters' on as its own.
                node.containerd.version().await?;
                super::complain(&format!(
                    "snapshotter {snapshotter} does not answer: {source}; is its daemon running?"
                ));
            }
        }
    }
    let silent = listings.len() < snapshotters.len();
    Ok((listings, silent))
}

/// `None` for one of all images that the configuration leaves to containerd.
async fn row(
    node: &Node,
    asked: &Asked,
    snapshotter: &str,
    listing: &Listing,
) -> Result<Option<Row>, Failure> {
    let look = match &asked.image {
        Ok(image) => node.engine.look(image, &asked.names, listing).await,
        Err(e) => Err(Error::Image(e.clone())),
    };
    let name = asked.name.clone();
    let snapshotter = snapshotter.to_owned();
    match look {
        Ok(look) if look.left_out && !asked.by_name => Ok(None),
        Ok(look) => Ok(Some(Row {
            name,
            snapshotter,
            reason: reason(&look),
            manifest: Some(look.manifest),
            state: look.state,
            layers: look.layers,
            ready_layers: look.ready_layers,
        })),
        Err(e) if e.unreachable().is_some() => Err(e.into()),
        Err(e) => Ok(Some(Row {
            name,
            manifest: None,
            snapshotter,
            state: State::Unavailable,
            layers: 0,
            ready_layers: 0,
            reason: e.to_string(),
        })),
    }
}

fn reason(look: &Look) -> String {
    let Look {
        layers,
        committed,
        ready_layers,
        ..
    } = look;
    match look.state {
        State::Ready => String::new(),
        _ if look.left_out => "left to containerd by the configuration".to_owned(),
        State::Missing => "not unpacked here".to_owned(),
        State::Partial => format!("{committed} of {layers} layers unpacked"),
        State::Unlabelled => format!("{} of {layers} layers lack labels", layers - ready_layers),
        State::Mixed => "a host's unpack lies over layers left to the guest".to_owned(),
        State::Foreign => "the top layer's labels name an image that goes on above it".to_owned(),
        State::Unanchored => "nothing keeps it from garbage collection".to_owned(),
        State::Unavailable => "the blob of a layer that has to be unpacked is gone".to_owned(),
    }
}

impl Report {
    fn table(&self) -> String {
        let row = |row: &Row| {
            [
                row.name.clone(),
                row.snapshotter.clone(),
                row.state.to_string(),
                format!("{}/{}", row.ready_layers, row.layers),
                row.reason.clone(),
            ]
        };
        let rows: Vec<_> = self.images.iter().map(row).collect();
        table(["IMAGE", "SNAPSHOTTER", "STATE", "LAYERS", "REASON"], &rows)
    }
}
