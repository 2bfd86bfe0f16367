//! Keeps what is known of one kind of object as the API server has it: a list, and then watches from its version on. Every
//! failure is followed by a pause, so that no state of a server makes a busy loop.

use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::metrics;

use super::access::Access;
use super::api::{Change, Error, Resource};
use super::pauses::{self, Pauses};

/// A watch that lasted this long worked: the pauses begin short again.
const STABLE: Duration = Duration::from_secs(60);

/// How long the server lets a watch last, as Kubernetes' own clients ask for. While nothing changes, the end of a watch
/// is the only thing that wakes the plugin.
const SHORTEST_WATCH: Duration = Duration::from_secs(5 * 60);

/// A kind of object, and what becomes of the objects.
pub(super) trait Kind {
    type Object: DeserializeOwned + Send;
    /// The path at the API server, for all namespaces.
    const PATH: &'static str;
    /// The word for the log, and for a role.
    const WORD: &'static str;

    /// The field selector.
    fn fields(node: &str) -> Option<String>;
    fn list_begins(&self);
    /// Takes the objects of a page of the list.
    fn listed(&self, objects: Vec<Self::Object>);
    /// Forgets the objects that the list did not have.
    fn list_ends(&self);
    fn applied(&self, object: Self::Object);
    fn deleted(&self, object: Self::Object);
    /// Records whether the objects are watched.
    fn connected(is_connected: bool);
}

/// Runs until it is dropped.
pub(super) async fn run<K: Kind>(access: &Access, kind: &K) {
    let _disconnected = Disconnected::<K>(PhantomData);
    let fields = K::fields(access.node());
    let mut follower = Follower {
        access,
        kind,
        fields: fields.as_deref(),
        version: None,
        log: Log::default(),
    };
    let mut pauses = Pauses::new();
    loop {
        let began = Instant::now();
        let ended = follower.follow().await;
        K::connected(false);
        if began.elapsed() >= STABLE {
            pauses = Pauses::new();
            follower.log.is_stable();
        }
        let pause = match ended {
            Ok(()) => pauses.next(),
            Err(e) => {
                metrics::api_server_error(e.reason());
                follower.log.failed::<K>(&e);
                if matches!(
                    e,
                    Error::Expired(_) | Error::Malformed(_) | Error::TooLarge(_)
                ) {
                    follower.version = None;
                }
                pauses.after(&e)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Sets the metric when the work ends with the session.
struct Disconnected<K: Kind>(PhantomData<K>);

impl<K: Kind> Drop for Disconnected<K> {
    fn drop(&mut self) {
        K::connected(false);
    }
}

struct Follower<'a, K> {
    access: &'a Access,
    kind: &'a K,
    fields: Option<&'a str>,
    /// The version up to which everything is known; `None` if a list is needed.
    version: Option<String>,
    log: Log,
}

impl<K: Kind> Follower<'_, K> {
    /// Lists the objects if that is needed, and watches them until the watch ends.
    async fn follow(&mut self) -> Result<(), Error> {
        let resource = Resource {
            client: self.access.client().await?,
            path: K::PATH,
            fields: self.fields,
        };
        let mut version = match self.version.take() {
            Some(version) => version,
            None => {
                self.kind.list_begins();
                let version = resource.list(|objects| self.kind.listed(objects)).await?;
                self.kind.list_ends();
                version
            }
        };
        let watched = self.watch(&resource, &mut version).await;
        self.version = Some(version);
        watched
    }

    async fn watch(&mut self, resource: &Resource<'_>, version: &mut String) -> Result<(), Error> {
        let mut lines = resource
            .watch(version, pauses::spread(SHORTEST_WATCH))
            .await?;
        K::connected(true);
        self.log.connected::<K>();
        while let Some((change, at)) = lines.next().await? {
            match change {
                Change::Applied(object) => self.kind.applied(object),
                Change::Deleted(object) => self.kind.deleted(object),
                Change::Bookmark => {}
            }
            *version = at;
        }
        Ok(())
    }
}

/// Logs a failure once, until a watch has worked for some time.
#[derive(Debug, Default)]
struct Log {
    failure: Option<&'static str>,
    /// Whether the end of the failure was logged.
    is_over: bool,
}

impl Log {
    fn failed<K: Kind>(&mut self, error: &Error) {
        let (what, reason) = (K::WORD, error.reason());
        // A version that is too old is part of the protocol.
        let is_news = !matches!(error, Error::Expired(_)) && self.failure != Some(reason);
        if !is_news {
            return log::debug!(what, error:%; "watch at the API server failed: trying again");
        }
        self.failure = Some(reason);
        self.is_over = false;
        let remedy = match error {
            Error::Refused { code: 403, .. } => {
                "; allow `list` and `watch` of it (docs/kubernetes.md)"
            }
            Error::Refused { .. } => "; renew the credentials (docs/kubernetes.md)",
            _ => "",
        };
        log::warn!(what, error:%; "watch at the API server failed{remedy}; the images of bound pods are not made ready until it works; trying again");
    }

    fn connected<K: Kind>(&mut self) {
        let what = K::WORD;
        match self.failure {
            Some(_) if !std::mem::replace(&mut self.is_over, true) => {
                log::info!(what; "watch at the API server works again");
            }
            _ => log::debug!(what; "watch at the API server begins"),
        }
    }

    fn is_stable(&mut self) {
        if self.is_over {
            self.failure = None;
        }
    }
}
