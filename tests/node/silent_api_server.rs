//! An API server that takes connections or requests and does not answer: it holds up nothing but itself. Pods, hooks, the
//! work ahead, commands, the metrics and a reload go on, and the plugin ends at once. When it answers again, the watch goes
//! on and the startup taint is removed, without a restart.
//!
//! Without `NRI_UNPACK_FAULTS` three silences are tried, chosen by `NRI_UNPACK_SEED`; with it all. `NRI_UNPACK_SILENCE` is the
//! least number of seconds of each: with 40, what was not answered has been given up by the plugin before.

mod doctor;
mod names;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use lab::{ApiServer, Ignored, Mode, Version};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::after_pull::took;
use crate::bound::{CLASS, NODE, own_image, pod};
use crate::faults::api_server::{Kind, PLUGIN};
use crate::faults::chosen;
use crate::metrics::get;
use crate::startup_taint::{TAINT, kubernetes_node, taint, until_untainted};
use crate::support::{DEFAULT_HOOKS, Node, PATIENCE, handler};

/// The environment variable with the least duration of a silence, in seconds.
const SILENCE: &str = "NRI_UNPACK_SILENCE";
const DEFAULT_SILENCE: u64 = 1;

/// One of so many silences is tried in a short run.
const SHARE: usize = 5;

/// The longest time of a hook: the default of `hooks.wait`, and a margin for a loaded machine.
const LONGEST_HOOK: Duration = Duration::from_millis(500 + 700);

/// The longest time of what needs no API server.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The longest time in which the plugin ends.
const LONGEST_END: Duration = Duration::from_secs(3);

/// Where the API server stops to answer.
#[derive(Clone, Debug)]
enum Silence {
    /// It reads requests of this kind, and sends nothing, or a part of the answer.
    Request(Kind, Mode),
    /// It does nothing with new connections.
    Connection(Ignored),
}

impl Silence {
    fn all() -> Vec<Self> {
        let requests = PLUGIN.into_iter().flat_map(|kind| {
            [Mode::Silent, Mode::HalfSilent].map(|mode| Self::Request(kind, mode))
        });
        let connections = [Ignored::Connect, Ignored::Accept, Ignored::Handshake];
        requests.chain(connections.map(Self::Connection)).collect()
    }

    /// Starts a server that never was silent.
    async fn server(&self) -> Result<ApiServer> {
        match self {
            Self::Connection(Ignored::Handshake) => ApiServer::start_with_tls().await,
            _ => ApiServer::start().await,
        }
    }

    /// Begins the silence. Returns whether it has been met, for those of requests.
    fn begin(&self, server: &ApiServer) -> Result<Option<Arc<AtomicBool>>> {
        match self.clone() {
            Self::Request(kind, mode) => {
                let met = Arc::<AtomicBool>::default();
                let meets = met.clone();
                server.disturb(move |request| {
                    let is_met = Kind::of(request) == Some(kind);
                    meets.fetch_or(is_met, Ordering::Relaxed);
                    is_met.then_some(mode)
                });
                Ok(Some(met))
            }
            Self::Connection(what) => server.ignore(what).map(|()| None),
        }
    }
}

/// Returns the least duration of a silence.
fn duration() -> Result<Duration> {
    let seconds = match std::env::var(SILENCE) {
        Ok(text) => text.parse().with_context(|| format!("{SILENCE}={text}"))?,
        Err(_) => DEFAULT_SILENCE,
    };
    Ok(Duration::from_secs(seconds))
}

impl Node {
    /// Returns a configuration with the watch and the taint at this server, with its client's certificate if it needs one.
    fn at(&self, server: &ApiServer) -> Result<String> {
        let user = match server.certificate() {
            None => "{}".to_owned(),
            Some((certificate, key)) => {
                let [certificate, key] = [certificate, key].map(|it| BASE64_STANDARD.encode(it));
                format!("{{client-certificate-data: {certificate}, client-key-data: {key}}}")
            }
        };
        let port = server
            .address()
            .rsplit_once(':')
            .map_or("", |(_, port)| port);
        let path = self.lab.path(&format!("kubeconfig-{port}"));
        std::fs::write(&path, server.kubeconfig(&user))?;
        Ok(format!(
            "[kubernetes]\nkubeconfig = {path:?}\nnode = \"{NODE}\"\nstartup_taint = \"{TAINT}\"\n"
        ))
    }

