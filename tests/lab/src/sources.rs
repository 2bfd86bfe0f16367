//! Reads the machine's own apt sources for Debian, to use them for another suite.
//!
//! Reads both formats of apt, deb822 and one-line. The mirrors and keys are those that the machine already
//! trusts; this module names no host.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

/// An apt source in the fields of deb822, without its suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uris: String,
    /// The `Signed-By` field unchanged, with the continuation lines of an embedded key. If it is absent, apt
    /// checks with all keys in `trusted.gpg.d`.
    signed_by: Option<String>,
}

impl Source {
    /// Returns the deb822 stanza that takes `main` of `suite` from this source.
    pub(crate) fn stanza(&self, suite: &str) -> String {
        let mut stanza = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
            self.uris
        );
        if let Some(keys) = &self.signed_by {
            stanza += &format!("Signed-By: {keys}\n");
        }
        stanza
    }

    /// Whether a source may be Debian's own: it offers the component `main` of exactly the machine's suite.
    /// Updates and security have suites of their own. Sources of third parties with the suite's name are
    /// detected by the origin in their release file after its download.
    fn is_candidate(types: &str, suites: &str, components: &str, codename: &str) -> bool {
        let has = |list: &str, word: &str| list.split_whitespace().any(|w| w == word);
        has(types, "deb") && has(suites, codename) && has(components, "main")
    }
}

/// Returns the candidates among the stanzas of a `.sources` file.
fn from_deb822(text: &str, codename: &str) -> Vec<Source> {
    let uncommented: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    uncommented
        .split(|line| line.trim().is_empty())
        .filter_map(|stanza| {
            let field = |name: &str| deb822_field(stanza, name);
            let enabled =
                field("Enabled").is_none_or(|v| !matches!(v.as_str(), "no" | "false" | "0"));
            let candidate = enabled
                && Source::is_candidate(
                    &field("Types")?,
                    &field("Suites")?,
                    &field("Components")?,
                    codename,
                );
            candidate.then_some(Source {
                uris: field("URIs")?,
                signed_by: field("Signed-By"),
            })
        })
        .collect()
}

/// Returns a field's value with its continuation lines. Names are case-insensitive, as for apt.
fn deb822_field(stanza: &[&str], name: &str) -> Option<String> {
    let start = stanza.iter().position(|line| {
        line.split_once(':')
            .is_some_and(|(key, _)| key.eq_ignore_ascii_case(name))
    })?;
    let (_, first) = stanza[start].split_once(':')?;
    let more = stanza[start + 1..]
        .iter()
        .take_while(|line| line.starts_with([' ', '\t']));
    Some(
        std::iter::once(first.trim())
            .chain(more.copied())
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

/// Returns the candidates among the lines of a `sources.list`: `deb [key=value …] URI SUITE COMPONENT…`.
fn from_one_line(text: &str, codename: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let rest = line
                .strip_prefix("deb")?
                .strip_prefix([' ', '\t'])?
                .trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(bracketed) => bracketed.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let components = words.collect::<Vec<_>>().join(" ");
            let candidate = !uri.starts_with("cdrom:")
                && Source::is_candidate("deb", suite, &components, codename);
            let signed_by = options
                .split_whitespace()
                .find_map(|o| o.strip_prefix("signed-by="))
                .map(str::to_owned);
            candidate.then(|| Source {
                uris: uri.to_owned(),
                signed_by,
            })
        })
        .collect()
}

/// Returns the machine's candidates, from `sources.list` and `sources.list.d`.
pub(crate) fn machine_sources(codename: &str) -> Result<Vec<Source>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|e| e.path()));
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => found.extend(from_deb822(&text, codename)),
            Some("list") => found.extend(from_one_line(&text, codename)),
            _ => {}
        }
    }
    ensure!(
        !found.is_empty(),
        "no source in /etc/apt offers the component main of the suite {codename}: the lab derives its own sources \
         from the machine's, so give this machine an ordinary Debian source first"
    );
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uris: &str, signed_by: Option<&str>) -> Source {
        Source {
            uris: uris.to_owned(),
            signed_by: signed_by.map(str::to_owned),
        }
    }

    #[test]
    fn deb822_entries_of_the_machines_own_suite_are_taken() {
        let key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDME\n -----END PGP PUBLIC KEY BLOCK-----";
        let cases: &[(&str, &str, Vec<Source>)] = &[
            (
                "one stanza with a comment inside, updates in the same field",
                "Types: deb\n# a comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
                 Components: main\nSigned-By: /usr/share/keyrings/d.gpg\n",
                vec![source(
                    "http://mirror.test/debian",
                    Some("/usr/share/keyrings/d.gpg"),
                )],
            ),
            (
                "security and a third party are left out",
                "Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\nComponents: main\n\n\
                 Types: deb\nURIs: http://other.test\nSuites: bookworm\nComponents: stable\n",
                vec![],
            ),
            (
                "sources only, or switched off",
                "Types: deb-src\nURIs: http://a.test\nSuites: bookworm\nComponents: main\n\n\
                 Enabled: no\nTypes: deb\nURIs: http://b.test\nSuites: bookworm\nComponents: main\n",
                vec![],
            ),
            (
                "names in another case, a key in the file itself",
                &format!(
                    "types: deb deb-src\nuris: http://a.test\nsuites: bookworm\ncomponents: main\nsigned-by:{key}\n"
                ),
                vec![source("http://a.test", Some(key))],
            ),
        ];
        for (what, text, expected) in cases {
            assert_eq!(&from_deb822(text, "bookworm"), expected, "{what}");
        }
    }

    #[test]
    fn one_line_entries_of_the_machines_own_suite_are_taken() {
        let cases: &[(&str, Vec<Source>)] = &[
            (
                "deb http://a.test/debian trixie main contrib # note",
                vec![source("http://a.test/debian", None)],
            ),
            (
                "deb [arch=amd64 signed-by=/k.gpg] https://a.test/debian trixie main",
                vec![source("https://a.test/debian", Some("/k.gpg"))],
            ),
            ("deb-src http://a.test/debian trixie main", vec![]),
            ("# deb http://a.test/debian trixie main", vec![]),
            ("deb http://a.test/security trixie-security main", vec![]),
            ("deb cdrom:[Debian 13]/ trixie main", vec![]),
            ("deb https://cloud.test/apt sdk-trixie main", vec![]),
            ("deb https://docker.test/linux/debian trixie stable", vec![]),
        ];
        for (line, expected) in cases {
            assert_eq!(&from_one_line(line, "trixie"), expected, "{line}");
        }
    }

    #[test]
    fn a_stanza_names_the_suite_and_keeps_the_keys() {
        assert_eq!(
            source("http://a.test", Some("/k.gpg")).stanza("forky"),
            "Types: deb\nURIs: http://a.test\nSuites: forky\nComponents: main\nSigned-By: /k.gpg\n"
        );
    }
}
