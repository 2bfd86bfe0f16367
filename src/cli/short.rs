//! Short forms of names: without the default registry, and with shortened digests.

/// The prefix that a name without a registry implies.
const LIBRARY: &str = "docker.io/library/";

/// The number of hex digits that are shown of a digest, as by `crictl`.
const DIGITS: usize = 13;

/// The prefix of a digest.
const SHA256: &str = "sha256:";

/// Returns the short form of an image's name or id.
pub(super) fn name(name: &str) -> String {
    let name = name.strip_prefix(LIBRARY).unwrap_or(name);
    match name.split_once(SHA256) {
        Some((before, hex)) => format!("{before}{SHA256}{}", digits(hex)),
        None => name.to_owned(),
    }
}

fn digits(hex: &str) -> &str {
    hex.get(..DIGITS).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened() {
        let id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for (long, short) in [
            ("docker.io/library/busybox:1", "busybox:1"),
            ("docker.io/a/b:1", "docker.io/a/b:1"),
            ("r.example/library/a:1", "r.example/library/a:1"),
            (id, "sha256:0123456789abc"),
            (
                &format!("docker.io/library/a@{id}"),
                "a@sha256:0123456789abc",
            ),
            ("sha256:0", "sha256:0"),
        ] {
            assert_eq!(name(long), short);
        }
    }
}
