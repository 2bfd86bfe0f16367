//! The sinks of the log: a file, the journal, or standard error; and which one the configuration and the launch choose.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use super::file::LogFile;
use super::json;
use super::queue::Queue;
use super::record::{Owned, Printable};
use crate::config::{self, Level, LogFormat};
use crate::metrics;

/// The identifier for `journalctl -t`. It does not depend on the file name in NRI's plugin directory.
const IDENTIFIER: &str = "nri-unpack";

/// The longest wait for lines that are not written yet, when the program ends or opens another sink: a sink that hangs
/// must hold up neither.
const FLUSH: Duration = Duration::from_millis(500);

/// What was started, and by what. It decides where standard error goes, and whether a line may wait for its sink.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Launch {
    /// A command: standard error goes to the journal or a terminal.
    Command,
    /// The plugin, by a service manager or a user: standard error goes to the journal or a terminal.
    Standalone,
    /// The plugin, by containerd, from NRI's plugin directory: standard error is discarded.
    ByContainerd,
}

/// Why the configured sink cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The log file that the configuration names cannot be opened.
    #[error(
        "cannot open the log file {}: {reason}; correct log.file, or create its folder",
        path.display()
    )]
    File {
        /// The configured path.
        path: PathBuf,
        /// The system's error.
        reason: io::Error,
    },
    /// The thread that writes the lines cannot be started.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
}

/// The settings that are fixed at the start of the program.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) launch: Launch,
    /// The number of levels that are added to the configured one.
    pub(super) verbosity: u8,
    /// The filter of the environment, which overrides the level.
    pub(super) filter: Option<String>,
}

/// The crates of this program. Of all others only warnings and errors are logged, unless `RUST_LOG` is set.
const OWN: [&str; 2] = ["nri", "nri_unpack"];

/// Crates that log each frame and each event of a connection. `RUST_LOG` can name them.
const QUIET: [&str; 8] = [
    "h2",
    "hyper",
    "hyper_util",
    "kube_client",
    "rustls",
    "tonic",
    "tower",
    // The spans of the others: a hundred thousand lines in ten seconds.
    "tracing",
];

impl Settings {
    fn level(&self, configured: Level) -> LevelFilter {
        let configured = match configured {
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        };
        let levels = LevelFilter::iter().skip_while(|level| *level != configured);
        levels
            .take(usize::from(self.verbosity) + 1)
            .last()
            .unwrap_or(configured)
    }

    pub(super) fn sink(&self, log: &config::Log) -> Result<Sink, SinkError> {
        let mut lines = env_logger::Builder::new();
        let level = self.level(log.level);
        lines.format_timestamp_millis();
        for name in QUIET {
            lines.filter_module(name, LevelFilter::Off);
        }
        if let Some(filter) = &self.filter {
            lines.filter_level(level).parse_filters(filter);
        } else {
            lines.filter_level(level.min(LevelFilter::Warn));
            for name in OWN {
                lines.filter_module(name, level);
            }
        }
        if log.format == LogFormat::Json {
            lines.format(json::line);
        }
        let mut text = None;
        if let Some(path) = &log.file {
            let file = LogFile::open(path.as_ref()).map_err(|reason| SinkError::File {
                path: path.as_ref().to_owned(),
                reason,
            })?;
            text = Some(self.pipe(&mut lines, file)?);
        }
        let to_journal =
            log.file.is_none() && (self.launch == Launch::ByContainerd || connected_to_journal());
        let journal = if to_journal { journal() } else { None };
        // A terminal shows colours, and its user can go on.
        if text.is_none() && journal.is_none() && self.is_queued() && !io::stderr().is_terminal() {
            text = Some(self.pipe(&mut lines, io::stderr())?);
        }
        Ok(Sink {
            lines: lines.build(),
            text: text.flatten(),
            journal: journal.map(|to| self.journal(to)).transpose()?,
        })
    }

    /// Whether lines must not wait for their sink.
    fn is_queued(&self) -> bool {
        self.launch != Launch::Command
    }

