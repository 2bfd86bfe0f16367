//! The grammar of image references, as containerd reads them (the distribution project's `reference`
//! package): `[registry/]repository[:tag][@digest]`.
//!
//! The crate that has this grammar compiles it to a regular expression, which takes 50 ms and holds 12 MiB
//! for the life of the process. The tests compare the two.

use std::fmt;
use std::net::Ipv6Addr;

/// The default registry, the only one whose name never has a port.
pub(crate) const DOCKER_HUB: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// The default registry's former name.
const FORMER_REGISTRY: &str = "index.docker.io";

/// The namespace of the default registry's images that are named without one.
const DEFAULT_NAMESPACE: &str = "library";

/// In bytes.
const LONGEST_REPOSITORY: usize = 255;

/// In bytes.
const LONGEST_TAG: usize = 128;

/// A reference, with the registry and the tag that containerd adds to a short one.
pub(super) struct Reference<'a> {
    registry: &'a str,
    /// The default namespace, where it was left out.
    namespace: Option<&'static str>,
    repository: &'a str,
    /// It or `digest` is set.
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// Returns `None` if `text` is not a reference.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest)),
            None => (text, None),
        };
        let last_part = text.rfind('/').unwrap_or(0);
        let (name, tag) = match text[last_part..].find(':') {
            Some(colon) => (
                &text[..last_part + colon],
                Some(&text[last_part + colon + 1..]),
            ),
            None => (text, None),
        };
        let (registry, repository) = split_registry(name)?;
        let namespace = registry == DOCKER_HUB && !repository.contains('/');
        let valid = repository.len() <= LONGEST_REPOSITORY
            && repository.split('/').all(is_path_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest);
        let default_tag = digest.is_none().then_some(DEFAULT_TAG);
        valid.then_some(Self {
            registry,
            namespace: namespace.then_some(DEFAULT_NAMESPACE),
            repository,
            tag: tag.or(default_tag),
            digest,
        })
    }

    /// Returns registry and repository: `docker.io/library/busybox`.
    pub(super) fn name(&self) -> String {
        let parts = [Some(self.registry), self.namespace, Some(self.repository)];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        parts.join("/")
    }

    /// Returns a reference with tag and digest as one with the digest alone; `None` for others.
    pub(super) fn by_digest(&self) -> Option<String> {
        let digest = self.tag.and(self.digest)?;
        Some(format!("{}@{digest}", self.name()))
    }
}

impl fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits a name into registry and repository. Its first part is a registry if it has a dot, a port or an upper-case
/// letter, or is `localhost`.
fn split_registry(name: &str) -> Option<(&str, &str)> {
    let marks = |c: char| c == '.' || c == ':' || c.is_ascii_uppercase();
    match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(marks) => {
            let valid = is_registry(first) || is_path_component(first);
            let former = first == FORMER_REGISTRY;
            let registry = if former { DOCKER_HUB } else { first };
            valid.then_some((registry, rest))
        }
        _ => Some((DOCKER_HUB, name)),
    }
}

/// Whether it is a host name or an address, with or without a port. An IPv6 address is in brackets.
fn is_registry(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|t| t.split_once(']'));
    let (is_host, port) = match bracketed {
        Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (host.split('.').all(is_host_label), port)
        }
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_host_label(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| ends(c) || c == '-';
    text.starts_with(ends) && text.ends_with(ends) && text.chars().all(inner)
}

/// Whether it is lower-case letters and digits, with a dot, one or two underscores or dashes between them.
fn is_path_component(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    text.starts_with(ends) && text.ends_with(ends) && text.split(ends).all(separator)
}

fn is_tag(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rest = |c: char| first(c) || c == '.' || c == '-';
    text.len() <= LONGEST_TAG && text.starts_with(first) && text.chars().all(rest)
}

/// Whether it is a digest of an algorithm that containerd knows.
fn is_digest(text: &str) -> bool {
    let Some((algorithm, digits)) = text.split_once(':') else {
        return false;
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    digits.len() == length && super::is_hex(digits)
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution::Reference as Library;
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn normal(text: &str) -> Option<String> {
        Reference::parse(text).map(|reference| reference.to_string())
    }

    #[test]
    fn an_address_and_an_upper_case_part_are_registries() {
        for (text, expected) in [
            ("[fd00::1]:5000/a", Some("[fd00::1]:5000/a:latest")),
            ("[fd00::1]/a:1", Some("[fd00::1]/a:1")),
            ("[fd00::1]5000/a:1", None),
            ("[fd00::1]:/a:1", None),
            ("[fd00::1]:5000", None),
            ("[r.example]/a:1", None),
            ("[fd00::1/a:1", None),
            ("Registry/a:1", Some("Registry/a:1")),
            ("r.example:/a:1", None),
            ("Busybox", None),
        ] {
            assert_eq!(normal(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        for (length, valid) in [(LONGEST_TAG, true), (LONGEST_TAG + 1, false)] {
            let text = format!("r.example/a:{}", "1".repeat(length));
            assert_eq!(Reference::parse(&text).is_some(), valid);
        }
        for (length, valid) in [(LONGEST_REPOSITORY, true), (LONGEST_REPOSITORY + 1, false)] {
            let text = format!("r.example/{}:1", "a".repeat(length));
            assert_eq!(Reference::parse(&text).is_some(), valid);
        }
        for (algorithm, length) in [("sha256", 64), ("sha384", 96), ("sha512", 128), ("md5", 32)] {
            for (length, valid) in [(length, algorithm != "md5"), (length - 1, false)] {
                let text = format!("r.example/a@{algorithm}:{}", "f".repeat(length));
                assert_eq!(Reference::parse(&text).is_some(), valid, "{text}");
            }
        }
        assert_eq!(
            normal(&format!("r.example/a@sha256:{}", HEX.to_uppercase())),
            None
        );
    }

    proptest! {
        /// The library is the oracle, but for what it does not follow containerd in: IPv6 addresses, and upper case
        /// in a registry without a dot or in a digest.
        #[test]
        fn it_reads_what_the_library_reads(
            text in prop_oneof![
                "[a-z0-9._:/@-]{0,24}",
                "([a-z0-9-]{1,4}[.:/]){0,3}[a-z0-9._-]{1,8}(:[a-zA-Z0-9._-]{1,6})?",
                "([A-Za-z0-9-]{1,4}\\.[a-z0-9]{1,3}(:[0-9]{0,4})?/)?[a-z0-9/_.-]{1,9}(:[A-Za-z_.-]{0,4})?",
                "((localhost|index\\.docker\\.io|docker\\.io)/)?[a-z/]{1,5}(:[0-9]{0,2})?(@sha256:[0-9a-f]{63,65})?",
            ],
        ) {
            let library = Library::try_from(text.as_str()).ok();
            prop_assert_eq!(normal(&text), library.map(|reference| reference.whole()));
        }
    }
}
