//! Which snapshotter the containers of a runtime handler live in, and where that was read.
//!
//! Three sources, the better one first: `[handlers]` of our configuration, what the running
//! containerd reports in its CRI status, and containerd's configuration files. This module calls
//! no service: the status comes as text, and [`FileConfig::read`] is all the I/O there is.

mod cri_status;
mod document;
mod files;
mod problem;
mod settings;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
pub use files::FileConfig;
pub use problem::Problem;
pub use settings::{NRI_TABLE, Settings};
use source::Reported;
pub use source::{Found, Origin};

/// containerd's default snapshotter on Linux, in all releases.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// The runtime that containerd has, and uses by default, if nothing is configured.
const DEFAULT_RUNTIME: &str = "runc";

/// Every runtime handler of the node, resolved.
#[derive(Debug)]
pub struct Handlers {
    resolved: BTreeMap<String, Resolved>,
    default_runtime: Found,
    default_snapshotter: Found,
    sandbox_image: Option<Found>,
    problems: Vec<Problem>,
}

/// The snapshotter of one runtime handler.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// The snapshotter that its containers are created in.
    pub snapshotter: String,
    /// Where that was read.
    pub origin: Origin,
    /// Whether the handler names no snapshotter, and so uses the default one.
    pub follows_default: bool,
}

impl Resolved {
    fn new(named: Option<Found>, default: &Found) -> Self {
        let follows_default = named.is_none();
        let Found {
            value: snapshotter,
            origin,
        } = named.unwrap_or_else(|| default.clone());
        Self {
            snapshotter,
            origin,
            follows_default,
        }
    }
}

/// A runtime handler that nothing is known about.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the runtime handler {handler:?} is not known (known: {}): \
     add `{handler:?} = \"<snapshotter>\"` to [handlers] of the configuration",
    known.join(", ")
)]
pub struct HandlerError {
    /// The handler that was asked for.
    pub handler: String,
    /// Those that are known.
    pub known: Vec<String>,
}

impl Handlers {
    /// Puts the sources together.
    ///
    /// `cri_status_config` is the JSON under `config` of CRI's verbose `Status`, if containerd
    /// could be asked; `containerd_config` is what its files say, if they were to be read. What is
    /// wrong with either is among the [`problems`](Self::problems).
    pub fn resolve(
        config: &Config,
        cri_status_config: Option<&str>,
        containerd_config: Option<FileConfig>,
    ) -> Self {
        let mut problems = Vec::new();
        let status = match cri_status_config.map(cri_status::parse).transpose() {
            Ok(status) => status.unwrap_or_default(),
            Err(reason) => {
                problems.push(Problem::BadStatus { reason });
                Reported::default()
            }
        };
        let running: Option<Vec<String>> = status
            .runtimes
            .as_ref()
            .map(|runtimes| runtimes.keys().cloned().collect());

        let reported = if status.is_complete() {
            // Whatever is wrong with files that nobody asks is nobody's problem.
            status
        } else {
            let files = containerd_config.unwrap_or_default();
            problems.extend(files.problems);
            let mut files = files.reported;
            // containerd 2 keeps its built-in runtime, whatever its files add.
            let runtimes = files.runtimes.get_or_insert_default();
            runtimes.entry(DEFAULT_RUNTIME.to_owned()).or_default();
            status.or(files)
        };

        let mut handlers = Self::of_containerd(reported, problems);
        for (handler, snapshotter) in &config.handlers {
            handlers.overrule(handler.as_str(), snapshotter.as_str(), running.as_deref());
        }
        handlers
    }

    fn of_containerd(reported: Reported, problems: Vec<Problem>) -> Self {
        let or_default =
            |found: Option<Found>, value| found.unwrap_or(Found::new(value, Origin::Default));
        let mut handlers = Self {
            resolved: BTreeMap::new(),
            default_runtime: or_default(reported.default_runtime, DEFAULT_RUNTIME),
            default_snapshotter: or_default(reported.default_snapshotter, DEFAULT_SNAPSHOTTER),
            sandbox_image: reported.sandbox_image,
            problems,
        };
        for (handler, snapshotter) in reported.runtimes.unwrap_or_default() {
            let resolved = Resolved::new(snapshotter, &handlers.default_snapshotter);
            handlers.resolved.insert(handler, resolved);
        }
        for (handler, pulled) in reported.pulls {
            handlers.check_pull(handler, pulled);
        }
        handlers
    }

    /// `runtime_platforms` says where images are pulled to, and is easily taken for the whole
    /// story.
    fn check_pull(&mut self, handler: String, pulled: Found) {
        let Some(resolved) = self.resolved.get(&handler) else {
            return;
        };
        if resolved.snapshotter != pulled.value {
            self.problems.push(Problem::PulledElsewhere {
                handler,
                pulled: pulled.value,
                origin: pulled.origin,
                used: resolved.snapshotter.clone(),
            });
        }
    }

    /// Takes our configuration's word for a handler. `running` is what containerd has, if it said.
    fn overrule(&mut self, handler: &str, snapshotter: &str, running: Option<&[String]>) {
        if let Some(known) = running.filter(|running| !running.iter().any(|name| name == handler)) {
            let problem = Problem::NoSuchHandler {
                handler: handler.to_owned(),
                known: known.to_vec(),
            };
            self.problems.push(problem);
        }
        let found = Found::new(snapshotter, Origin::Configuration);
        let resolved = Resolved::new(Some(found), &self.default_snapshotter);
        self.resolved.insert(handler.to_owned(), resolved);
    }

    /// The snapshotter of a pod's runtime handler; an empty one means the default runtime.
    pub fn snapshotter(&self, handler: &str) -> Result<&Resolved, HandlerError> {
        let name = if handler.is_empty() {
            &self.default_runtime.value
        } else {
            handler
        };
        self.resolved.get(name).ok_or_else(|| HandlerError {
            handler: name.to_owned(),
            known: self.resolved.keys().cloned().collect(),
        })
    }

    /// Every runtime handler with its snapshotter, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Resolved)> {
        self.resolved
            .iter()
            .map(|(handler, resolved)| (handler.as_str(), resolved))
    }

    /// The snapshotters that some handler uses, each once.
    pub fn snapshotters(&self) -> BTreeSet<&str> {
        self.resolved
            .values()
            .map(|resolved| resolved.snapshotter.as_str())
            .collect()
    }

    /// The runtime of a pod that names none.
    pub fn default_runtime(&self) -> &Found {
        &self.default_runtime
    }

    /// The snapshotter of a handler that names none.
    pub fn default_snapshotter(&self) -> &Found {
        &self.default_snapshotter
    }

    /// The pause image, where it is configured. Otherwise it is one that containerd has built in,
    /// another one in nearly every release, and the label of pinned images tells which.
    pub fn sandbox_image(&self) -> Option<&Found> {
        self.sandbox_image.as_ref()
    }

    /// What was wrong with the sources.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The handlers whose snapshotter is not among those that containerd's introspection lists.
    pub fn check_known<S: AsRef<str>>(&self, listed: &[S]) -> Vec<Problem> {
        let known: BTreeSet<&str> = listed.iter().map(AsRef::as_ref).collect();
        let unknown = self
            .resolved
            .iter()
            .filter(|(_, resolved)| !known.contains(resolved.snapshotter.as_str()));
        unknown
            .map(|(handler, resolved)| Problem::NoSuchSnapshotter {
                handler: handler.clone(),
                snapshotter: resolved.snapshotter.clone(),
                origin: resolved.origin.clone(),
                known: known.iter().map(|&name| name.to_owned()).collect(),
            })
            .collect()
    }
}
