//! `check`: how images stand in the snapshotters. Changes nothing.

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::containerd;
use crate::node::Node;
use crate::unpack::{Error, Look, Role, State};

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
    let (images, silent) = rows(&node, &asked, usable).await?;
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

/// A row for each image and snapshotter, and whether a snapshotter did not answer: it is named, and
/// not asked again.
async fn rows(
    node: &Node,
    asked: &[Asked],
    mut snapshotters: Vec<String>,
) -> Result<(Vec<Row>, bool), Failure> {
    let (mut rows, all) = (Vec::new(), snapshotters.len());
    for asked in asked {
        let mut answering = Vec::new();
        for snapshotter in snapshotters {
            match row(node, asked, &snapshotter).await? {
                Seen::Row(row) => rows.push(row),
                Seen::LeftOut => {}
                Seen::NoAnswer(source) => {
                    // Whose silence it is: containerd passes its snapshotters' on as its own.
                    node.containerd.version().await?;
                    super::complain(&format!(
                        "snapshotter {snapshotter} does not answer: {source}; is its daemon running?"
                    ));
                    continue;
                }
            }
            answering.push(snapshotter);
        }
        snapshotters = answering;
    }
    Ok((rows, snapshotters.len() < all))
}

/// What there is to say of an image in a snapshotter.
enum Seen {
    Row(Row),
    /// It is one of all images, and the configuration leaves it to containerd.
    LeftOut,
    /// The snapshotter could not be asked.
    NoAnswer(containerd::Error),
}

async fn row(node: &Node, asked: &Asked, snapshotter: &str) -> Result<Seen, Failure> {
    let look = match &asked.image {
        Ok(image) => node.engine.look(image, &asked.names, snapshotter).await,
        Err(e) => Err(Error::Image(e.clone())),
    };
    let name = asked.name.clone();
    let snapshotter = snapshotter.to_owned();
    match look {
        Ok(look) if look.left_out && !asked.by_name => Ok(Seen::LeftOut),
        Ok(look) => Ok(Seen::Row(Row {
            name,
            snapshotter,
            reason: reason(&look),
            manifest: Some(look.manifest),
            state: look.state,
            layers: look.layers,
            ready_layers: look.ready_layers,
        })),
        // Not every call of containerd says in its code that nobody answered.
        Err(Error::Containerd { source, .. }) if !source.is_not_found() => {
            Ok(Seen::NoAnswer(source))
        }
        Err(e) if e.unreachable().is_some() => Err(e.into()),
        Err(e) => Ok(Seen::Row(Row {
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
        State::Unavailable => "cannot be read".to_owned(),
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
