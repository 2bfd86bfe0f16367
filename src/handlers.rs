//! Resolves the snapshotter of each runtime handler, and the source of that value.
//!
//! There are three sources, in order of precedence: `[handlers]` of the plugin's configuration, the running
//! containerd (its CRI status and its image file system), and containerd's configuration files. This module
//! calls no service: the caller passes containerd's answers as [`Running`]. [`FileConfig::read`] is its only
//! I/O.

mod cri_status;
mod document;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod go_glob;
mod image_file_system;
mod migration;
mod origin;
mod problem;
mod settings;
mod source;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
use crate::containerd::Snapshotter;
use crate::unquoted::without_values;
pub use files::{FileConfig, Unseen};
pub(crate) use migration::{CRI, IMAGES, RUNTIME};
pub use origin::{Found, Origin};
pub use problem::Problem;
pub use settings::{NRI_TABLE, Settings};
use source::Reported;

/// containerd's default snapshotter on Linux, in all releases.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// The runtime that containerd has and uses by default if nothing is configured.
const DEFAULT_RUNTIME: &str = "runc";

/// All runtime handlers of the node with their snapshotters.
#[derive(Debug)]
pub struct Handlers {
    resolved: BTreeMap<String, Resolved>,
    default_runtime: Found,
    default_snapshotter: Option<Found>,
    /// The handlers that use the default snapshotter while that is not known.
    undecided: Vec<String>,
    sandbox_image: Option<Found>,
    problems: Vec<Problem>,
    differences: Vec<Problem>,
    unread: Vec<Problem>,
    unseen: Vec<Unseen>,
}

/// The answers of the running containerd.
#[derive(Clone, Copy, Debug, Default)]
pub struct Running<'a> {
    /// The JSON under `config` of CRI's verbose `Status`, if the answer has it.
    pub cri_status_config: Option<&'a str>,
    /// The mount point of CRI's first image file system, which is the default snapshotter's directory.
    pub image_file_system: Option<&'a str>,
    /// The snapshotters that containerd lists.
    pub snapshotters: &'a [Snapshotter],
}

/// The snapshotter of one runtime handler.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// The snapshotter in which the handler's containers are created.
    pub snapshotter: String,
    /// The source of the snapshotter's name.
    pub origin: Origin,
    /// Whether the handler names no snapshotter and so uses the default one.
    pub follows_default: bool,
}

impl Resolved {
    /// Returns `None` if the handler uses the default snapshotter and that is not known.
    fn new(named: Option<Found>, default: Option<&Found>) -> Option<Self> {
        let follows_default = named.is_none();
        let Found {
            value: snapshotter,
            origin,
        } = named.or_else(|| default.cloned())?;
        Some(Self {
            snapshotter,
            origin,
            follows_default,
        })
    }
}

/// The error for a runtime handler whose snapshotter is not known.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum HandlerError {
    /// No source has this handler.
    #[error(
        "the runtime handler {handler:?} is not known (known: {}): \
         add `{handler:?} = \"<snapshotter>\"` to [handlers] of the configuration",
        known.join(", ")
    )]
    Unknown {
        /// The handler that was asked for.
        handler: String,
        /// The known handlers.
        known: Vec<String>,
    },
    /// The handler uses the default snapshotter, which no source names.
    #[error(
        "the runtime handler {0:?} uses the default snapshotter, which is not known: \
         add `{0:?} = \"<snapshotter>\"` to [handlers] of the configuration"
    )]
    Undecided(String),
}

impl Handlers {
    /// Combines the sources. The running containerd has precedence over its files, which are optional. Errors
    /// in the sources are among the [`problems`](Self::problems).
    pub fn resolve(
        config: &Config,
        running: Running<'_>,
        containerd_config: Option<FileConfig>,
    ) -> Self {
        let mut problems = Vec::new();
        let mut status = match running.cri_status_config.map(cri_status::parse).transpose() {
            Ok(status) => status.unwrap_or_default(),
            Err(error) => {
                let reason = without_values(&error);
                problems.push(Problem::BadStatus { reason });
                Reported::default()
            }
        };
        let names: Option<Vec<String>> = status
            .runtimes
            .as_ref()
            .map(|runtimes| runtimes.keys().cloned().collect());

        let files = containerd_config.unwrap_or_default();
        let written = files.reported.default_snapshotter.as_ref();
        let by_root = image_file_system::snapshotter(running, written.map(|it| it.value.as_str()));
        status.default_snapshotter = status.default_snapshotter.or(by_root);

        let differences = match files.is_whole() && files.unseen().is_empty() {
            true => status.differences(&files.reported),
            false => vec![],
        };
        let is_whole = files.is_whole();
        let unseen = files.unseen().to_vec();
        let is_there = files.is_there;
        // Errors in files are no problem if the running containerd reports all about the handlers.
        let unread = match status.has_all_handlers() {
            true => files.problems,
            false => {
                problems.extend(files.problems);
                vec![]
            }
        };
        let mut written = files.reported;
        if names.is_none() {
            let built_in = || BTreeMap::from([(DEFAULT_RUNTIME.to_owned(), None)]);
            written.runtimes.get_or_insert_with(built_in);
        }
        let mut reported = status.or(written);
        if is_whole && reported.default_snapshotter.is_none() {
            reported.default_snapshotter = Some(Found::new(DEFAULT_SNAPSHOTTER, Origin::Default));
        }

        let mut handlers = Self::of_containerd(reported, problems);
        handlers.differences = differences;
        handlers.unread = unread;
        handlers.unseen = unseen;
        for (handler, snapshotter) in &config.handlers {
            handlers.overrule(handler.as_str(), snapshotter.as_str(), names.as_deref());
        }
        if handlers.default_snapshotter.is_none() {
            let undecided = handlers.undecided.clone();
            handlers.problems.push(Problem::UnknownDefault {
                is_there,
                handlers: undecided,
            });
        }
        handlers
    }

