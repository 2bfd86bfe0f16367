//! Logging to the configured file, or else to the journal, or else to standard error.
//!
//! The sink and the level can change at run time: a plugin that containerd launches gets its configuration from NRI
//! only after its start. Each line ends with the pairs of its record, `key=value`. The journal also stores each pair as
//! a field, so no key may be `message` or `priority`, which are the journal's own fields. Untrusted text is escaped and
//! bounded before it reaches a sink.

mod file;
mod json;
mod record;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt, io,
    panic::PanicHookInfo,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use log::{
    LevelFilter, Log, Metadata, Record, SetLoggerError,
    kv::{self, Key, Value, VisitSource},
};
use parking_lot::RwLock;
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::config::{self, Level, LogFormat};
use file::LogFile;
use record::Printable;

/// The identifier for `journalctl -t`. It does not depend on the file name in NRI's plugin directory.
const IDENTIFIER: &str = "nri-unpack";

/// The environment variable that overrides all levels.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// What started the program. It decides where standard error goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Launch {
    /// A service manager or a user: standard error goes to the journal or a terminal.
    Standalone,
    /// containerd, from NRI's plugin directory: standard error is discarded.
    ByContainerd,
}

/// The log file that the configuration names cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the log file {}: {reason}; correct log.file, or create its folder",
    path.display()
)]
pub struct LogFileError {
    path: PathBuf,
    reason: io::Error,
}

/// Starts logging for the whole process, at the default level raised by `verbosity`.
///
/// # Errors
/// If the process has a logger already.
pub fn init(launch: Launch, verbosity: u8) -> Result<Handle, SetLoggerError> {
    let filter = std::env::var(FILTER_VARIABLE).ok();
    let switch = Arc::new(Switch::new(Settings {
        launch,
        verbosity,
        filter,
    }));
    log::set_boxed_logger(Box::new(Arc::clone(&switch)))?;
    std::panic::set_hook(Box::new(log_panic));
    log::set_max_level(switch.max_level());
    Ok(Handle(switch))
}

/// Logs a panic. Its message may quote untrusted text, so it must go through the log.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or(payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("without a message");
    let at = panic.location();
    log::error!(at:% = at.map_or_else(String::new, ToString::to_string); "panicked: {message}; please report this");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        eprintln!("{backtrace}");
    }
}

/// A handle of the running log, by which it is configured.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Switch>);

impl Handle {
    /// Changes the sink and the level as configured.
    ///
    /// # Errors
    /// If the configured file cannot be opened. Then nothing changes.
    pub fn configure(&self, log: &config::Log) -> Result<(), LogFileError> {
        self.0.configure(log)?;
        log::set_max_level(self.0.max_level());
        Ok(())
    }
}

/// Returns a duration in milliseconds, to the microsecond, for a key that ends in `_ms`. It is logged as a number, so
/// that tools can compute with it.
pub fn milliseconds(duration: Duration) -> f64 {
    // `f64` is exact for all durations that occur here.
    duration.as_micros() as f64 / 1000.0
}

/// The settings that are fixed at the start of the program.
#[derive(Debug)]
struct Settings {
    launch: Launch,
    /// The number of levels that are added to the configured one.
    verbosity: u8,
    /// The filter of the environment, which overrides the level.
    filter: Option<String>,
}

/// Crates that log each frame and each event of a connection. `RUST_LOG` can name them.
const QUIET: [&str; 7] = [
    "h2",
    "hyper",
    "hyper_util",
    "kube_client",
    "rustls",
    "tonic",
    "tower",
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

    fn sink(&self, log: &config::Log) -> Result<Sink, LogFileError> {
        let mut lines = env_logger::Builder::new();
        lines
            .filter_level(self.level(log.level))
            .format_timestamp_millis();
        for name in QUIET {
            lines.filter_module(name, LevelFilter::Off);
        }
        if let Some(filter) = &self.filter {
            lines.parse_filters(filter);
        }
        if log.format == LogFormat::Json {
            lines.format(json::line);
        }
        if let Some(path) = &log.file {
            let file = LogFile::open(path.as_ref()).map_err(|reason| LogFileError {
                path: path.as_ref().to_owned(),
                reason,
            })?;
            lines.target(env_logger::Target::Pipe(Box::new(file)));
            lines.write_style(env_logger::WriteStyle::Never);
        }
        let to_journal =
            log.file.is_none() && (self.launch == Launch::ByContainerd || connected_to_journal());
        Ok(Sink {
            lines: lines.build(),
            journal: if to_journal { journal() } else { None },
        })
    }
}

/// Returns the journal, if its socket can be opened.
fn journal() -> Option<JournalLog> {
    let journal = JournalLog::empty().ok()?;
    Some(journal.with_syslog_identifier(IDENTIFIER.to_owned()))
}

/// The target of the log. `lines` also filters the records for the journal.
struct Sink {
    lines: env_logger::Logger,
    journal: Option<JournalLog>,
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.lines.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.lines.matches(record) {
            return;
        }
        Printable::new(record).with(record, |record| match &self.journal {
            None => self.lines.log(record),
            Some(journal) => {
                let text = TextWithPairs(record);
                journal.log(&record.to_builder().args(format_args!("{text}")).build());
            }
        });
    }

    fn flush(&self) {
        self.lines.flush();
    }
}

/// A logger whose sink can be replaced while other threads log.
struct Switch {
    settings: Settings,
    sink: RwLock<Sink>,
}

impl Switch {
    fn new(settings: Settings) -> Self {
        let sink = settings
            .sink(&config::Log::default())
            .expect("no file is opened by default");
        Self {
            settings,
            sink: RwLock::new(sink),
        }
    }

