//! Keeps one worker for each managed snapshotter.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::containerd::Error;
use crate::panics;
use crate::retry;

use super::eager::{self, ManagedSnapshotter};
use super::job::Job;
use super::worker::{MAX_JOBS, Worker};
use super::{Ahead, lost, schedule, work};

/// The longest pause before the snapshotters are listed again while containerd does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts and ends workers, and passes requests for a reconcile on to all of them. Runs until it is dropped; the
/// workers end with it.
pub(super) async fn run(ahead: Arc<Ahead>) {
    let all = CancellationToken::new();
    let _ends = all.clone().drop_guard();
    // It begins again after a panic, which has ended its workers.
    if ahead.workers.send_replace(None).is_some() {
        ahead.queue.reconcile();
    }
    let mut pauses = retry::pauses_up_to(LONGEST_PAUSE);
    let mut again = None;
    let mut is_reloaded = false;
    loop {
        is_reloaded |= wanted(&ahead, again.take()).await;
        match panics::contain(managed(&ahead)).await {
            Some(Ok(managed)) => {
                keep(&ahead, managed, std::mem::take(&mut is_reloaded), &all);
                pauses = retry::pauses_up_to(LONGEST_PAUSE);
            }
            Some(Err(e)) => {
                log::debug!(error:% = e; "snapshotters could not be listed: trying again");
                again = pauses.next();
            }
            None => again = pauses.next(),
        }
    }
}

/// Waits until a reconcile is requested, or until a pause has passed. Returns whether another configuration is in force.
async fn wanted(ahead: &Ahead, pause: Option<Duration>) -> bool {
    let paused = async {
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ahead.node.reloaded() => true,
        () = ahead.queue.reconcile_requested() => false,
        () = ahead.node.free_space.recovered() => false,
        () = paused => false,
    }
}

async fn managed(ahead: &Ahead) -> Result<Vec<ManagedSnapshotter>, Error> {
    let handlers = ahead.node.known_handlers().await;
    let listed = ahead.node.containerd.snapshotters().await?;
    Ok(eager::managed(&ahead.node.config(), &handlers, &listed))
}

/// Keeps the workers of these snapshotters, starts the missing ones and ends the others. The kept ones run a
/// reconcile, or start theirs again with another configuration; the new ones begin with one.
fn keep(
    ahead: &Arc<Ahead>,
    managed: Vec<ManagedSnapshotter>,
    is_reloaded: bool,
    all: &CancellationToken,
) {
    let before = ahead.workers.borrow().clone().unwrap_or_default();
    let (mut before, gone): (Vec<_>, Vec<_>) = before
        .into_iter()
        .partition(|worker| managed.contains(&worker.snapshotter));
    // First: a new one may have the same name.
    gone.iter().for_each(|worker| worker.stop());
    let worker = |snapshotter: ManagedSnapshotter| {
        let same = |worker: &Arc<Worker>| worker.snapshotter == snapshotter;
        match before.iter().position(same) {
            Some(i) => {
                let kept = before.swap_remove(i);
                let request = if is_reloaded {
                    &kept.restart
                } else {
                    &kept.reconcile
                };
                request.notify_one();
                kept
            }
            None => start(ahead, snapshotter, all.child_token()),
        }
    };
    let workers: Vec<_> = managed.into_iter().map(worker).collect();
    ahead.workers.send_replace(Some(workers));
}

/// Starts the worker of a snapshotter. Its work ends with the worker, or with the session.
fn start(
    ahead: &Arc<Ahead>,
    snapshotter: ManagedSnapshotter,
    stop: CancellationToken,
) -> Arc<Worker> {
    let (worker, [jobs, asked]) = Worker::new(snapshotter, stop);
    let worker = Arc::new(worker);
    let (ahead, it) = (ahead.clone(), worker.clone());
    ahead.node.clone().in_session(async move {
        let work = async {
            tokio::join!(
                run_jobs(&ahead, &it, jobs),
                run_jobs(&ahead, &it, asked),
                panics::begin_again(|| lost::run(&ahead, &it)),
                panics::begin_again(|| run_retries(&it)),
                panics::begin_again(|| schedule::run(&ahead, &it))
            );
        };
        it.until_end(work).await;
    });
    worker
}

/// Does the jobs of one part of a worker's queue.
async fn run_jobs(ahead: &Ahead, worker: &Worker, jobs: mpsc::Receiver<Job>) {
    let next = |mut jobs: mpsc::Receiver<Job>| async move {
        let job = jobs.recv().await?;
        ahead.count_queued();
        Some((job, jobs))
    };
    let jobs = stream::unfold(jobs, next);
    let work = jobs.for_each_concurrent(MAX_JOBS, |job| async move {
        if panics::contain(work::run(ahead, worker, job))
            .await
            .is_none()
        {
            // It finds the image.
            worker.reconcile_later.notify_one();
        }
    });
    work.await;
}

/// Has each image tried again that could not be made ready.
async fn run_retries(worker: &Worker) {
    loop {
        for image in worker.retries.due().await {
            worker.push(Job::Again(image));
        }
    }
}
