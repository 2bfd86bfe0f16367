//! Logging to the configured file, or else to the journal, or else to standard error.
//!
//! The sink and the level can change at run time: a plugin that containerd launches gets its configuration from NRI
//! only after its start. Each line ends with the pairs of its record, `key=value`. The journal also stores each pair as
//! a field, so no key may be `message` or `priority`, which are the journal's own fields. Untrusted text is escaped and
//! bounded before it reaches a sink.
//!
//! In the plugin no line waits for its sink: a thread of its own writes the lines (`queue`). A command writes them at once,
//! in the order of its other output.

mod file;
mod json;
mod queue;
mod record;
mod sink;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt,
    io::Write,
    panic::PanicHookInfo,
    sync::Arc,
    time::Duration,
};

use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};
use parking_lot::RwLock;

use crate::config;
use crate::metrics;
use sink::{Settings, Sink};

pub use sink::{Launch, SinkError};

/// The environment variable that overrides all levels.
const FILTER_VARIABLE: &str = "RUST_LOG";

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
    metrics::panicked();
    log::error!(at:% = at.map_or_else(String::new, ToString::to_string); "panicked: {message}; please report this");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        // Not by a macro, which panics where nothing reads standard error.
        let _ = writeln!(std::io::stderr(), "{backtrace}");
    }
    log::logger().flush();
}

/// A handle of the running log, by which it is configured.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Switch>);

impl Handle {
    /// Changes the sink and the level as configured.
    ///
    /// # Errors
    /// If the configured file cannot be opened, or a thread not be started. Then nothing changes.
    pub fn configure(&self, log: &config::Log) -> Result<(), SinkError> {
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

/// A logger whose sink can be replaced while other threads log.
struct Switch {
    settings: Settings,
    sink: RwLock<Sink>,
}

impl Switch {
    fn new(settings: Settings) -> Self {
        let sink = settings
            .sink(&config::Log::default())
            .expect("no file is opened by default, and a process can start a thread");
        Self {
            settings,
            sink: RwLock::new(sink),
        }
    }

    fn configure(&self, log: &config::Log) -> Result<(), SinkError> {
        let sink = self.settings.sink(log)?;
        // So that lines do not appear later in the old sink than in the new one.
        self.flush();
        *self.sink.write() = sink;
        Ok(())
    }

    fn max_level(&self) -> LevelFilter {
        self.with(Sink::max_level)
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

    /// Other crates log the bytes of messages at this level, with what is secret in them.
    #[test]
    fn the_lowest_level_is_for_our_own_crates() {
        use log::Level::{Debug, Info, Trace, Warn};
        let all = "trace,h2=trace";
        for (filter, target, level, expected) in [
            (None, "nri_unpack::hooks", Trace, true),
            (None, "nri::mux", Trace, true),
            (None, "ttrpc::asynchronous", Warn, true),
            (None, "ttrpc::asynchronous", Info, false),
            (None, "a_crate_that_is_new", Debug, false),
            (None, "h2::codec", Warn, false),
            (Some(all), "nri_unpack::hooks", Trace, true),
            (Some(all), "h2::codec", Debug, true),
            (Some(all), "h2::codec", Trace, false),
            (Some(all), "ttrpc::asynchronous", Trace, false),
            (Some(all), "nri_unpack_of_others", Trace, false),
        ] {
            let switch = switch(0, filter);
            switch
                .configure(&log_config("level = 'trace'"))
                .expect("no file");
            let metadata = Metadata::builder().level(level).target(target).build();
            let enabled = switch.enabled(&metadata);
            assert_eq!(enabled, expected, "{filter:?}, {target}, {level}");
        }
    }

    #[test]
    fn lines_go_to_the_configured_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let to = |name: &str| log_config(&format!("level = 'info'\nfile = {:?}", path(name)));
        let switch = switch(0, None);
        let read = |name: &str| {
            switch.flush();
            std::fs::read_to_string(path(name)).expect("read")
        };

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
        switch.flush();
        let text = std::fs::read_to_string(path).expect("read");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        for line in lines {
            assert!(line.len() < 4096, "{} bytes", line.len());
            assert!(!line.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{line}");
        }
        assert!(text.contains("\\u{1b}[2J\\u{202e}"), "{text}");
    }

    /// A pipe without a reader, as the log of a container whose disk hangs.
    #[test]
    fn a_sink_that_takes_no_lines_holds_up_no_thread() {
        use std::io::{BufRead, BufReader};
        use std::sync::mpsc;

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("a pipe");
        let mut options = std::fs::OpenOptions::new();
        let reader = options.read(true).write(true).open(&path).expect("opened");
        let switch = Arc::new(switch(0, None));
        switch
            .configure(&log_config(&format!("file = {path:?}")))
            .expect("opened");
        let (logged, done) = mpsc::channel();
        let logging = switch.clone();
        std::thread::spawn(move || {
            (0..5000).for_each(|n| write(&logging, log::Level::Info, &format!("line {n}")));
            logged.send(()).expect("the test waits");
        });
        let done = done.recv_timeout(Duration::from_secs(60));
        done.expect("no line waits for its sink");

        let mut lines = BufReader::new(reader)
            .lines()
            .map(|line| line.expect("a line"));
        let mut taken = 0;
        let lost = loop {
            let line = lines.next().expect("an open pipe");
            match line.split_once("log lines were lost") {
                Some((before, _)) => break before.rsplit(' ').nth(1).map(str::to_owned),
                None => taken += 1,
            }
            // The next line finds room in the queue, and says how many did not.
            if taken > 2000 - 1 || taken % 50 == 0 {
                write(&switch, log::Level::Info, "again");
            }
        };
        let lost: usize = lost.expect("a number").parse().expect("a number");
        assert!((1000..5000).contains(&lost), "{lost}");
    }

    #[test]
    fn the_journal_also_gets_the_pairs_as_text() {
        use record::{Owned, Printable};

        let text = |record: &Record<'_>| {
            let mut text = String::new();
            let owned = Owned::new(record, Printable::new(record));
            owned.with(|record| text = record.args().to_string());
            text
        };
        let pairs = [("image", "busybox"), ("layers", "3")];
        let mut record = Record::builder();
        record.key_values(&pairs);
        assert_eq!(
            text(&record.args(format_args!("ready")).build()),
            "ready image=busybox layers=3"
        );
        let forged = [("image", "a\nPRIORITY=0")];
        record.key_values(&forged);
        assert_eq!(
            text(&record.args(format_args!("b\nc")).build()),
            "b\\nc image=a\\nPRIORITY=0"
        );
    }
}
