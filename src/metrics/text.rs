//! The exposition, in OpenMetrics' text format or in Prometheus' older one.

use prometheus_client::encoding::text::encode;

use super::METRICS;

/// Two formats of the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Prometheus,
}

impl Format {
    /// Returns the format for a client's `Accept` header: the older one unless it has OpenMetrics.
    pub(super) fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    pub(super) fn text(self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &METRICS.registry);
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => prometheus(&text),
        }
    }
}

/// The older format names a counter by its sample, `…_total`, and knows neither units nor infos nor an
/// end.
fn prometheus(text: &str) -> String {
    let mut counters = std::collections::HashSet::new();
    let mut infos = std::collections::HashSet::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        if (words.next(), words.next()) == (Some("#"), Some("TYPE"))
            && let (Some(name), Some(kind)) = (words.next(), words.next())
        {
            match kind {
                "counter" => drop(counters.insert(name)),
                "info" => drop(infos.insert(name)),
                _ => {}
            }
        }
    }
    let mut lines = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match &words[..] {
            ["#", "EOF", ..] | ["#", "UNIT", ..] => {}
            ["#", what, name, rest] if counters.contains(name) => {
                lines.push(format!("# {what} {name}_total {rest}"));
            }
            ["#", "TYPE", name, _] if infos.contains(name) => {
                lines.push(format!("# TYPE {name}_info gauge"));
            }
            ["#", what, name, rest] if infos.contains(name) => {
                lines.push(format!("# {what} {name}_info {rest}"));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_has_its_own_names() {
        let new = "# HELP a Help me.\n# TYPE a counter\na_total 1\n# HELP b_seconds Time.\n\
                   # TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds{x=\"# EOF\"} 2.0\n\
                   # HELP c C.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let old = "# HELP a_total Help me.\n# TYPE a_total counter\na_total 1\n\
                   # HELP b_seconds Time.\n# TYPE b_seconds gauge\nb_seconds{x=\"# EOF\"} 2.0\n\
                   # HELP c_info C.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(prometheus(new), old);
    }

    #[test]
    fn the_older_format_is_the_default() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4", Format::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn the_reference_has_every_metric() {
        use super::super::{api_server_error, ensured, hook, layer_applied, reconciled, unpacked};
        use std::collections::BTreeSet;
        use std::time::Duration;

        hook("CreateContainer", "ready", Duration::ZERO);
        ensured("asked", "reference", "none");
        unpacked("reference", Duration::ZERO);
        layer_applied("reference", 0);
        api_server_error("reference");
        reconciled("reference", true, [("ready", 0)].into_iter());
        let text = Format::Prometheus.text();
        let served = text.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            Some(name)
        });
        let served: BTreeSet<_> = served.collect();
        let page = include_str!("../../docs/reference.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.filter_map(|row| Some(row.split_once('`')?.0));
        let documented: BTreeSet<_> = rows
            .filter(|name| name.starts_with("nri_unpack_"))
            .collect();
        assert_eq!(served, documented);
    }

    /// Dashboards and alerts depend on them.
    #[test]
    fn the_metrics_of_0_1_0_are_there_with_their_labels() {
        let page = include_str!("../../docs/reference.md");
        for metric in include_str!("../../tests/releases/0.1.0/metrics.txt").lines() {
            let mut words = metric.split(' ');
            let begin = format!("| `{}` |", words.next().unwrap_or_default());
            let row = page.lines().find(|row| row.starts_with(&begin));
            let row = row.unwrap_or_else(|| panic!("{begin} is gone"));
            for label in words {
                assert!(row.contains(&format!("`{label}`")), "{label}: {row}");
            }
        }
    }
}