    fn configure(&self, log: &config::Log) -> Result<(), LogFileError> {
        let sink = self.settings.sink(log)?;
        *self.sink.write() = sink;
        Ok(())
    }

    fn max_level(&self) -> LevelFilter {
        self.with(|sink| sink.lines.filter())
    }

    fn with<T>(&self, use_sink: impl FnOnce(&Sink) -> T) -> T {
        use_sink(&self.sink.read())
    }
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.with(|sink| sink.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        self.with(|sink| sink.log(record));
    }

    fn flush(&self) {
        self.with(Log::flush);
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The message of a record and its pairs as text, since `journalctl` does not show fields.
struct TextWithPairs<'a>(&'a Record<'a>);

impl fmt::Display for TextWithPairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Pairs<'a, 'f>(&'a mut fmt::Formatter<'f>);

        impl<'kvs> VisitSource<'kvs> for Pairs<'_, '_> {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
                Ok(write!(self.0, " {key}={value}")?)
            }
        }

        self.0.args().fmt(f)?;
        self.0
            .key_values()
            .visit(&mut Pairs(f))
            .map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn switch(verbosity: u8, filter: Option<&str>) -> Switch {
        let filter = filter.map(str::to_owned);
        Switch::new(Settings {
            launch: Launch::Standalone,
            verbosity,
            filter,
        })
    }

    fn log_config(text: &str) -> config::Log {
        Config::from_toml(&format!("[log]\n{text}\n"), "c.toml")
            .expect("valid")
            .log
    }

    fn write(switch: &Switch, level: log::Level, message: &str) {
        let pairs = [("image", "busybox"), ("layers", "3")];
        let mut record = Record::builder();
        record
            .level(level)
            .target("nri_unpack::test")
            .key_values(&pairs);
        switch.log(&record.args(format_args!("{message}")).build());
    }

    #[test]
    fn the_level_depends_on_configuration_verbosity_and_filter() {
        use LevelFilter::{Debug, Error, Info, Trace, Warn};
        let cases = [
            ("", 0, None, Info),
            ("", 1, None, Debug),
            ("", 2, None, Trace),
            ("", 255, None, Trace),
            ("level = 'error'", 0, None, Error),
            ("level = 'error'", 1, None, Warn),
            ("level = 'trace'", 1, None, Trace),
            ("level = 'trace'", 1, Some("warn"), Warn),
            ("level = 'warn'", 0, Some("nri_unpack=debug"), Debug),
        ];
        for (text, verbosity, filter, expected) in cases {
            let switch = switch(verbosity, filter);
            switch.configure(&log_config(text)).expect("no file");
            assert_eq!(
                switch.max_level(),
                expected,
                "{text:?}, -v {verbosity}, {filter:?}"
            );
        }
    }

    #[test]
    fn lines_go_to_the_configured_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let to = |name: &str| log_config(&format!("level = 'info'\nfile = {:?}", path(name)));
        let read = |name: &str| std::fs::read_to_string(path(name)).expect("read");
        let switch = switch(0, None);

        std::fs::write(path("one"), "existing line\n").expect("written");
        switch.configure(&to("one")).expect("opened");
        write(&switch, log::Level::Info, "ready");
        write(&switch, log::Level::Debug, "not logged");
        switch.configure(&to("two")).expect("opened");
        write(&switch, log::Level::Warn, "second file");

        let error = switch
            .configure(&to("none/three"))
            .expect_err("no such folder")
            .to_string();
        assert_eq!(
            error,
            format!(
                "cannot open the log file {}: No such file or directory (os error 2); \
                 correct log.file, or create its folder",
                path("none/three").display()
            )
        );
        write(&switch, log::Level::Error, "same file");

        let without_times = |text: String| -> Vec<String> {
            text.lines()
                .map(|line| {
                    line.split_once("Z ")
                        .map_or(line, |(_, rest)| rest)
                        .to_owned()
                })
                .collect()
        };
        assert_eq!(
            without_times(read("one")),
            [
                "existing line",
                "INFO  nri_unpack::test] ready image=busybox layers=3"
            ]
        );
        assert_eq!(
            without_times(read("two")),
            [
                "WARN  nri_unpack::test] second file image=busybox layers=3",
                "ERROR nri_unpack::test] same file image=busybox layers=3"
            ]
        );
    }

    #[test]
    fn a_record_is_one_line_of_bounded_length() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let switch = switch(0, None);
        for format in ["text", "json"] {
            let config = format!("format = {format:?}\nfile = {path:?}");
            switch.configure(&log_config(&config)).expect("opened");
            let forged = "a\n[2026-01-01T00:00:00Z ERROR x] forged\u{1b}[2J\u{202e}\u{9b}";
            write(&switch, log::Level::Warn, forged);
            write(&switch, log::Level::Warn, &"\u{1b}".repeat(200_000));
        }
        let text = std::fs::read_to_string(path).expect("read");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        for line in lines {
            assert!(line.len() < 4096, "{} bytes", line.len());
            assert!(!line.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{line}");
        }
        assert!(text.contains("\\u{1b}[2J\\u{202e}"), "{text}");
    }

    #[test]
    fn the_journal_also_gets_the_pairs_as_text() {
        let pairs = [("image", "busybox"), ("layers", "3")];
        let mut record = Record::builder();
        record.key_values(&pairs);
        assert_eq!(
            TextWithPairs(&record.args(format_args!("ready")).build()).to_string(),
            "ready image=busybox layers=3"
        );
        let forged = [("image", "a\nPRIORITY=0")];
        record.key_values(&forged);
        let record = record.args(format_args!("b\nc")).build();
        let text =
            Printable::new(&record).with(&record, |record| TextWithPairs(record).to_string());
        assert_eq!(text, "b\\nc image=a\\nPRIORITY=0");
    }
}
