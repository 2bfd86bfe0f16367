//! Debian packages of another suite, downloaded and verified by the machine's own apt, unpacked and not installed.
//!
//! Knows apt and nothing of what the packages are for. The sources are the machine's own entries for Debian with
//! the suite replaced, so mirrors, proxies and keyrings are whatever the machine trusts already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// One apt source in deb822's words, without its suite.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uris: String,
    /// The `Signed-By` field as it stands, continuation lines of an embedded key included; absent means that apt
    /// checks with all keys in `trusted.gpg.d`.
    signed_by: Option<String>,
}

impl Source {
    /// The deb822 stanza that takes `main` of `suite` from this source.
    fn stanza(&self, suite: &str) -> String {
        let mut stanza = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
            self.uris
        );
        if let Some(keys) = &self.signed_by {
            stanza += &format!("Signed-By: {keys}\n");
        }
        stanza
    }

    /// A source can be Debian's own when it offers the component `main` of exactly the machine's suite. Updates and
    /// security have suites of their own; third parties that borrow the suite's name are told apart by the origin
    /// in their release file, once it is downloaded.
    fn is_candidate(types: &str, suites: &str, components: &str, codename: &str) -> bool {
        let has = |list: &str, word: &str| list.split_whitespace().any(|w| w == word);
        has(types, "deb") && has(suites, codename) && has(components, "main")
    }
}

/// The candidates among the stanzas of a `.sources` file.
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

/// A field's value with its continuation lines. Names are matched without regard to case, as apt does.
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

/// The candidates among the lines of a `sources.list`: `deb [key=value …] URI SUITE COMPONENT…`.
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

/// The machine's candidates, from `sources.list` and `sources.list.d`.
fn machine_sources(codename: &str) -> Result<Vec<Source>> {
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

/// The suite that the machine itself runs, for example `bookworm`.
pub(crate) fn machine_suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let field = |name: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        _ => bail!(
            "this machine is not Debian: the lab takes containerd from Debian's suites, run it on Debian 12 or 13"
        ),
    }
}

/// Downloads packages of one suite; everything it writes is below the directory it is given.
pub(crate) struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    /// Fetches the suite's package lists into `dir`, which exists and is the caller's to delete.
    pub(crate) fn open(name: &str, dir: &Path) -> Result<Self> {
        let suite = Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
        };
        let mut failures = Vec::new();
        for source in machine_sources(&machine_suite()?)? {
            match suite.update(&source) {
                Ok(()) => return Ok(suite),
                Err(error) => failures.push(format!("{}: {error:#}", source.uris)),
            }
        }
        bail!(
            "no source of this machine gives Debian's suite {name}; is the network there? `apt-get update` shows it:\n{}",
            failures.join("\n")
        )
    }

    fn update(&self, source: &Source) -> Result<()> {
        let lists = self.dir.join("lists");
        if lists.exists() {
            fs::remove_dir_all(&lists)?;
        }
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(self.dir.join("cache/archives/partial"))?;
        fs::write(self.dir.join("lab.sources"), source.stanza(&self.name))?;
        self.apt(&["update"])?;
        ensure!(
            is_debians(&lists)?,
            "its release file does not name Debian as its origin"
        );
        Ok(())
    }

    /// Downloads the packages (`name` or `name=version pattern`) and returns the files, in no particular order.
    pub(crate) fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let mut args = vec!["download"];
        args.extend(packages.iter().map(String::as_str));
        self.apt(&args).with_context(|| {
            format!(
                "downloading {} from {}; has the suite moved on? then its version in tests/lab/src/packages.rs has to",
                packages.join(", "),
                self.name
            )
        })?;
        let entries = fs::read_dir(&self.dir)?.collect::<Result<Vec<_>, _>>()?;
        Ok(entries
            .into_iter()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "deb"))
            .collect())
    }

    fn apt(&self, args: &[&str]) -> Result<()> {
        let setting = |name: &str, path: &str| format!("{name}={}", self.dir.join(path).display());
        let mut command = Command::new("apt-get");
        command.current_dir(&self.dir).arg("-qq");
        for option in [
            setting("Dir::Etc::SourceList", "lab.sources"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            setting("Dir::State::Lists", "lists"),
            setting("Dir::Cache", "cache"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The unprivileged user that apt downloads as cannot write below a checkout of root's.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        run(command.args(args))
    }
}

/// True if a release file among these lists is Debian's. Its signature was checked when apt downloaded it.
fn is_debians(lists: &Path) -> Result<bool> {
    for entry in fs::read_dir(lists)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("Release") {
            let release = fs::read_to_string(&path)?;
            return Ok(release.lines().any(|line| line == "Origin: Debian"));
        }
    }
    Ok(false)
}

/// The name in a package file, by which it was asked for.
pub(crate) fn package_name(deb: &Path) -> Option<&str> {
    deb.file_name()?.to_str()?.split('_').next()
}

/// Unpacks a package file without running any of its scripts.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))
}

/// Runs a command to its end; what it said on stderr becomes the error.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!(
            "{program} cannot be run: the lab needs Debian's own tools, run it on Debian 12 or 13"
        )
    })?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
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
