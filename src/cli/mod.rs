//! The command line: arguments, the commands, and their exit status, which is a contract.

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

use crate::config::{self, Config, ConfigError, Namespace, SocketPath};
use crate::containerd;
use crate::logs::{self, Launch};
use crate::printable::{printable, printable_json};
use configured::Configured;

/// How a command ended. Scripts branch on the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All ready, all well.
    Ready = 0,
    /// Something is not.
    NotReady = 1,
    /// Wrong usage or a wrong configuration.
    Usage = 2,
    /// containerd cannot be reached.
    Unreachable = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Keeps the images of a runtime handler unpacked and labelled in that handler's snapshotter: an NRI
/// plugin for containerd, and the same as a command.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: /etc/nri-unpack/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// containerd's socket
    #[arg(long, global = true, value_name = "SOCKET")]
    containerd_socket: Option<SocketPath>,
    /// The namespace of the images
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<Namespace>,
    /// NRI's socket
    #[arg(long, global = true, value_name = "SOCKET")]
    nri_socket: Option<SocketPath>,
    /// Say more; twice, say everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the plugin
    Run,
    /// Show how images stand in the snapshotters
    Check(check::Arguments),
    /// Make images ready in a snapshotter
    Ensure(ensure::Arguments),
    /// Show each runtime handler, its snapshotter, and where that was read
    Handlers(handlers::Arguments),
    /// Say what on this node stops the plugin from working, and what to do about it
    Doctor(doctor::Arguments),
    /// Print the default configuration, or check a file
    Config(config_command::Arguments),
    /// Have containerd or systemd start the plugin on this node
    Install(install::InstallArguments),
    /// Take away what `install` has written
    Uninstall(install::UninstallArguments),
    /// Print a shell's completions
    Completions(generate::Completions),
    /// Write the man pages
    #[command(hide = true)]
    ManPages(generate::ManPages),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    #[value(alias = "text")]
    Table,
    /// For scripts.
    Json,
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    #[error(
        "containerd cannot be reached at {socket}: {source}; is it running there? (--containerd-socket)"
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

    /// Where nobody answers, the socket is what to look at.
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

/// Reads the arguments, runs the command, and says what went wrong.
pub async fn main() -> Exit {
    let Cli { global, command } = Cli::parse();
    let launched = std::env::var_os("NRI_PLUGIN_SOCKET").is_some();
    let command = match command {
        Some(command) => command,
        None if launched => Command::Run,
        None => {
            // Nothing is lost when the help cannot be printed.
            let _ = Cli::command().print_help();
            return Exit::Usage;
        }
    };
    match dispatch(&global, command).await {
        Ok(exit) => exit,
        Err(failure) => {
            complain(&failure);
            failure.exit()
        }
    }
}

/// On standard error, which may be closed: then the message is lost.
fn complain(what: &impl std::fmt::Display) {
    let what = printable(what);
    let _ = writeln!(std::io::stderr().lock(), "nri-unpack: {what}");
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
            let config = global.for_command()?.said();
            at_socket(&config.clone(), check::check(config, arguments)).await
        }
        Command::Ensure(arguments) => {
            let config = global.for_command()?.said();
            at_socket(&config.clone(), ensure::ensure(config, arguments)).await
        }
        Command::Doctor(arguments) => {
            let configured = global.for_doctor()?;
            doctor::doctor(configured, &arguments).await
        }
        Command::Handlers(arguments) => {
            let config = global.for_command()?.said();
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
    /// The configuration of a command that runs once. It says its errors itself: its log, which is
    /// for `-v`, is silent below an error and always on standard error.
    fn for_command(&self) -> Result<Configured, Failure> {
        let configured = Configured::find(self.config.as_deref())?;
        self.quietly(configured)
    }

    /// The same; where the configuration of a plugin that containerd launches cannot be used, `doctor` says so.
    fn for_doctor(&self) -> Result<Configured, Failure> {
        let configured = match Configured::find(self.config.as_deref()) {
            Err(_) if self.config.is_none() => Configured::find_default()?,
            found => found?,
        };
        self.quietly(configured)
    }

    fn quietly(&self, configured: Configured) -> Result<Configured, Failure> {
        let mut config = self.settle(configured.config);
        let logs = logs::init(Launch::Standalone, self.verbose).map_err(anyhow::Error::from)?;
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

    /// What the arguments say goes before what the file says.
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

/// Prints a line, or a table that ends in one, as it is: what pods and images wrote was made
/// printable before. The reader may be gone, or the disk may be full: that
/// ends a command in order, like any other failure.
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
