//! `run`: runs the plugin. It connects to NRI's socket itself, or containerd launches it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nri::{Identity, RuntimeInfo};
use tokio::net::UnixStream;

use crate::config::{Config, ConfigError};
use crate::containerd::Containerd;
use crate::containerd::grpc::SetupError;
use crate::daemon::{self, Daemon};
use crate::hooks::{self, Hooks};
use crate::logs::{self, Launch};
use crate::metrics::{self, Readiness};
use crate::node::Node;
use crate::unpack::Role;

use super::{Exit, Failure, Global};

/// The time limit for containerd's answer when `/readyz` is requested.
const ANSWER: Duration = Duration::from_secs(1);

pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
    match nri::connect::launched() {
        Ok(None) => connect(global).await,
        Ok(Some((identity, stream))) => serve_launched(global, identity, stream).await,
        Err(e) => Err(Failure::Usage(e.to_string())),
    }
}

/// Runs the plugin under systemd or from a shell. It connects to NRI's socket, and reconnects.
async fn connect(global: &Global) -> Result<Exit, Failure> {
    let config = global.settle(Config::load(global.config.as_deref())?);
    let logs = logs::init(Launch::Standalone, global.verbose).map_err(anyhow::Error::from)?;
    let configured = logs.configure(&config.log);
    configured.map_err(|e| Failure::Usage(e.to_string()))?;
    let nri = config.nri.clone();
    let node = open(config)?;
    let daemon = Daemon {
        socket: nri.socket.as_ref(),
        identity: Identity {
            name: nri.name,
            index: nri.index,
        },
        node: node.clone(),
    };
    let reload = || {
        let read = Config::load(global.config.as_deref());
        take_over(&node, &logs, read.map(|config| global.settle(config)))
    };
    let run = daemon::until_signal(|stop| daemon.run(stop), reload).await;
    run.map_err(anyhow::Error::from)?;
    Ok(Exit::Ready)
}

/// Opens the plugin's node, and serves metrics if `metrics.listen` is set.
fn open(config: Config) -> Result<Arc<Node>, SetupError> {
    let listen = config.metrics.listen.clone();
    let node = Node::open(config, Role::Daemon)?;
    if let Some(listen) = listen {
        let readiness = Arc::new(Answers(node.containerd.clone()));
        node.in_background(metrics::serve(listen, readiness));
    }
    Ok(node)
}

/// The check of `/readyz`: the plugin is registered with NRI, and containerd answers.
struct Answers(Arc<dyn Containerd>);

#[async_trait]
impl Readiness for Answers {
    async fn check(&self) -> Result<(), String> {
        if !metrics::is_registered() {
            return Err("not registered with the runtime".to_owned());
        }
        match tokio::time::timeout(ANSWER, self.0.version()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(format!("containerd does not answer: {e}")),
            Err(_) => Err(format!("containerd does not answer within {ANSWER:?}")),
        }
    }
}

/// Applies the configuration that was read on SIGHUP. If it cannot be read, the old one stays in force.
fn take_over(
    node: &Arc<Node>,
    logs: &logs::Handle,
    read: Result<Config, ConfigError>,
) -> ControlFlow<()> {
    match read {
        Ok(config) => {
            if let Err(e) = logs.configure(&config.log) {
                log::error!("{e}; log lines go to the same place as before");
            }
            if let Some(remark) = hooks::too_short(&config) {
                log::warn!("{remark}");
            }
            let needs_restart = node.reload(config);
            log::info!("the configuration was read again");
            if !needs_restart.is_empty() {
                log::warn!(keys:% = needs_restart.join(", "); "some changed keys take effect at the next restart only");
            }
        }
        Err(e) => log::error!("{e}; the old configuration stays in force"),
    }
    ControlFlow::Continue(())
}

/// Runs the plugin that containerd has launched: one session, with the configuration that NRI passes in it.
async fn serve_launched(
    global: &Global,
    identity: Identity,
    stream: UnixStream,
) -> Result<Exit, Failure> {
    let logs = logs::init(Launch::ByContainerd, global.verbose).map_err(anyhow::Error::from)?;
    let source = format!("containerd's configuration of {identity}");
    let open = move |runtime: &RuntimeInfo| {
        let config = match runtime.config.trim() {
            "" => Config::load(None)?,
            text => Config::from_toml(text, &source)?,
        };
        if let Err(e) = logs.configure(&config.log) {
            log::error!("{e}");
        }
        Ok(open(config)?)
    };
    let hooks = Hooks::new(Box::new(open));
    let serve = |stop| daemon::serve_launched(stream, identity, Arc::clone(&hooks), stop);
    let reload = || {
        log::warn!(
            "SIGHUP is ignored: the configuration comes from containerd, and is read again when containerd is restarted"
        );
        ControlFlow::Continue(())
    };
    let served = daemon::until_signal(serve, reload).await;
    match served.map_err(anyhow::Error::from)? {
        Ok(()) => Ok(Exit::Ready),
        Err(e) => {
            log::error!("{e}");
            Err(Failure::Other(e.into()))
        }
    }
}
