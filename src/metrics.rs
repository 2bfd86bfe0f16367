//! The metrics of the process. The code that does something counts it here, and does not know
//! how the metrics are read.
//!
//! Labels are few and short: a snapshotter's name is the only one that is not a fixed word. No image and
//! no pod is ever a label.

mod server;
mod text;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use server::{Readiness, serve};

/// Seconds. A hook for a ready image takes a few milliseconds; the default of `hooks.wait` and NRI's own
/// request timeout are bounds of buckets.
const HOOK_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
];

/// Seconds: from a labelled `Prepare` to a large image.
const UNPACK_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Whether the plugin is registered with the runtime.
static REGISTERED: AtomicBool = AtomicBool::new(false);

struct Metrics {
    registry: Registry,
    hooks: Family<OfHook, Histogram>,
    ensures: Family<OfEnsure, Counter>,
    unpacks: Family<In, Histogram>,
    bytes: Family<In, Counter>,
    queued: Gauge,
    not_queued: Counter,
    images: Family<OfImages, Gauge>,
    /// The states that `images` has, by snapshotter.
    states: Mutex<BTreeMap<String, Vec<&'static str>>>,
    sessions: Counter,
    last_reconcile: Family<In, Gauge<f64, AtomicU64>>,
    registered: Gauge,
    api_server: Gauge,
    api_server_errors: Family<OfError, Counter>,
    bound_pods: Gauge,
    bound_left_out: Counter,
    log_lines_lost: Counter,
    panics: Counter,
    startup_taint: Gauge,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfHook {
    hook: &'static str,
    verdict: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfEnsure {
    trigger: &'static str,
    snapshotter: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct In {
    snapshotter: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfError {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfImages {
    snapshotter: String,
    state: &'static str,
}

impl Metrics {
    fn new() -> Self {
        let this = Self {
            registry: Registry::with_prefix("nri_unpack"),
            hooks: Family::new_with_constructor(|| Histogram::new(HOOK_BUCKETS)),
            ensures: Family::default(),
            unpacks: Family::new_with_constructor(|| Histogram::new(UNPACK_BUCKETS)),
            bytes: Family::default(),
            queued: Gauge::default(),
            not_queued: Counter::default(),
            images: Family::default(),
            states: Mutex::default(),
            sessions: Counter::default(),
            last_reconcile: Family::default(),
            registered: Gauge::<i64, AtomicI64>::default(),
            api_server: Gauge::default(),
            api_server_errors: Family::default(),
            bound_pods: Gauge::default(),
            bound_left_out: Counter::default(),
            log_lines_lost: Counter::default(),
            panics: Counter::default(),
            startup_taint: Gauge::default(),
        };
        this.registered()
    }

    /// Names, units and help.
    fn registered(mut self) -> Self {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let to = &mut self.registry;
        to.register("build", "The program", build);
        to.register_with_unit(
            "hook_duration",
            "Duration of hook calls, by hook and verdict",
            Unit::Seconds,
            self.hooks.clone(),
        );
        to.register(
            "ensures",
            "Requests to make a chain ready, by trigger, snapshotter and outcome",
            self.ensures.clone(),
        );
        to.register_with_unit(
            "unpack_duration",
            "Time to make a chain ready that was not ready",
            Unit::Seconds,
            self.unpacks.clone(),
        );
        to.register_with_unit(
            "unpacked",
            "Compressed size of the layers that were unpacked",
            Unit::Bytes,
            self.bytes.clone(),
        );
        to.register(
            "queue_length",
            "Events and jobs in the queues",
            self.queued.clone(),
        );
        to.register(
            "queue_left_out",
            "Events and jobs that were dropped because the queue was full; a reconcile replaces them",
            self.not_queued.clone(),
        );
        to.register(
            "images",
            "Images that are wanted ahead, by their state after the last reconcile",
            self.images.clone(),
        );
        to.register(
            "sessions",
            "Sessions with the runtime that have begun",
            self.sessions.clone(),
        );
        to.register_with_unit(
            "last_reconcile_timestamp",
            "Time of the last reconcile in which the snapshotter answered; 0 before the first one",
            Unit::Seconds,
            self.last_reconcile.clone(),
        );
        to.register(
            "registered",
            "Whether the plugin is registered with the runtime",
            self.registered.clone(),
        );
        to.register(
            "kubernetes_connected",
            "Whether the pods of this node are watched at the API server",
            self.api_server.clone(),
        );
        to.register(
            "kubernetes_errors",
            "Failed requests to the API server, and watches that broke, by reason",
            self.api_server_errors.clone(),
        );
        to.register(
            "kubernetes_bound_pods",
            "Pods that are bound to this node and wait for their containers",
            self.bound_pods.clone(),
        );
        to.register(
            "kubernetes_left_out",
            "Pods, and pods with images, beyond the limit of what is remembered of them",
            self.bound_left_out.clone(),
        );
        to.register(
            "log_lines_lost",
            "Log lines that were dropped because the journal, the file or standard error did not take them in time",
            self.log_lines_lost.clone(),
        );
        to.register(
            "panics",
            "Panics of the plugin, which the log names: a fault to be reported",
            self.panics.clone(),
        );
        to.register(
            "kubernetes_startup_taint",
            "Whether this node has to lose its startup taint: 1 from registration until the API server has confirmed it",
            self.startup_taint.clone(),
        );
        self
    }
}

/// Records the answer of a hook.
pub fn hook(hook: &'static str, verdict: &'static str, took: Duration) {
    let labels = OfHook { hook, verdict };
    let histogram = METRICS.hooks.get_or_create(&labels);
    histogram.observe(took.as_secs_f64());
}

/// Records the end of a request.
pub fn ensured(trigger: &'static str, snapshotter: &str, outcome: &'static str) {
    let labels = OfEnsure {
        trigger,
        snapshotter: snapshotter.to_owned(),
        outcome,
    };
    METRICS.ensures.get_or_create(&labels).inc();
}

/// Records that a chain became ready.
pub fn unpacked(snapshotter: &str, took: Duration) {
    let histogram = METRICS.unpacks.get_or_create(&of(snapshotter));
    histogram.observe(took.as_secs_f64());
}

/// Records that a layer's blob of this size was applied.
pub fn layer_applied(snapshotter: &str, bytes: u64) {
    METRICS.bytes.get_or_create(&of(snapshotter)).inc_by(bytes);
}

/// Records the number of events and jobs that wait.
pub fn queued(length: usize) {
    METRICS.queued.set(length.try_into().unwrap_or(i64::MAX));
}

/// Records an event or a job that did not fit into its queue.
pub fn dropped() {
    METRICS.not_queued.inc();
}

/// Records that a snapshotter is managed, and was not reconciled yet.
pub fn managed(snapshotter: &str) {
    drop(METRICS.last_reconcile.get_or_create(&of(snapshotter)));
}

/// Records a reconcile in a snapshotter: the number of images by state. Its earlier numbers are removed. The time of a
/// reconcile to which the snapshotter did not answer is not recorded.
pub fn reconciled(
    snapshotter: &str,
    has_answered: bool,
    images: impl Iterator<Item = (&'static str, usize)>,
) {
    let states = images.map(|(state, count)| {
        let gauge = METRICS.images.get_or_create(&of_images(snapshotter, state));
        gauge.set(count.try_into().unwrap_or(i64::MAX));
        state
    });
    let states: Vec<_> = states.collect();
    let before = METRICS
        .states
        .lock()
        .insert(snapshotter.to_owned(), states.clone());
    for state in before.into_iter().flatten() {
        if !states.contains(&state) {
            METRICS.images.remove(&of_images(snapshotter, state));
        }
    }
    if has_answered {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs_f64();
        let last = METRICS.last_reconcile.get_or_create(&of(snapshotter));
        last.set(now);
    }
}

/// Removes the numbers of a snapshotter that is no longer managed.
pub fn unmanaged(snapshotter: &str) {
    let states = METRICS.states.lock().remove(snapshotter);
    for state in states.into_iter().flatten() {
        METRICS.images.remove(&of_images(snapshotter, state));
    }
    METRICS.last_reconcile.remove(&of(snapshotter));
}

/// Records the begin of a session with the runtime.
pub fn session_began() {
    METRICS.sessions.inc();
    set_registered(true);
}

/// Records the end of the session.
pub fn session_ended() {
    set_registered(false);
}

/// Records whether the pods of this node are watched at the API server.
pub fn api_server_connected(connected: bool) {
    METRICS.api_server.set(connected.into());
}

/// Records a failed request to the API server, or a watch that broke.
pub fn api_server_error(reason: &'static str) {
    let labels = OfError { reason };
    METRICS.api_server_errors.get_or_create(&labels).inc();
}

/// Records the number of bound pods that wait for their containers.
pub fn bound_pods(pods: usize) {
    METRICS.bound_pods.set(pods.try_into().unwrap_or(i64::MAX));
}

/// Records a bound pod, or images of one, beyond the limit.
pub fn bound_left_out() {
    METRICS.bound_left_out.inc();
}

/// Records a log line that was dropped.
pub fn log_line_lost() {
    METRICS.log_lines_lost.inc();
}

/// Records a panic.
pub fn panicked() {
    METRICS.panics.inc();
}

/// Records whether this node may have its startup taint.
pub fn startup_taint(is_there: bool) {
    METRICS.startup_taint.set(is_there.into());
}

/// Whether there is a session with the runtime.
pub fn is_registered() -> bool {
    REGISTERED.load(Ordering::Relaxed)
}

fn set_registered(registered: bool) {
    REGISTERED.store(registered, Ordering::Relaxed);
    METRICS.registered.set(registered.into());
}

fn of_images(snapshotter: &str, state: &'static str) -> OfImages {
    OfImages {
        snapshotter: snapshotter.to_owned(),
        state,
    }
}

fn of(snapshotter: &str) -> In {
    In {
        snapshotter: snapshotter.to_owned(),
    }
}
