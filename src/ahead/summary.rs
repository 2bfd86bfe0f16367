//! The summary of a reconcile in one snapshotter, and its log lines: what has not changed is logged once.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::logs;
use crate::metrics;
use crate::unpack::{Error, State};

use super::choice::MAX_SNAPSHOTS;
use super::is_news;

/// The limit of names in the log line of the images that rest.
const MAX_NAMED: usize = 8;

/// What earlier reconciles have logged and still holds.
#[derive(Debug, Default)]
pub(super) struct LastReported {
    silent: bool,
    failed: BTreeSet<String>,
    left: usize,
    no_room: BTreeSet<String>,
}

/// What a reconcile leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing, or images that are tried again by themselves.
    Nothing,
    /// Something did not answer.
    Unanswered,
}

/// The results of one reconcile.
#[derive(Debug)]
pub(super) struct ReconcileSummary<'a> {
    snapshotter: &'a str,
    ready: usize,
    made: usize,
    failed: BTreeSet<String>,
    /// Not begun: the snapshotter holds too many snapshots.
    left: usize,
    /// Not begun: too little free space.
    no_room: BTreeSet<String>,
    /// Whether the snapshotter did not answer.
    silent: bool,
    /// Whether a failure may pass by itself.
    again: bool,
    /// The number of images by state.
    states: BTreeMap<&'static str, usize>,
}

impl<'a> ReconcileSummary<'a> {
    pub(super) fn new(snapshotter: &'a str) -> Self {
        Self {
            snapshotter,
            ready: 0,
            made: 0,
            failed: BTreeSet::new(),
            left: 0,
            no_room: BTreeSet::new(),
            silent: false,
            again: false,
            states: BTreeMap::new(),
        }
    }

    pub(super) fn ready(&mut self) {
        self.ready += 1;
        self.count(State::Ready);
    }

    pub(super) fn made(&mut self) {
        self.made += 1;
        self.count(State::Ready);
    }

    pub(super) fn left(&mut self, state: Option<State>) {
        self.left += 1;
        if let Some(state) = state {
            self.count(state);
        }
    }

    pub(super) fn no_room(&mut self, image: String, state: Option<State>) {
        self.no_room.insert(image);
        if let Some(state) = state {
            self.count(state);
        }
    }

    /// Counts an image that is not unpacked until a pod needs it.
    pub(super) fn needs_content(&mut self, state: Option<State>) {
        if let Some(state) = state {
            self.count(state);
        }
    }

    /// Counts and logs an image that could not be made ready; its state is the one before, if that is known.
    pub(super) fn failed(
        &mut self,
        reported: &LastReported,
        image: String,
        state: Option<State>,
        error: &Error,
    ) {
        if error.is_left_to_containerd() || error.is_of_artifact() || error.has_no_image() {
            return;
        }
        let is_reported = reported.failed.contains(&image) || self.failed.contains(&image);
        if is_news(error) && !is_reported {
            log::warn!(image, snapshotter = self.snapshotter, error:% = error; "image cannot be made ready ahead");
        } else {
            log::debug!(image, snapshotter = self.snapshotter, error:% = error; "image not made ready ahead");
        }
        if let Some(state) = error.state().or(state) {
            self.count(state);
        }
        if let Some(source) = error.unreachable() {
            self.silent(reported, source);
        }
        self.again |= super::may_pass(error);
        self.failed.insert(image);
    }

    pub(super) fn silent(&mut self, reported: &LastReported, error: &crate::containerd::Error) {
        let is_new = !std::mem::replace(&mut self.silent, true);
        if is_new && !reported.silent {
            log::warn!(snapshotter = self.snapshotter, error:% = error; "snapshotter does not answer: unpacking ahead in it is paused until it does");
        }
        self.again = true;
    }

    /// Counts an image that could not be looked at.
    pub(super) fn unseen(&mut self, reported: &LastReported, image: String, error: &Error) {
        if error.is_of_artifact() {
            return;
        }
        match error.unreachable() {
            // containerd does not answer, rather than the snapshotter.
            Some(_) => self.again = true,
            None => self.failed(reported, image, None, error),
        }
    }

    pub(super) fn has_left(&self) -> bool {
        self.left > 0
    }

    /// Updates the metrics, then logs the summary. Returns what is left to be done.
    pub(super) fn report(self, reported: &mut LastReported, started: Instant) -> Rest {
        let Self {
            snapshotter,
            ready,
            made,
            left,
            again,
            ..
        } = self;
        let states = self.states.iter();
        let states = states.map(|(state, count)| (*state, *count));
        metrics::reconciled(snapshotter, !self.silent, states);
        let (failed, no_room) = (self.failed.len(), self.no_room.len());
        let took_ms = logs::milliseconds(started.elapsed());
        let is_new = self.failed != reported.failed
            || left != reported.left
            || self.no_room != reported.no_room;
        if made == 0 && !is_new {
            log::debug!(snapshotter, ready, failed, left, no_room, took_ms; "reconcile finished");
        } else {
            log::info!(snapshotter, ready, made, failed, left, no_room, took_ms; "reconcile finished");
        }
        if left > 0 && reported.left == 0 {
            log::warn!(snapshotter, left, max_snapshots = MAX_SNAPSHOTS; "a snapshotter holds max_snapshots or more: the oldest images are not unpacked ahead, but when a pod needs them");
        }
        if !self.no_room.is_subset(&reported.no_room) {
            let images = self.no_room.iter().take(MAX_NAMED).cloned();
            let images = images.collect::<Vec<_>>().join(", ");
            log::info!(snapshotter, no_room, images; "images rest until there is enough free space: they are unpacked when a pod needs them");
        }
        *reported = LastReported {
            silent: self.silent,
            failed: self.failed,
            left,
            no_room: self.no_room,
        };
        match again {
            true => Rest::Unanswered,
            false => Rest::Nothing,
        }
    }

    fn count(&mut self, state: State) {
        *self.states.entry(state.word()).or_default() += 1;
    }
}