    /// Makes the lines go to `to`. Returns the queue in front of it, if they must not wait for it.
    fn pipe(
        &self,
        lines: &mut env_logger::Builder,
        mut to: impl Write + Send + 'static,
    ) -> Result<Option<Arc<Queue<Vec<u8>>>>, SinkError> {
        lines.write_style(env_logger::WriteStyle::Never);
        if !self.is_queued() {
            lines.target(env_logger::Target::Pipe(Box::new(to)));
            return Ok(None);
        }
        // There is no place to report an error of a write.
        let queue = Queue::new(move |line: Vec<u8>| drop(to.write_all(&line)));
        let queue = Arc::new(queue.map_err(SinkError::Thread)?);
        lines.target(env_logger::Target::Pipe(Box::new(Lines(queue.clone()))));
        Ok(Some(queue))
    }

    fn journal(&self, to: JournalLog) -> Result<Journal, SinkError> {
        if !self.is_queued() {
            return Ok(Journal::AtOnce(to));
        }
        let queue = Queue::new(move |record: Owned| record.with(|record| to.log(record)));
        Ok(Journal::Queued(queue.map_err(SinkError::Thread)?))
    }
}

/// Returns the journal, if its socket can be opened.
fn journal() -> Option<JournalLog> {
    let journal = JournalLog::empty().ok()?;
    Some(journal.with_syslog_identifier(IDENTIFIER.to_owned()))
}

/// The end of a logger whose lines go into a queue. A line is one write.
struct Lines(Arc<Queue<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.0.push(line.to_owned()) {
            metrics::log_line_lost();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a record may have the bytes of a message, such as the annotations of a pod or credentials. Other crates log them
/// at their lowest level, which is therefore never written.
fn has_messages(record: &Metadata<'_>) -> bool {
    let of_crate = record.target().split("::").next().unwrap_or_default();
    record.level() == log::Level::Trace && !OWN.contains(&of_crate)
}

/// The journal, or the queue in front of it.
enum Journal {
    AtOnce(JournalLog),
    Queued(Queue<Owned>),
}

/// The target of the log. `lines` also filters the records for the journal.
pub(super) struct Sink {
    lines: env_logger::Logger,
    /// The queue that `lines` writes into.
    text: Option<Arc<Queue<Vec<u8>>>>,
    journal: Option<Journal>,
}

impl Sink {
    fn write(&self, record: &Record<'_>) {
        let printable = Printable::new(record);
        let Some(journal) = &self.journal else {
            return printable.with(record, |record| self.lines.log(record));
        };
        let record = Owned::new(record, printable);
        match journal {
            Journal::AtOnce(journal) => record.with(|record| journal.log(record)),
            Journal::Queued(queue) => {
                if !queue.push(record) {
                    metrics::log_line_lost();
                }
            }
        }
    }

    /// Returns the least severe level that is logged.
    pub(super) fn max_level(&self) -> LevelFilter {
        self.lines.filter()
    }

    /// Says how many lines were lost, once there is room for that.
    fn report_lost(&self) {
        let of_text = self.text.as_ref().map_or(0, |queue| queue.take_lost());
        let lost = match &self.journal {
            Some(Journal::Queued(queue)) => queue.take_lost(),
            _ => of_text,
        };
        if lost > 0 {
            let mut record = Record::builder();
            record.level(log::Level::Warn).target(module_path!());
            self.write(
                &record
                    .args(format_args!(
                        "{lost} log lines were lost: the journal, the log file or standard error did not take them in time"
                    ))
                    .build(),
            );
        }
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.lines.enabled(metadata) && !has_messages(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.lines.matches(record) && !has_messages(record.metadata()) {
            self.report_lost();
            self.write(record);
        }
    }

    fn flush(&self) {
        self.lines.flush();
        if let Some(queue) = &self.text {
            queue.flush(FLUSH);
        }
        if let Some(Journal::Queued(queue)) = &self.journal {
            queue.flush(FLUSH);
        }
    }
}
