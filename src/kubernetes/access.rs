//! How the API server is reached: its address, the credentials, and the name of this node.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use secrecy::ExposeSecret;
use tower::{BoxError, ServiceBuilder};

use crate::config::{self, NodeName, Watch};
use crate::unquoted::without_values;

use super::api::Error;

/// The variable with the address of the API server that every pod has.
const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";

/// The token of a pod's service account. A pod without one has no such file.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The variable with the name of the node that the pod is bound to, by the downward API.
const NODE_NAME: &str = "NODE_NAME";

/// The file with the name of the host.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The limit of the time to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// The kernel looks after this time of silence whether the API server is still there. That wakes no process.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The limit of the path in a server's address, in bytes. It comes before the path of each request.
const LONGEST_PATH: usize = 2 << 10;

/// The limit of what is buffered of an answer.
const BUFFER: usize = 64 << 10;

/// The way to the API server.
#[derive(Debug)]
pub(super) struct Access {
    origin: Origin,
    node: NodeName,
}

/// The source of the credentials.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The service account of the plugin's pod.
    Pod,
    /// A kubeconfig.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod => f.write_str("the pod's service account"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Access {
    /// Returns the way to the API server for the watch of pods; `None` if they are not watched.
    pub(super) fn for_watch(config: &config::Kubernetes) -> Result<Option<Self>, Error> {
        match for_watch(config, origin(config, is_in_pod()))? {
            Some(origin) => Self::with(config, origin).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the way to the API server for the removal of the startup taint.
    pub(super) fn for_taint(config: &config::Kubernetes) -> Result<Self, Error> {
        let origin = origin(config, is_in_pod());
        Self::with(
            config,
            origin.ok_or_else(|| none_for("startup_taint is set"))?,
        )
    }

    fn with(config: &config::Kubernetes, origin: Origin) -> Result<Self, Error> {
        let node = match &config.node {
            Some(node) => node.clone(),
            None => this_node()?,
        };
        Ok(Self { origin, node })
    }

    pub(super) fn node(&self) -> &str {
        self.node.as_str()
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns a client with the credentials as they are now: they are renewed while the plugin runs.
    pub(super) async fn client(&self) -> Result<Client, Error> {
        let mut config = match &self.origin {
            Origin::Pod => Config::incluster().map_err(|e| {
                Error::Setup(format!("the pod's service account cannot be used: {e}"))
            })?,
            Origin::File(path) => read(path).await?,
        };
        config.connect_timeout = Some(CONNECT);
        client(&config).map_err(|e| {
            let origin = &self.origin;
            let reason = without_values(&e);
            Error::Setup(format!(
                "the credentials of {origin} cannot be used: {reason}"
            ))
        })
    }
}

fn is_in_pod() -> bool {
    std::env::var_os(SERVICE_HOST).is_some() && Path::new(TOKEN).exists()
}

/// Returns the source of the credentials, if there is one.
fn origin(config: &config::Kubernetes, is_in_pod: bool) -> Option<Origin> {
    let file = config.kubeconfig.as_ref();
    let file = file.map(|path| Origin::File(path.as_ref().to_owned()));
    file.or(is_in_pod.then_some(Origin::Pod))
}

/// Returns the source of the credentials for the watch of pods; `None` if they are not watched.
fn for_watch(config: &config::Kubernetes, origin: Option<Origin>) -> Result<Option<Origin>, Error> {
    match (config.watch, origin) {
        (Watch::Off, _) | (Watch::Auto, None) => Ok(None),
        (Watch::On, None) => Err(none_for("watch is \"on\"")),
        (_, Some(origin)) => Ok(Some(origin)),
    }
}

fn none_for(what: &str) -> Error {
    Error::Setup(format!(
        "kubernetes.{what}, but there are no credentials: set kubernetes.kubeconfig, or give the plugin's pod a service \
         account and its token"
    ))
}

/// Returns the name of this node: the kubelet's own default is the name of the host.
fn this_node() -> Result<NodeName, Error> {
    let (name, from) = match std::env::var(NODE_NAME) {
        Ok(name) if !name.is_empty() => (name, "the variable NODE_NAME"),
        _ => {
            let name = std::fs::read_to_string(HOST_NAME).unwrap_or_default();
            (name.trim().to_lowercase(), "the name of the host")
        }
    };
    name.parse().map_err(|e| {
        Error::Setup(format!(
            "{from} is not this node's name in Kubernetes: {e}; set kubernetes.node"
        ))
    })
}

/// Reads a kubeconfig, with the files that it names.
async fn read(path: &Path) -> Result<Config, Error> {
    // The parser's own message has lines of the file.
    let wrong = |e: &dyn fmt::Display| {
        let reason = without_values(&e);
        Error::Setup(format!("kubeconfig {}: {reason}", path.display()))
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
    if let Some(plugin) = plugin(&kubeconfig) {
        return Err(wrong(&format!(
            "it gets its credentials from a program ({plugin}), which the plugin does not run: name a file with a \
             client certificate or a token in kubernetes.kubeconfig"
        )));
    }
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let config = config.map_err(|e| wrong(&e))?;
    check(&config).map_err(|what| wrong(&what))?;
    Ok(config)
}

/// Returns an error for what makes a library panic.
fn check(config: &Config) -> Result<(), &'static str> {
    let server = &config.cluster_url;
    if !matches!(server.scheme_str(), Some("http" | "https")) {
        return Err("its server has to begin with https:// or http://");
    }
    if server.path().len() > LONGEST_PATH {
        return Err("the path of its server has more than 2048 bytes: shorten it");
    }
    match &config.auth_info.token {
        Some(token) if HeaderValue::try_from(token.expose_secret()).is_err() => Err(
            "its token has a character that no HTTP header has, such as a line break: remove it",
        ),
        _ => Ok(()),
    }
}

/// Returns the kind of the program that supplies the credentials of the current context, if there is one.
fn plugin(kubeconfig: &Kubeconfig) -> Option<&'static str> {
    let current = kubeconfig.current_context.as_ref()?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|context| context.name == *current)?;
    let user = context.context.as_ref()?.user.as_ref()?;
    let mut users = kubeconfig.auth_infos.iter();
    let user = users
        .find(|named| named.name == *user)?
        .auth_info
        .as_ref()?;
    match (&user.exec, &user.auth_provider) {
        (Some(_), _) => Some("exec"),
        (_, Some(_)) => Some("auth-provider"),
        (None, None) => None,
    }
}