    fn of_containerd(reported: Reported, problems: Vec<Problem>) -> Self {
        let default_runtime = reported.default_runtime;
        let mut handlers = Self {
            resolved: BTreeMap::new(),
            default_runtime: default_runtime
                .unwrap_or_else(|| Found::new(DEFAULT_RUNTIME, Origin::Default)),
            default_snapshotter: reported.default_snapshotter,
            undecided: vec![],
            sandbox_image: reported.sandbox_image,
            problems,
            differences: vec![],
            unread: vec![],
            unseen: vec![],
        };
        for (handler, snapshotter) in reported.runtimes.unwrap_or_default() {
            match Resolved::new(snapshotter, handlers.default_snapshotter.as_ref()) {
                Some(resolved) => _ = handlers.resolved.insert(handler, resolved),
                None => handlers.undecided.push(handler),
            }
        }
        for (handler, pulled) in reported.pulls {
            handlers.check_pull(handler, pulled);
        }
        handlers
    }

    /// Reports a handler whose images are pulled into another snapshotter than its containers use.
    /// `runtime_platforms` sets only the snapshotter for pulls, which is easily overlooked.
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

    /// Sets a handler's snapshotter from the plugin's configuration. `running` has the handlers that containerd
    /// reports, if it does.
    fn overrule(&mut self, handler: &str, snapshotter: &str, running: Option<&[String]>) {
        if let Some(known) = running.filter(|running| !running.iter().any(|name| name == handler)) {
            let problem = Problem::NoSuchHandler {
                handler: handler.to_owned(),
                known: known.to_vec(),
            };
            self.problems.push(problem);
        }
        let resolved = Resolved {
            snapshotter: snapshotter.to_owned(),
            origin: Origin::Configuration,
            follows_default: false,
        };
        self.undecided.retain(|name| name != handler);
        self.resolved.insert(handler.to_owned(), resolved);
    }

    /// Returns the snapshotter of a pod's runtime handler. An empty handler stands for the default runtime.
    pub fn snapshotter(&self, handler: &str) -> Result<&Resolved, HandlerError> {
        let name = if handler.is_empty() {
            &self.default_runtime.value
        } else {
            handler
        };
        if self.undecided.iter().any(|undecided| undecided == name) {
            return Err(HandlerError::Undecided(name.to_owned()));
        }
        self.resolved
            .get(name)
            .ok_or_else(|| HandlerError::Unknown {
                handler: name.to_owned(),
                known: self.resolved.keys().cloned().collect(),
            })
    }

    /// Iterates over all runtime handlers with their snapshotters, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Resolved)> {
        self.resolved
            .iter()
            .map(|(handler, resolved)| (handler.as_str(), resolved))
    }

    /// Returns the snapshotters that handlers use, each once.
    pub fn snapshotters(&self) -> BTreeSet<&str> {
        self.resolved
            .values()
            .map(|resolved| resolved.snapshotter.as_str())
            .collect()
    }

    /// Returns the runtime of a pod that names none.
    pub fn default_runtime(&self) -> &Found {
        &self.default_runtime
    }

    /// Returns the snapshotter of a handler that names none; `None` if no source has it.
    pub fn default_snapshotter(&self) -> Option<&Found> {
        self.default_snapshotter.as_ref()
    }

    /// Returns the name of the default snapshotter.
    pub fn default_name(&self) -> Option<&str> {
        self.default_snapshotter().map(|found| found.value.as_str())
    }

    /// Returns the values of files that differ from the running containerd, which has precedence.
    pub fn differences(&self) -> &[Problem] {
        &self.differences
    }

    /// Returns the configured pause image. Without one, containerd uses a built-in pause image, which differs
    /// in nearly every release and has the label of pinned images.
    pub fn sandbox_image(&self) -> Option<&Found> {
        self.sandbox_image.as_ref()
    }

    /// Returns the problems of the sources.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the problems of containerd's files if the running containerd reports all about the handlers.
    pub fn unread(&self) -> &[Problem] {
        &self.unread
    }

    /// Returns the imports of containerd's files that may match files which this process cannot see.
    pub fn unseen(&self) -> &[Unseen] {
        &self.unseen
    }

    /// Returns a problem for each handler whose snapshotter is not in `listed`.
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
