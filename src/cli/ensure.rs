//! `ensure`: makes images ready in a snapshotter, however long that takes.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::daemon;
use crate::node::Node;
use crate::unpack::{Action, Outcome, Request, Role, State, Want};

use super::scope::{self, Asked, Where};
use super::{Exit, Failure, Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Images to make ready
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    #[command(flatten)]
    place: Where,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What scripts read.
#[derive(Debug, Serialize)]
struct Report {
    results: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    snapshotter: String,
    /// What it is now.
    state: State,
    action: Action,
    layers_done: usize,
    duration_ms: u128,
    /// `null` where all went well.
    error: Option<String>,
}

pub(super) async fn ensure(config: Config, arguments: Arguments) -> Result<Exit, Failure> {
    if !arguments.place.is_given() {
        let say = "name the snapshotter with --snapshotter, or a runtime handler with --handler";
        return Err(Failure::Usage(say.to_owned()));
    }
    let node = Node::open(config, Role::Command)?;
    let snapshotters = arguments.place.snapshotters(&node).await?;
    let asked = scope::images(&node, &arguments.images).await?;
    let work = |stop: tokio_util::sync::CancellationToken| {
        let (node, output) = (&node, arguments.output);
        let (snapshotters, asked) = (&snapshotters, &asked);
        async move {
            let all = async {
                let mut results = Vec::new();
                for snapshotter in snapshotters {
                    results.extend(in_snapshotter(node, asked, snapshotter, output).await?);
                }
                Ok(results)
            };
            tokio::pin!(all);
            tokio::select! {
                results = &mut all => results,
                () = stop.cancelled() => {
                    // Everything under way ends now, and is told so.
                    node.engine.close().await;
                    all.await
                }
            }
        }
    };
    let results: Result<_, Failure> = daemon::until_signal(work)
        .await
        .map_err(anyhow::Error::from)?;
    let results = results?;
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

/// All at the same time, as far as the engine lets them; told in the order of the arguments.
async fn in_snapshotter(
    node: &Node,
    asked: &[Asked],
    snapshotter: &str,
    output: Output,
) -> Result<Vec<Row>, Failure> {
    let started = Instant::now();
    let ticket = |asked: &Asked| {
        node.engine.ensure(Request {
            want: Want::Image(asked.name.clone()),
            snapshotter: snapshotter.to_owned(),
            background: false,
        })
    };
    let tickets: Vec<_> = asked.iter().map(ticket).collect();
    let mut rows = Vec::new();
    for (asked, mut ticket) in asked.iter().zip(tickets) {
        let outcome = ticket.outcome().await;
        let row = row(node, asked, snapshotter, outcome, started).await?;
        if output == Output::Table {
            println!("{}", row.line());
        }
        rows.push(row);
    }
    Ok(rows)
}

async fn row(
    node: &Node,
    asked: &Asked,
    snapshotter: &str,
    outcome: Outcome,
    started: Instant,
) -> Result<Row, Failure> {
    let mut row = Row {
        name: asked.name.clone(),
        snapshotter: snapshotter.to_owned(),
        state: State::Ready,
        action: Action::None,
        layers_done: 0,
        duration_ms: started.elapsed().as_millis(),
        error: None,
    };
    match outcome {
        Ok(done) if done.stand_on.is_some() => {
            row.error = Some("it was unpacked on the host, and is in use: new containers get another chain, and this one is replaced when nothing uses it".to_owned());
            row.state = state_now(node, asked, snapshotter).await;
        }
        Ok(done) => {
            row.action = done.action;
            row.layers_done = done.layers_done;
        }
        Err(e) => {
            row.error = Some(e.to_string());
            row.state = state_now(node, asked, snapshotter).await;
        }
    }
    Ok(row)
}

/// After a failure: what the chain is now.
async fn state_now(node: &Node, asked: &Asked, snapshotter: &str) -> State {
    match &asked.image {
        Ok(image) => match node.engine.look(image, snapshotter).await {
            Ok(look) => look.state,
            Err(_) => State::Unavailable,
        },
        Err(_) => State::Unavailable,
    }
}

impl Row {
    fn line(&self) -> String {
        let Self {
            name,
            snapshotter,
            state,
            action,
            layers_done,
            duration_ms,
            ..
        } = self;
        match (&self.error, action) {
            (Some(error), _) => format!("{name} in {snapshotter}: {state}: {error}"),
            (None, Action::None) => format!("{name} in {snapshotter}: {state}"),
            (None, _) => format!(
                "{name} in {snapshotter}: {state}, {action} ({layers_done} layers, {duration_ms} ms)"
            ),
        }
    }
}
