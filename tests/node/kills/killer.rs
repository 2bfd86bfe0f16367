//! The kills of a round: it makes them, and knows which failures of pods they explain.

use std::time::Duration;

use anyhow::Result;
use lab::{Lab, Log, Plugin, Remote};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{BETWEEN, Counts, MOMENTS, Victim};
use crate::guest_pull::NYDUS;
use crate::pods::restart_nydus;
use crate::random::Random;

/// The log message of a plugin whose hooks are called.
const REGISTERED: &str = "nri_unpack::hooks] registered ";

/// A plugin that registered just before containerd was killed logs it in this time.
const LOGS: Duration = Duration::from_millis(20);

/// containerd reconnects to a killed snapshotter only after a pause, and the tests to a killed containerd.
const RECONNECTS: Duration = Duration::from_secs(5);

/// A process that was killed.
struct Kill {
    victim: Victim,
    /// When it was ready again.
    back: Option<Instant>,
    /// What the plugin has logged since.
    log: Log,
}

/// The kills of a round.
pub(crate) struct Kills {
    /// The plugin's log.
    log: Log,
    made: Mutex<Vec<Kill>>,
    are_over: Mutex<bool>,
}

/// The beginning of a try to create a pod.
pub(crate) struct Try {
    began: Instant,
    kills: usize,
    is_served: bool,
}

impl Kills {
    /// Nothing was killed yet.
    pub(crate) fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            made: Mutex::default(),
            are_over: Mutex::default(),
        }
    }

    /// Kills at random moments, and starts again what was killed, as supervisors do.
    pub(super) async fn make(
        &self,
        plugin: &mut Plugin,
        lab: &Lab,
        random: &mut Random,
    ) -> Result<()> {
        for _ in 0..MOMENTS {
            tokio::time::sleep(random.time(BETWEEN)).await;
            let victims = Victim::some(random);
            let first = self.made.lock().len();
            for &victim in victims {
                let (back, log) = (None, self.log.from_now());
                self.made.lock().push(Kill { victim, back, log });
            }
            for victim in victims {
                match victim {
                    Victim::Plugin => plugin.kill(),
                    Victim::Containerd => lab.kill(),
                    Victim::Snapshotter => lab.remote(Remote::Nydus).kill(),
                }
            }
            tokio::time::sleep(LOGS).await;
            for kill in &mut self.made.lock()[first..] {
                kill.log = self.log.from_now();
            }
            for &victim in victims {
                restart(victim, plugin, lab).await?;
                let mut made = self.made.lock();
                let of_victim = made.iter_mut().filter(|kill| kill.victim == victim);
                of_victim.for_each(|kill| kill.back = Some(kill.back.unwrap_or_else(Instant::now)));
            }
        }
        *self.are_over.lock() = true;
        Ok(())
    }

    pub(super) fn are_over(&self) -> bool {
        *self.are_over.lock()
    }

    /// Returns the numbers of kills.
    pub(super) fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for kill in self.made.lock().iter() {
            *counts.kills.entry(kill.victim).or_default() += 1;
        }
        counts
    }

    /// Has to be called before a pod is created.
    pub(super) fn begin(&self) -> Try {
        let made = self.made.lock();
        let session = made.iter().rev().find(|kill| kill.ends_session());
        Try {
            began: Instant::now(),
            kills: made.len(),
            is_served: session.is_none_or(|kill| !kill.log.lines_with(REGISTERED).is_empty()),
        }
    }

    /// Returns the kill that explains why a try failed with this error.
    pub(super) fn of_error(
        &self,
        of: &Try,
        handler: &str,
        error: &tonic::Status,
    ) -> Option<Victim> {
        if let Some(victim) = self.away(of, handler) {
            return Some(victim);
        }
        // Between the two calls of a swap. The container does not start, and the kubelet creates another one.
        let message = error.message();
        let is_without_snapshot =
            message.starts_with("snapshot ") && message.contains("does not exist");
        let killed = self.made.lock()[of.kills..]
            .iter()
            .any(|kill| kill.victim == Victim::Plugin);
        (is_without_snapshot && killed).then_some(Victim::Plugin)
    }

    /// Returns the kill that explains why the plugin has rejected a container: it did not reach the snapshotter, and so could
    /// not move the container away from a host's unpack.
    pub(super) fn of_rejection(&self, of: &Try, handler: &str) -> Option<Victim> {
        let of_plugin = |victim| handler == NYDUS && victim == Victim::Snapshotter;
        self.last_away(of, of_plugin)
    }

    /// Returns the kill that explains why a container stands on a host's unpack: the plugin was not asked about it, or did
    /// not reach the snapshotter.
    pub(super) fn of_host_unpack(&self, of: &Try, handler: &str) -> Option<Victim> {
        let made = self.made.lock();
        let mut since = made[of.kills..].iter();
        let not_served = match of.is_served {
            false => made.iter().rev().find(|kill| kill.ends_session()),
            true => since.find(|kill| kill.ends_session()),
        };
        let not_served = not_served.map(|kill| kill.victim);
        drop(made);
        not_served.or_else(|| self.away(of, handler))
    }

    /// Returns which daemon that a pod of this handler needs was not there during the try.
    fn away(&self, of: &Try, handler: &str) -> Option<Victim> {
        self.last_away(of, |victim| match victim {
            Victim::Plugin => false,
            Victim::Containerd => true,
            Victim::Snapshotter => handler == NYDUS,
        })
    }

    fn last_away(&self, of: &Try, is_needed: impl Fn(Victim) -> bool) -> Option<Victim> {
        let made = self.made.lock();
        let was_away = |kill: &&Kill| kill.back.is_none_or(|back| of.began < back + RECONNECTS);
        let mut away = made.iter().rev().filter(|kill| is_needed(kill.victim));
        away.find(was_away).map(|kill| kill.victim)
    }
}

impl Kill {
    /// Whether the plugin has to register again.
    fn ends_session(&self) -> bool {
        self.victim != Victim::Snapshotter
    }
}

async fn restart(victim: Victim, plugin: &mut Plugin, lab: &Lab) -> Result<()> {
    match victim {
        Victim::Plugin => plugin.restart(),
        Victim::Containerd => lab.restart().await,
        Victim::Snapshotter => restart_nydus(lab).await,
    }
}
