//! Notifications for systemd's watchdog, which restarts the plugin if they stop.
//!
//! The plugin is alive if the tokio runtime runs tasks and no lock is held for good. The daemon's loop is polled
//! together with this one, so it is alive, too. Whether containerd answers does not count: the plugin must not be
//! restarted because containerd is down.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

/// Calls `notify` as often as systemd requires while the program is alive; never without systemd's watchdog.
///
/// `probe` takes each lock that could be held for good.
pub(super) async fn notify_while_alive<P>(probe: P, notify: impl FnMut())
where
    P: Fn() + Clone + Send + 'static,
{
    match sd_notify::watchdog_enabled() {
        Some(timeout) => notify_within(timeout, probe, notify).await,
        None => std::future::pending().await,
    }
}

/// Calls `notify` twice within systemd's timeout, as systemd recommends.
async fn notify_within<P>(timeout: Duration, probe: P, mut notify: impl FnMut())
where
    P: Fn() + Clone + Send + 'static,
{
    // `interval` panics with zero.
    let mut ticks = tokio::time::interval((timeout / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let probe = probe.clone();
        let probed = AbortOnDropHandle::new(tokio::spawn(async move { probe() }));
        if probed.await.is_ok() {
            notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};
    use std::thread;
    use std::time::Instant;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);

    /// Longer than the timeout, also on a slow machine.
    const SILENCE: Duration = Duration::from_secs(1);

    /// Returns the notifications of a program with one worker thread.
    fn notifications(probe: impl Fn() + Clone + Send + 'static) -> mpsc::Receiver<Instant> {
        let (sender, notifications) = mpsc::channel();
        thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_time().build().unwrap();
            runtime.block_on(notify_within(TIMEOUT, probe, move || {
                // The test may have ended.
                let _ = sender.send(Instant::now());
            }));
        });
        notifications
    }

    /// Whether the notifications stop for longer than the timeout.
    fn stop_coming(notifications: &mpsc::Receiver<Instant>) -> bool {
        let until = Instant::now() + 20 * SILENCE;
        while Instant::now() < until {
            if notifications.recv_timeout(SILENCE).is_err() {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_running_program_notifies_in_time() {
        let notifications = notifications(|| {});
        let times: Vec<_> = (0..6)
            .map(|_| notifications.recv_timeout(SILENCE).unwrap())
            .collect();
        let took = times[5] - times[0];
        assert!(took >= TIMEOUT * 2, "{took:?} is too often");
    }

    #[test]
    fn a_held_lock_stops_the_notifications() {
        let lock = Arc::new(Mutex::new(()));
        let probed = lock.clone();
        let notifications = notifications(move || drop(probed.lock()));
        notifications.recv_timeout(SILENCE).unwrap();
        let held = lock.lock().unwrap();
        assert!(stop_coming(&notifications));
        drop(held);
        notifications.recv_timeout(SILENCE).unwrap();
    }

    #[test]
    fn blocked_workers_stop_the_notifications() {
        let (block, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let first = Arc::new(Mutex::new(true));
        let notifications = notifications(move || {
            if std::mem::take(&mut *first.lock().unwrap()) {
                let blocked = blocked.clone();
                tokio::spawn(async move {
                    // Blocks the only worker, as a bug could.
                    let _ = blocked.lock().unwrap().recv();
                });
            }
        });
        assert!(stop_coming(&notifications));
        drop(block);
        notifications.recv_timeout(SILENCE).unwrap();
    }
}