fn client(config: &Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(KEEPALIVE));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .http1_max_buf_size(BUFFER)
        // Each list and each watch has a connection of its own.
        .pool_max_idle_per_host(0)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, "default"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::api::Resource;
    use super::*;

    #[test]
    fn auto_needs_credentials_and_on_says_so() {
        for (text, is_in_pod, expected) in [
            ("", false, Ok(None)),
            ("", true, Ok(Some(Origin::Pod))),
            ("watch = \"off\"", true, Ok(None)),
            ("watch = \"off\"\nkubeconfig = \"/k\"", true, Ok(None)),
            (
                "kubeconfig = \"/k\"",
                true,
                Ok(Some(Origin::File("/k".into()))),
            ),
            (
                "kubeconfig = \"/k\"",
                false,
                Ok(Some(Origin::File("/k".into()))),
            ),
            ("watch = \"on\"", true, Ok(Some(Origin::Pod))),
            ("watch = \"on\"", false, Err("there are no credentials")),
        ] {
            let config = config::Config::from_toml(&format!("[kubernetes]\n{text}\n"), "test");
            let config = config.unwrap().kubernetes;
            let found = for_watch(&config, origin(&config, is_in_pod));
            match expected {
                Ok(expected) => assert_eq!(found.ok(), Some(expected), "{text}"),
                Err(words) => assert!(found.unwrap_err().to_string().contains(words)),
            }
        }
    }

    async fn read_user(user: &str) -> Result<Config, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             clusters: [{{name: c, cluster: {{server: 'https://192.0.2.1:6443'}}}}]\n\
             contexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: other, user: {{exec: {{command: /bin/x, apiVersion: client.authentication.k8s.io/v1}}}}}}, {{name: u, user: {user}}}]\n"
        );
        std::fs::write(&file, text).unwrap();
        read(file.path()).await
    }

    #[tokio::test]
    async fn credentials_from_programs_are_refused_with_the_remedy() {
        assert!(read_user("{token: abc}").await.is_ok());
        for (user, word) in [
            (
                "{exec: {command: /bin/x, apiVersion: client.authentication.k8s.io/v1}}",
                "exec",
            ),
            ("{auth-provider: {name: gcp, config: {}}}", "auth-provider"),
        ] {
            let error = read_user(user).await.unwrap_err().to_string();
            let names_both = error.contains(word) && error.contains("kubernetes.kubeconfig");
            assert!(names_both, "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_that_no_header_can_have_is_named_and_not_shown() {
        for token in [r"secret\n", r"se\x00cret", r"se\ecret", r"sé\x7fcret"] {
            let error = read_user(&format!("{{token: \"{token}\"}}")).await;
            let error = error.unwrap_err().to_string();
            assert!(error.contains("kubeconfig /") && error.contains("line break"));
            assert!(!error.contains("cret"), "{error}");
        }
        for token in ["abc", "sé", "with space"] {
            let config = read_user(&format!("{{token: \"{token}\"}}")).await;
            assert!(client(&config.unwrap()).is_ok(), "{token}");
        }
    }

    /// The keys of a cluster, of a user and of a context, each with texts that are none of what it takes.
    #[tokio::test]
    async fn no_value_of_a_kubeconfig_makes_a_library_panic() {
        let keys = [
            "cluster.server",
            "cluster.proxy-url",
            "cluster.tls-server-name",
            "cluster.certificate-authority",
            "cluster.certificate-authority-data",
            "user.token",
            "user.tokenFile",
            "user.username",
            "user.password",
            "user.client-certificate",
            "user.client-certificate-data",
            "user.client-key",
            "user.client-key-data",
            "user.as",
            "context.namespace",
            "context.cluster",
            "context.user",
        ];
        let values = [
            "",
            " ",
            "\n",
            "\0",
            "a b",
            "é",
            "::",
            "//",
            "a@b:c@d",
            "https://",
            "http://[::",
            "https://127.0.0.1:99999",
            "https://127.0.0.1:1/\u{1}?a#b",
            "http://u\n:p@127.0.0.1:1",
            "unix:///nowhere",
            "socks5://127.0.0.1:1",
            "/nowhere/file",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFBQUEKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=",
            "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCkFBQUEKLS0tLS1FTkQgUFJJVkFURSBLRVktLS0tLQo=",
            &"x".repeat(100_000),
            &format!("https://127.0.0.1:1/{}", "x".repeat(65_500)),
        ];
        // A client works in a task of its own, on this thread.
        let panics = Arc::new(AtomicUsize::new(0));
        let (counted, thread) = (panics.clone(), std::thread::current().id());
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() == thread {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            hook(panic);
        }));
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut requests = 0;
        for (key, value) in keys.iter().flat_map(|key| values.map(|value| (key, value))) {
            let mut all = serde_json::json!({
                "cluster": {"server": "https://127.0.0.1:1"},
                "user": {},
                "context": {"cluster": "c", "user": "u"},
            });
            let (part, key) = key.split_once('.').unwrap();
            all[part][key] = value.into();
            let kubeconfig = serde_json::json!({
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "a",
                "clusters": [{"name": "c", "cluster": all["cluster"]}],
                "users": [{"name": "u", "user": all["user"]}],
                "contexts": [{"name": "a", "context": all["context"]}],
            });
            std::fs::write(&file, kubeconfig.to_string()).unwrap();
            let Ok(config) = read(file.path()).await else {
                continue;
            };
            let Ok(client) = client(&config) else {
                continue;
            };
            let pods = Resource {
                client,
                path: "/api/v1/pods",
                fields: None,
            };
            let asked = pods.any::<serde_json::Value>();
            let asked = tokio::time::timeout(Duration::from_millis(200), asked).await;
            let is_answered = matches!(asked, Ok(Ok(_)));
            let panics = panics.load(Ordering::Relaxed);
            assert!(!is_answered && panics == 0, "{part}.{key} = {value:?}");
            requests += 1;
        }
        assert!(requests > keys.len(), "{requests}");
    }

    #[tokio::test]
    async fn a_file_that_is_missing_or_wrong_is_named() {
        let missing = read(Path::new("/nowhere/kubeconfig")).await.unwrap_err();
        assert!(
            missing.to_string().contains("/nowhere/kubeconfig"),
            "{missing}"
        );
        let config = read_user("{client-certificate: /nowhere/c, client-key: /nowhere/k}").await;
        assert!(client(&config.unwrap()).is_err());
    }
}