    /// Checks that everything that needs no API server goes on.
    async fn assert_goes_on(&mut self, handler: &str, n: usize, config: &str) -> Result<()> {
        let log = self.log.from_now();
        let asked = own_image(&format!("registry.test/lab/asked:{n}"));
        self.pull(&asked).await?;
        let annotation = [("nri-unpack/images", asked.name())];
        let sandbox = self.cri.run_pod(handler, &annotation).await?;
        let container = self.cri.create_container(&sandbox, asked.name(), &[], &[]);
        container.await?;
        self.cri.remove_pod(&sandbox).await?;
        let answers = "nri_unpack::hooks] answers hook=";
        log.wait_for(&format!("{answers}CreateContainer"), PATIENCE)
            .await?;
        for hook in log.lines_with(answers) {
            ensure!(took(&hook)? < LONGEST_HOOK, "{hook}");
        }
        // The queue of what is asked for, and a command.
        timeout(PATIENCE, self.wait_image(&asked, handler)).await??;
        let began = Instant::now();
        self.command(&["check"])?;
        ensure!(began.elapsed() < AT_ONCE, "`check`: {:?}", began.elapsed());
        let metrics = UnixStream::connect(self.lab.socket_path("metrics.sock")?).await?;
        let (status, _, _) = timeout(AT_ONCE, get(metrics, "/metrics", "*/*")).await??;
        ensure!(status == 200, "the metrics: {status}");
        self.plugin.as_ref().context("serving")?.reload(config)?;
        log.wait_for("the configuration was read again", AT_ONCE)
            .await?;
        Ok(())
    }

    /// Ends the plugin, while nothing at the API server is answered.
    async fn assert_ends(&mut self, server: &ApiServer) -> Result<()> {
        let requests = server.requests().len();
        server.disturb(|_| Some(Mode::Silent));
        server.cut();
        let deadline = Instant::now() + PATIENCE;
        while server.requests().len() == requests {
            ensure!(Instant::now() < deadline, "no further request");
            sleep(Duration::from_millis(10)).await;
        }
        self.ends().await
    }

    /// Ends the plugin.
    async fn ends(&mut self) -> Result<()> {
        let began = Instant::now();
        self.plugin.as_mut().context("serving")?.stop().await?;
        let took = began.elapsed();
        println!("  the plugin ended in {took:?}");
        ensure!(took < LONGEST_END, "the plugin ended only after {took:?}");
        Ok(())
    }

    /// Tries one silence, from the start of the plugin on.
    async fn goes_on_beside(&mut self, handler: &str, n: usize, silence: &Silence) -> Result<()> {
        let server = silence.server().await?;
        server.put_class(CLASS, handler);
        server.put_node(kubernetes_node(&[taint(TAINT, "NoSchedule")])?);
        let image = |what: &str| own_image(&format!("registry.test/lab/{what}:{n}"));
        let images = ["before", "meanwhile", "after"].map(image);
        for image in &images {
            self.store.put_image(image).await?;
        }
        let bind = |i: usize| {
            let uid = format!("{n}-{i}");
            server.put_pod(pod(&uid, Some(CLASS), &[images[i].name()]));
        };
        bind(0);
        let socket = self.lab.socket_path("metrics.sock")?;
        let metrics = format!("[metrics]\nlisten = \"unix:{}\"\n", socket.display());
        let config = self.config(&(self.at(&server)? + &metrics));
        // The duration of each hook is logged.
        let config = config.replace("level = \"debug\"", "level = \"trace\"");
        let met = silence.begin(&server)?;
        let began = Instant::now();
        self.serve_config(&config).await?;
        let log = self.log.clone();
        let deadline = began + PATIENCE;
        while met.as_ref().is_some_and(|met| !met.load(Ordering::Relaxed)) {
            ensure!(Instant::now() < deadline, "not asked for");
            sleep(Duration::from_millis(10)).await;
        }
        self.assert_goes_on(handler, n, &config).await?;
        bind(1);
        sleep_until(began + duration()?).await;
        if silence.keeps_the_taint() {
            ensure!(!server.taints(NODE).is_empty(), "the taint was removed");
        }
        server.calm();
        bind(2);
        let again = Instant::now();
        for image in &images {
            self.wait_image(image, handler).await?;
        }
        until_untainted(&server).await?;
        println!("  works again after {:?}", again.elapsed());
        for what in [
            "watch at the API server failed",
            "startup taint cannot be removed",
        ] {
            let said = log.lines_with(what);
            let said: Vec<_> = said.iter().filter(|line| line.contains("WARN")).collect();
            // The watch is that of two kinds.
            ensure!(said.len() <= 2, "{said:#?}");
        }
        self.assert_nothing_left(handler).await?;
        self.assert_ends(&server).await?;
        std::fs::write(log.path(), "")?;
        Ok(())
    }
}

impl Silence {
    /// Whether the taint cannot be removed meanwhile.
    fn keeps_the_taint(&self) -> bool {
        match self {
            Self::Request(Kind::Node, _) | Self::Connection(_) => true,
            // With a half of the answer it has been removed.
            Self::Request(Kind::Patch, mode) => *mode == Mode::Silent,
            Self::Request(..) => false,
        }
    }
}

async fn holds_up_nothing(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.hooks = DEFAULT_HOOKS;
    let handler = handler(version);
    let silences = Silence::all();
    for n in chosen(silences.len(), SHARE)? {
        println!("{:?}", silences[n]);
        let tried = node.goes_on_beside(handler, n, &silences[n]).await;
        tried.with_context(|| format!("{:?}", silences[n]))?;
    }
    let closed = node.lab.log().lines_with("closing plugin");
    ensure!(closed.is_empty(), "{closed:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_up_nothing_on_2_1() -> Result<()> {
    holds_up_nothing(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn holds_up_nothing_on_1_7() -> Result<()> {
    holds_up_nothing(Version::V1_7).await
}
