//! Images that a container mounts as volumes. With guest pull such a volume is empty on the host, and is filled before
//! the container is created.

use nri::HandlerResult;
use tokio::time::Instant;

use crate::ahead::image_volume;
use crate::policy::Doubt;
use crate::unpack::{Action, Outcome, Ticket, Urgency, Want, found};

use super::Session;
use super::creation::Creation;
use super::decision::{Did, Verdict};

/// Fills the volumes of a container, and may reject it if one lacks layers. On a snapshotter without guest pull, makes
/// their images ready for later pods, in the background.
pub(super) async fn judge(
    session: &Session,
    creation: &Creation<'_>,
    deadline: Instant,
) -> HandlerResult {
    let snapshotter = creation.snapshotter;
    let mounts = creation.container.mounts.iter();
    let volumes = mounts.filter_map(|mount| image_volume(&mount.source));
    if !session.node.engine.profile(snapshotter).may_proxy {
        for volume in volumes {
            session.ahead.volume(snapshotter, volume.target);
        }
        return Ok(());
    }
    // All requests are sent before the first is waited for.
    let tickets: Vec<_> = volumes
        .map(|volume| {
            let want = Want::Volume {
                path: volume.path,
                image: volume.target.clone(),
            };
            (
                volume.target,
                session.ensure(want, snapshotter, Urgency::Creation),
            )
        })
        .collect();
    for (image, mut ticket) in tickets {
        let outcome = ticket.outcome_by(deadline).await;
        judge_one(creation, &image, &ticket, outcome)?;
    }
    Ok(())
}

fn judge_one(
    creation: &Creation<'_>,
    image: &str,
    ticket: &Ticket,
    outcome: Option<Outcome>,
) -> HandlerResult {
    let state = found(ticket, &outcome);
    let why = match outcome {
        Some(Ok(done)) if done.action == Action::None => return Ok(()),
        Some(Ok(done)) => {
            let why = format!(
                "volume of image {}: {} guest-pulled layers applied into it",
                done.image, done.layers_done
            );
            creation.note(Verdict::Filled, state, Did::Filled, &why);
            return Ok(());
        }
        // containerd has unpacked the whole image.
        Some(Err(e)) if e.is_left_to_containerd() => return Ok(()),
        Some(Err(e)) if e.unreachable().is_some() => {
            let why = format!("volume of image {image} could not be looked up: {e}");
            return creation.doubted(Doubt::Unseen, state, &why);
        }
        Some(Err(e)) => format!("volume of image {image} may lack layers: {e}"),
        None => {
            let progress = ticket.progress();
            format!(
                "volume of image {image}: {} of {} layers are applied into it; the work goes on",
                progress.ready_layers, progress.layers
            )
        }
    };
    creation.doubted(Doubt::Volume, state, &why)
}
