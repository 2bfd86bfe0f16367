//! `ensure`: makes images ready in a snapshotter. It has no time limit.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures::stream::{self, StreamExt};
use serde::Serialize;

use crate::ahead;
use crate::config::Config;
use crate::daemon;
use crate::node::Node;
use crate::printable::printable;
use crate::unpack::{Action, Done, Error, Listing, Outcome, Request, Role, State, Urgency, Want};

use super::bars::Bars;
use super::scope::{self, Asked, Where};
use super::{Exit, Failure, Output, dry_run};

/// The number of images at the same time for each one that the engine unpacks: repairs do not wait for unpacks.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Images to make ready, by name, id, or pattern such as '*/pause:*'
    #[arg(
        value_name = "IMAGE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    images: Vec<String>,
    /// Make all images ready; without --snapshotter or --handler, in the snapshotters of all handlers
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    scope: Where,
    /// Print the steps, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The JSON output.
#[derive(Debug, Serialize)]
struct Report {
    results: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    snapshotter: String,
    /// The present state.
    state: State,
    action: Action,
    layers_done: usize,
    /// The number of lower layers that stay as the host has unpacked them, since something else uses them, or an unpack of
    /// containerd's own ended above them.
    layers_kept: usize,
    duration_ms: u128,
    /// `null` if there was no error.
    error: Option<String>,
}

pub(super) async fn ensure(config: Config, arguments: Arguments) -> Result<Exit, Failure> {
    if !arguments.all && !arguments.scope.is_given() {
        let message =
            "name the snapshotter with --snapshotter, or a runtime handler with --handler";
        return Err(Failure::Usage(message.to_owned()));
    }
    let node = Node::open(config, Role::Command)?;
    let snapshotters = arguments.scope.snapshotters(&node).await?.all()?;
    let asked = scope::images(&node, &arguments.images).await?;
    if arguments.dry_run {
        return dry_run::show(&node, &asked, &snapshotters, arguments.output).await;
    }
    node.in_background(ahead::watch_removals(node.clone()));
    let work = |stop: tokio_util::sync::CancellationToken| {
        let (node, output) = (&node, arguments.output);
        let (snapshotters, asked) = (&snapshotters, &asked);
        async move {
            let all = async {
                // Removes what a killed command has left. A running plugin would do it, but there may be none.
                if let Err(e) = node.engine.sweep().await {
                    log::debug!(error:% = e; "cannot remove what a killed process has left; the command continues");
                }
                let mut results = Vec::new();
                for snapshotter in snapshotters {
                    results.extend(in_snapshotter(node, asked, snapshotter, output).await?);
                }
                Ok::<_, Failure>(results)
            };
            tokio::pin!(all);
            tokio::select! {
                results = &mut all => results,
                () = stop.cancelled() => {
                    // Ends all flights. `all` returns their errors; it goes on meanwhile, since flights may wait for it.
                    let ((), results) = tokio::join!(node.engine.close(), &mut all);
                    results
                }
            }
        }
    };
    let results = daemon::until_signal(work, || ControlFlow::Break(())).await;
    // Ends the flights in order, also after a failure.
    node.engine.close().await;
    let results = results.map_err(anyhow::Error::from)??;
    let all_ready = results.iter().all(|row| row.state == State::Ready);
    if arguments.output == Output::Json {
        super::print_json(&Report { results })?;
    }
    Ok(if all_ready {
        Exit::Ready
    } else {
        Exit::NotReady
    })
}

