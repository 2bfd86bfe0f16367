//! The workers, one for each snapshotter.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::worker::{Shared, Worker};

/// The workers, by snapshotter.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    by_name: Mutex<HashMap<String, Arc<Worker>>>,
}

impl Workers {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            by_name: Mutex::default(),
        }
    }

    /// Returns the worker of a snapshotter.
    pub(crate) fn of(&self, snapshotter: &str) -> Arc<Worker> {
        let mut by_name = self.by_name.lock();
        if let Some(worker) = by_name.get(snapshotter) {
            return worker.clone();
        }
        let worker = Arc::new(Worker::new(self.shared.clone(), snapshotter));
        by_name.insert(snapshotter.to_owned(), worker.clone());
        worker
    }

    /// Returns all workers.
    pub(crate) fn all(&self) -> Vec<Arc<Worker>> {
        self.by_name.lock().values().cloned().collect()
    }
}
