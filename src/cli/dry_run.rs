//! `ensure --dry-run`: prints the plan that `ensure` would follow.

use serde::Serialize;

use crate::node::Node;
use crate::printable::printable;
use crate::unpack::{Planned, State, StepKind};

use super::scope::Asked;
use super::{Exit, Failure, Output};

/// The JSON output.
#[derive(Debug, Serialize)]
struct Report {
    plans: Vec<Plan>,
}

#[derive(Debug, Serialize)]
struct Plan {
    name: String,
    snapshotter: String,
    /// The present state.
    state: State,
    steps: Vec<Planned>,
    /// `null` if the image can be read.
    error: Option<String>,
}

/// Prints the plan of each image in each snapshotter. If all images are ready, nothing has to be done.
pub(super) async fn show(
    node: &Node,
    asked: &[Asked],
    snapshotters: &[String],
    output: Output,
) -> Result<Exit, Failure> {
    let mut plans = Vec::new();
    for snapshotter in snapshotters {
        let listing = node.engine.list(snapshotter).await?;
        for asked in asked {
            let planned = async {
                let image = asked.image.clone()?;
                let status = node
                    .engine
                    .image_status(&image, &asked.names, &listing)
                    .await?;
                let steps = node.engine.planned(&image, &asked.names, &listing).await?;
                Ok::<_, crate::unpack::Error>((status, steps))
            };
            let (state, steps, error) = match planned.await {
                Ok((status, _)) if status.is_excluded && !asked.by_name => continue,
                Ok((status, steps)) => (status.state, steps, None),
                Err(e) if e.is_of_artifact() && !asked.by_name => continue,
                Err(e) if e.unreachable().is_some() => return Err(e.into()),
                Err(e) => (State::Unavailable, vec![], Some(printable(&e))),
            };
            plans.push(Plan {
                name: asked.name.clone(),
                snapshotter: snapshotter.clone(),
                state,
                steps,
                error,
            });
        }
    }
    let all_ready = plans.iter().all(|plan| plan.state == State::Ready);
    match output {
        Output::Json => super::print_json(&Report { plans })?,
        Output::Table => {
            for plan in &plans {
                super::print(&plan.text())?;
            }
        }
    }
    Ok(match all_ready {
        true => Exit::Ready,
        false => Exit::NotReady,
    })
}

impl Plan {
    fn text(&self) -> String {
        let name = printable(&self.name);
        let Self {
            snapshotter,
            state,
            steps,
            error,
            ..
        } = self;
        let mut text = format!("{name} in {snapshotter}: {state}");
        if let Some(error) = error {
            text += &format!(": {error}");
        }
        for (i, step) in steps.iter().enumerate() {
            text += &format!("\n  {}. {}", i + 1, spelled(step));
        }
        text
    }
}

fn spelled(step: &Planned) -> String {
    let layer = || {
        let size = indicatif::HumanBytes(step.size.unwrap_or_default());
        let digest = printable(step.digest.as_deref().unwrap_or_default());
        format!(
            "layer {} ({digest}, {size})",
            step.layer.unwrap_or_default()
        )
    };
    match step.step {
        StepKind::Relabel => format!("put the labels on {}", layer()),
        StepKind::Unpack => format!("unpack {} with its labels", layer()),
        StepKind::Replace => "remove the chain, from the top down to the first layer that something else uses, and unpack it again".to_owned(),
        StepKind::Remove => "remove the records of the layers that the snapshotter has lost".to_owned(),
        StepKind::Anchor => "keep the chain from garbage collection, by a label on the config blob".to_owned(),
    }
}