/// Makes all images ready in one snapshotter, in parallel within the limits of the engine. Prints the results in the
/// order of the arguments.
async fn in_snapshotter(
    node: &Node,
    asked: &[Asked],
    snapshotter: &str,
    output: Output,
) -> Result<Vec<Row>, Failure> {
    let bars = Bars::new();
    let listing = match asked.iter().any(|asked| !asked.by_name) {
        true => Some(node.engine.list(snapshotter).await?),
        false => None,
    };
    let work = asked.iter().map(|asked| {
        let (bars, listing) = (&bars, listing.as_ref());
        async move {
            let started = Instant::now();
            let outcome = match seen(node, asked, snapshotter, listing).await {
                Some(outcome) => outcome,
                None => make_ready(node, asked, snapshotter, bars).await,
            };
            (asked, outcome, started.elapsed())
        }
    });
    let at_once = node.config().unpack.parallel_images.count().get() * AT_ONCE;
    let mut work = pin!(stream::iter(work).buffered(at_once));
    let mut rows = Vec::new();
    while let Some((asked, outcome, took)) = work.next().await {
        let is_not_covered =
            matches!(&outcome, Err(e) if e.is_left_to_containerd() || e.is_of_artifact());
        if is_not_covered && !asked.by_name {
            continue;
        }
        let row = row(node, asked, snapshotter, outcome, took).await?;
        if output == Output::Table {
            bars.aside(|| super::print(&row.line()))?;
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Returns the outcome for an image that is ready in the listing, or that the configuration excludes; `None` if it has to
/// be looked at. An image that an argument names is always looked at.
async fn seen(
    node: &Node,
    asked: &Asked,
    snapshotter: &str,
    listing: Option<&Listing>,
) -> Option<Outcome> {
    let (false, Some(listing), Ok(image)) = (asked.by_name, listing, &asked.image) else {
        return None;
    };
    let status = node.engine.image_status(image, &asked.names, listing);
    let status = status.await.ok()?;
    if status.is_excluded {
        return Some(Err(Arc::new(Error::Excluded {
            image: asked.name.clone(),
            snapshotter: snapshotter.to_owned(),
        })));
    }
    let done = Done {
        image: asked.name.clone(),
        found: status.state,
        action: Action::None,
        layers_done: 0,
        layers_kept: status.layers_kept,
        layers: status.layers,
    };
    (status.state == State::Ready).then_some(Ok(done))
}

async fn make_ready(node: &Node, asked: &Asked, snapshotter: &str, bars: &Bars) -> Outcome {
    let mut ticket = node.engine.ensure(Request {
        want: Want::Image(asked.name.clone()),
        snapshotter: snapshotter.to_owned(),
        urgency: Urgency::Asked,
    });
    bars.follow(&asked.name, &mut ticket).await;
    ticket.outcome().await
}

async fn row(
    node: &Node,
    asked: &Asked,
    snapshotter: &str,
    outcome: Outcome,
    took: Duration,
) -> Result<Row, Failure> {
    let mut row = Row {
        name: asked.name.clone(),
        snapshotter: snapshotter.to_owned(),
        state: State::Ready,
        action: Action::None,
        layers_done: 0,
        layers_kept: 0,
        duration_ms: took.as_millis(),
        error: None,
    };
    match outcome {
        Ok(done) => {
            row.action = done.action;
            row.layers_done = done.layers_done;
            row.layers_kept = done.layers_kept;
        }
        Err(e) => {
            row.state = match (e.unreachable(), e.state()) {
                (Some(source), _) => {
                    // If containerd answers, the snapshotter does not: the error names it.
                    if node.containerd.version().await.is_err() {
                        return Err(source.clone().into());
                    }
                    State::Unavailable
                }
                (None, Some(state)) => state,
                (None, None) => state_now(node, asked, snapshotter).await,
            };
            // An excluded image that is ready is no error.
            let is_no_error = e.is_left_to_containerd() && row.state == State::Ready;
            row.error = (!is_no_error).then(|| printable(&e));
        }
    }
    Ok(row)
}

/// Returns the present state of the chain, for the report of a failure.
async fn state_now(node: &Node, asked: &Asked, snapshotter: &str) -> State {
    let Ok(image) = &asked.image else {
        return State::Unavailable;
    };
    let Ok(listing) = node.engine.list(snapshotter).await else {
        return State::Unavailable;
    };
    match node
        .engine
        .image_status(image, &asked.names, &listing)
        .await
    {
        Ok(status) => status.state,
        Err(_) => State::Unavailable,
    }
}

impl Row {
    fn line(&self) -> String {
        let name = printable(&self.name);
        let Self {
            snapshotter,
            state,
            action,
            layers_done,
            layers_kept,
            duration_ms,
            ..
        } = self;
        let kept = match layers_kept {
            0 => String::new(),
            n => format!("; {n} lower layers stay unchanged, since something else uses them"),
        };
        match (&self.error, action) {
            (Some(error), _) => format!("{name} in {snapshotter}: {state}: {error}"),
            (None, Action::None) => format!("{name} in {snapshotter}: {state}"),
            (None, _) => format!(
                "{name} in {snapshotter}: {state}, {action} ({layers_done} layers, {duration_ms} ms){kept}"
            ),
        }
    }
}
