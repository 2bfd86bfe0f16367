//! Proof of life for systemd's watchdog, which ends a plugin that gives none and starts it again.
//!
//! Alive is a program whose runtime runs tasks and whose locks are free; the daemon's own loop is
//! alive because this is polled beside it. Whether containerd answers is no part of it: a plugin must
//! not be ended because containerd is down.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

/// Gives `proof` as often as systemd asks for it, which is not at all without its watchdog.
///
/// `pass` goes through all that could be held for good.
pub(super) async fn watched<P>(pass: P, proof: impl FnMut())
where
    P: Fn() + Clone + Send + 'static,
{
    match sd_notify::watchdog_enabled() {
        Some(patience) => prove(patience, pass, proof).await,
        None => std::future::pending().await,
    }
}

/// Twice in the time after which systemd loses its patience, as it recommends.
async fn prove<P>(patience: Duration, pass: P, mut proof: impl FnMut())
where
    P: Fn() + Clone + Send + 'static,
{
    // An interval of zero is none.
    let mut ticks = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pass = pass.clone();
        let passed = AbortOnDropHandle::new(tokio::spawn(async move { pass() }));
        if passed.await.is_ok() {
            proof();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};
    use std::thread;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    /// Longer than systemd would wait, on a slow machine too.
    const QUIET: Duration = Duration::from_secs(1);

    /// Proofs of a program with one worker, which `pass` has to go through.
    fn proofs(pass: impl Fn() + Clone + Send + 'static) -> mpsc::Receiver<Instant> {
        let (sender, proofs) = mpsc::channel();
        thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_time().build().unwrap();
            runtime.block_on(prove(PATIENCE, pass, move || {
                // The test may have ended.
                let _ = sender.send(Instant::now());
            }));
        });
        proofs
    }

    /// Until none comes for longer than systemd would wait.
    fn falls_silent(proofs: &mpsc::Receiver<Instant>) -> bool {
        let until = Instant::now() + 20 * QUIET;
        while Instant::now() < until {
            if proofs.recv_timeout(QUIET).is_err() {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_running_program_gives_proofs_in_time() {
        let proofs = proofs(|| {});
        let times: Vec<_> = (0..6)
            .map(|_| proofs.recv_timeout(QUIET).unwrap())
            .collect();
        let took = times[5] - times[0];
        assert!(took >= PATIENCE * 2, "{took:?} is too eager");
    }

    #[test]
    fn a_held_lock_stops_the_proofs() {
        let lock = Arc::new(Mutex::new(()));
        let theirs = lock.clone();
        let proofs = proofs(move || drop(theirs.lock()));
        proofs.recv_timeout(QUIET).unwrap();
        let held = lock.lock().unwrap();
        assert!(falls_silent(&proofs));
        drop(held);
        proofs.recv_timeout(QUIET).unwrap();
    }

    #[test]
    fn blocked_workers_stop_the_proofs() {
        let (block, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let first = Arc::new(Mutex::new(true));
        let proofs = proofs(move || {
            if std::mem::take(&mut *first.lock().unwrap()) {
                let blocked = blocked.clone();
                tokio::spawn(async move {
                    // As a bug would: the only worker waits for something that never comes.
                    let _ = blocked.lock().unwrap().recv();
                });
            }
        });
        assert!(falls_silent(&proofs));
        drop(block);
        proofs.recv_timeout(QUIET).unwrap();
    }
}
