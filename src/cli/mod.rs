//! The command line: arguments, commands, and exit status. The exit status is a stable interface.

mod bars;
mod check;
mod config_command;
mod configured;
mod doctor;
mod dry_run;
mod ensure;
mod generate;
mod handlers;
mod install;
mod purge;
mod run;
mod scope;
mod short;
mod style;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config, ConfigError, Namespace, SocketPath};
use crate::containerd;
use crate::logs::{self, Launch};
use crate::printable::{printable, printable_json};
use configured::Configured;

/// The exit status of a command. The numbers are a stable interface for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All images are ready, or no problem was found.
    Ready = 0,
    /// An image is not ready, or a problem was found.
    NotReady = 1,
    /// Wrong usage or an invalid configuration.
    Usage = 2,
    /// containerd cannot be reached.
    Unreachable = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Keeps the images of a runtime handler unpacked and labelled in that handler's snapshotter, as an NRI
/// plugin for containerd or as a command
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The arguments of all commands.
#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: /etc/nri-unpack/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// containerd's socket
    #[arg(long, global = true, value_name = "SOCKET")]
    containerd_socket: Option<SocketPath>,
    /// containerd namespace of the images
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<Namespace>,
    /// NRI's socket
    #[arg(long, global = true, value_name = "SOCKET")]
    nri_socket: Option<SocketPath>,
    /// Log more; twice, log everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the plugin
    Run,
    /// Show the state of images in snapshotters
    Check(check::Arguments),
    /// Make images ready in a snapshotter
    Ensure(ensure::Arguments),
    /// Show each runtime handler, its snapshotter, and the origin of that
    Handlers(handlers::Arguments),
    /// Find what on this node keeps the plugin from working, and name the remedies
    Doctor(doctor::Arguments),
    /// Print the default configuration, or check a file
    Config(config_command::Arguments),
    /// Set up containerd or systemd to start the plugin on this node
    Install(install::InstallArguments),
    /// Remove what `install` has written
    Uninstall(install::UninstallArguments),
    /// Remove what the plugin has left in containerd, when it leaves the node
    Purge(purge::Arguments),
    /// Print completions for a shell
    Completions(generate::Completions),
    /// Write the man pages
    #[command(hide = true)]
    ManPages(generate::ManPages),
}

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table or text.
    #[default]
    #[value(alias = "text")]
    Table,
    /// JSON, for scripts.
    Json,
}

/// An error that ends a command early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    #[error(
        "containerd cannot be reached at {socket}: {source}; start it, or name its socket with --containerd-socket"
    )]
    Unreachable {
        socket: String,
        source: containerd::Error,
    },
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Usage(_) => Exit::Usage,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Containerd(_) | Self::Other(_) => Exit::NotReady,
        }
    }

    /// Adds the socket to an error that says that containerd cannot be reached.
    fn at(self, socket: &SocketPath) -> Self {
        match self {
            Self::Containerd(source) if source.is_unreachable() => Self::Unreachable {
                socket: socket.to_string(),
                source,
            },
            other => other,
        }
    }
}

impl From<crate::unpack::Error> for Failure {
    fn from(error: crate::unpack::Error) -> Self {
        match error.unreachable() {
            Some(source) => Self::Containerd(source.clone()),
            None => Self::Other(error.into()),
        }
    }
}

impl From<containerd::grpc::SetupError> for Failure {
    fn from(error: containerd::grpc::SetupError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// The limit of a core dump in bytes. With 1 the kernel writes none, and starts no program that collects them; with 0 it
/// starts that program.
const CORE: Option<u64> = Some(1);

/// Prevents core dumps, which would contain credentials of registries and of Kubernetes. An error changes nothing else.
fn prevent_core_dumps() {
    let limit = Rlimit {
        current: CORE,
        maximum: CORE,
    };
    let _ = setrlimit(Resource::Core, limit);
}

/// Allows as many open files as may be. A layer that is being unpacked has a lock, which is a socket, and an image may have
/// more layers than the 1,024 files that most processes begin with. An error changes nothing.
fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Reads the arguments, runs the command, and prints its error.
pub async fn main() -> Exit {
    prevent_core_dumps();
    allow_open_files();
    let Cli { global, command } = Cli::parse();
    let launched = std::env::var_os("NRI_PLUGIN_SOCKET").is_some();
    let command = match command {
        Some(command) => command,
        None if launched => Command::Run,
        None => {
            // An error here has no consequence: the exit status says the same.
            let _ = Cli::command().print_help();
            return Exit::Usage;
        }
    };
    let done = dispatch(&global, command).await;
    log::logger().flush();
    match done {
        Ok(exit) => exit,
        Err(failure) => {
            complain(&failure);
            failure.exit()
        }
    }
}

/// Prints a message on standard error. If that is closed, the message is lost.
fn complain(message: &impl std::fmt::Display) {
    let message = printable(message);
    let _ = writeln!(std::io::stderr().lock(), "nri-unpack: {message}");
}

async fn dispatch(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run => run::run(global).await,
        Command::Config(arguments) => config_command::config(&arguments),
        Command::Install(arguments) => install::install(global, arguments),
        Command::Uninstall(arguments) => install::uninstall(global, arguments),
        Command::Completions(arguments) => generate::completions(&arguments, Cli::command()),
        Command::ManPages(arguments) => generate::man_pages(&arguments, Cli::command()),
        Command::Check(arguments) => {
            let config = global.for_command()?.announced();
            at_socket(&config.clone(), check::check(config, arguments)).await
        }
        Command::Ensure(arguments) => {
            let config = global.for_command()?.announced();
            at_socket(&config.clone(), ensure::ensure(config, arguments)).await
        }
        Command::Purge(arguments) => {
            let config = global.for_command()?.announced();
            at_socket(&config.clone(), purge::purge(config, &arguments)).await
        }
        Command::Doctor(arguments) => {
            let configured = global.for_doctor()?;
            doctor::doctor(configured, &arguments).await
        }
        Command::Handlers(arguments) => {
            let config = global.for_command()?.announced();
            at_socket(&config.clone(), handlers::handlers(config, &arguments)).await
        }
    }
}

async fn at_socket(
    config: &Config,
    command: impl Future<Output = Result<Exit, Failure>>,
) -> Result<Exit, Failure> {
    let done = command.await;
    done.map_err(|failure| failure.at(&config.containerd.socket))
}

impl Global {
    /// Returns the configuration of a command that runs once. Such a command prints its errors itself. Its log
    /// goes to standard error, and has only errors unless `-v` is given.
    fn for_command(&self) -> Result<Configured, Failure> {
        let configured = Configured::find(self.config.as_deref())?;
        self.quietly(configured)
    }

    /// Returns the configuration of `doctor`. If the configuration of a plugin that containerd launches is
    /// invalid, `doctor` runs with the default file and reports the error as a finding.
    fn for_doctor(&self) -> Result<Configured, Failure> {
        let configured = match Configured::find(self.config.as_deref()) {
            Err(_) if self.config.is_none() => Configured::find_default()?,
            found => found?,
        };
        self.quietly(configured)
    }

    fn quietly(&self, configured: Configured) -> Result<Configured, Failure> {
        let mut config = self.settle(configured.config);
        let logs = logs::init(Launch::Command, self.verbose).map_err(anyhow::Error::from)?;
        config.log = config::Log {
            file: None,
            level: config::Level::Error,
            format: config::LogFormat::Text,
        };
        logs.configure(&config.log).map_err(anyhow::Error::from)?;
        Ok(Configured {
            config,
            ..configured
        })
    }

    /// Applies the arguments, which take precedence over the file.
    fn settle(&self, mut config: Config) -> Config {
        let set = |given: &Option<SocketPath>, key: &mut SocketPath| {
            if let Some(given) = given {
                key.clone_from(given);
            }
        };
        set(&self.containerd_socket, &mut config.containerd.socket);
        set(&self.nri_socket, &mut config.nri.socket);
        if let Some(namespace) = &self.namespace {
            config.containerd.namespace.clone_from(namespace);
        }
        config
    }
}

/// Prints text and ends it with one newline. Callers have escaped text from pods and images before. If the
/// output is closed or the disk is full, the error ends the command in order.
fn print(text: &str) -> Result<(), Failure> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    writeln!(std::io::stdout().lock(), "{text}")
        .context("cannot print the result")
        .map_err(Failure::Other)
}

fn print_json(report: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report).map_err(anyhow::Error::from)?;
    print(&printable_json(&json))
}
