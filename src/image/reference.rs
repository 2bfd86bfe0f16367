//! Names of images: finds the record of a name that a user, a kubelet or an annotation gives, and
//! chooses the name for an image's labels.
//!
//! CRI keeps up to three records of an image: name with tag, name with digest, and the image id
//! (the config's digest). The given name may be none of them: a bare `busybox`, a short id, an id
//! without its algorithm.

use std::net::Ipv6Addr;

use oci_spec::distribution::Reference;

use crate::containerd::{Containerd, Image};

use super::Error;

/// Hex digits of a sha256 digest.
const ID_LENGTH: usize = 64;

/// The length of the shortest abbreviated id that is looked up. `crictl` and `docker` print at most 13
/// digits, and users copy fewer. A shorter text is more likely a name.
const SHORTEST_ID: usize = 7;

const ID_PREFIX: &str = "sha256:";

/// The host that replaces an IPv6 address while a name is parsed.
const STAND_IN: &str = "ipv6.invalid";

/// Finds the record of the image that `asked` names.
pub async fn find(containerd: &dyn Containerd, asked: &str) -> Result<Image, Error> {
    for name in spellings(asked) {
        match containerd.image(&name).await {
            Ok(image) => return Ok(image),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(failed(asked, e)),
        }
    }
    let short = asked.strip_prefix(ID_PREFIX).unwrap_or(asked);
    if !(SHORTEST_ID..ID_LENGTH).contains(&short.len()) || !is_hex(short) {
        return Err(Error::NotFound(asked.to_owned()));
    }
    let images = containerd.images().await.map_err(|e| failed(asked, e))?;
    let mut matching = images.into_iter().filter(|image| {
        let id = image.name.strip_prefix(ID_PREFIX);
        id.is_some_and(|id| id.starts_with(short))
    });
    match (matching.next(), matching.next()) {
        (Some(image), None) => Ok(image),
        (None, _) => Err(Error::NotFound(asked.to_owned())),
        (Some(_), Some(_)) => Err(Error::Ambiguous(asked.to_owned())),
    }
}

/// Returns the name of `image` and the names of all records of `images` that have the same target.
pub fn names_of(image: &Image, images: &[Image]) -> Vec<String> {
    let others = images.iter().filter(|other| other.name != image.name);
    let same = others.filter(|other| other.target.digest == image.target.digest);
    let names = std::iter::once(image).chain(same);
    names.map(|image| image.name.clone()).collect()
}

/// Whether a record's name can be pulled. An image id cannot, nor a name that does not begin with its
/// registry, such as those that an import makes (`import-2024-01-31@sha256:…`).
pub fn is_pullable(name: &str) -> bool {
    repository(name).is_some()
}

/// Returns the registry and the repository of a name that can be pulled: `docker.io/library/busybox`.
pub fn repository(name: &str) -> Option<String> {
    // The library's grammar has no IPv6 addresses, which containerd's resolver accepts.
    let ipv6 = name.strip_prefix('[').and_then(|name| name.split_once(']'));
    let ipv6 = ipv6.filter(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    let named = ipv6.map(|(_, rest)| format!("{STAND_IN}{rest}"));
    let spelled = named.as_deref().unwrap_or(name);
    let reference = Reference::try_from(spelled).ok()?;
    if is_id(name) || reference.whole() != spelled {
        return None;
    }
    let (registry, repository) = (reference.registry(), reference.repository());
    let registry = match ipv6 {
        Some((address, _)) => registry.replacen(STAND_IN, &format!("[{address}]"), 1),
        None => registry.to_owned(),
    };
    Some(format!("{registry}/{repository}"))
}

/// Returns the host of a registry without its port, as containerd writes it on the blobs that it pulls:
/// `registry.example` of `registry.example:5000`, `fd00::1` of `[fd00::1]:5000`.
pub fn hostname(registry: &str) -> &str {
    match registry.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    }
}

/// Returns the name for the labels of an image's layers: `asked` if it can be pulled and is one of the
/// image's names, else the best of these. A tag is better than a digest, and an id is never chosen. Of
/// equals the first in sorted order is chosen, so that the choice is stable.
///
/// `names` are the names of all records with the image's target. `None` if none of them can be pulled.
pub fn name_for_labels(asked: Option<&str>, names: &[String]) -> Option<String> {
    let asked = asked.and_then(|asked| {
        let mut spellings = spellings(asked).into_iter();
        spellings.find(|name| is_pullable(name) && names.contains(name))
    });
    asked.or_else(|| {
        let pullable = names.iter().filter(|name| is_pullable(name));
        pullable
            .min_by_key(|name| (name.contains('@'), *name))
            .cloned()
    })
}

/// Returns a reference with its registry and its tag spelled out, as CRI names its records. A text that is not
/// a reference is returned unchanged.
pub fn normal(name: &str) -> String {
    match Reference::try_from(name) {
        Ok(reference) if !is_id(name) => reference.whole(),
        _ => name.to_owned(),
    }
}

/// Returns the names that a record of `asked` may have, the likeliest first.
fn spellings(asked: &str) -> Vec<String> {
    let mut names = vec![asked.to_owned()];
    if asked.len() == ID_LENGTH && is_hex(asked) {
        names.push(format!("{ID_PREFIX}{asked}"));
    } else if !is_id(asked)
        && let Ok(reference) = Reference::try_from(asked)
    {
        // CRI drops the tag of a name with tag and digest; other clients keep the name unchanged.
        let both = reference.tag().and(reference.digest());
        let by_digest = both.map(|digest| reference.clone_with_digest(digest.to_owned()).whole());
        names.push(reference.whole());
        names.extend(by_digest);
    }
    names.dedup();
    names
}

fn is_id(name: &str) -> bool {
    let hex = name.strip_prefix(ID_PREFIX);
    hex.is_some_and(|hex| hex.len() == ID_LENGTH && is_hex(hex))
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

fn failed(asked: &str, source: crate::containerd::Error) -> Error {
    Error::Containerd {
        image: asked.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::containerd::fake::Fake;

    const ID: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn digest() -> String {
        format!("127.0.0.1:5000/lab/app@{ID}")
    }

    #[test]
    fn short_names_are_spelled_out() {
        let both = digest().replace('@', ":1@");
        for (asked, last) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("a/b", "docker.io/a/b:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/lab/app:1", "127.0.0.1:5000/lab/app:1"),
            (ID, ID),
            (&ID[7..], ID),
            (&digest(), &digest()),
            (&both, &digest()),
            ("a b", "a b"),
        ] {
            let spellings = spellings(asked);
            assert_eq!(spellings[0], asked);
            assert_eq!(spellings.last().unwrap(), last);
        }
    }

    #[test]
    fn an_id_and_a_made_up_name_cannot_be_pulled() {
        for (name, expected) in [
            ("docker.io/library/busybox:1", true),
            ("localhost/a:1", true),
            ("[fd00::1]:5000/lab/a:1", true),
            ("[fd00::1]/lab/a:1", true),
            ("[fd00::1]:5000/lab/a", false),
            ("[registry]:5000/lab/a:1", false),
            (&digest(), true),
            (&digest().replace('@', ":1@"), true),
            (ID, false),
            ("busybox:1", false),
            (&format!("import-2024-01-31@{ID}"), false),
            ("docker.io/library/busybox", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_pullable(name), expected, "{name}");
        }
    }

    #[test]
    fn labels_carry_a_name_that_can_be_pulled() {
        let both = digest().replace('@', ":1@");
        let names = [
            ID.to_owned(),
            digest(),
            format!("import-2024-01-31@{ID}"),
            "127.0.0.1:5000/lab/b:1".to_owned(),
            "127.0.0.1:5000/lab/a:1".to_owned(),
        ];
        for (asked, expected) in [
            (Some("127.0.0.1:5000/lab/b:1"), "127.0.0.1:5000/lab/b:1"),
            (Some(digest().as_str()), digest().as_str()),
            (Some(both.as_str()), digest().as_str()),
            (Some(ID), "127.0.0.1:5000/lab/a:1"),
            (Some(&ID[7..]), "127.0.0.1:5000/lab/a:1"),
            (Some(&ID[7..20]), "127.0.0.1:5000/lab/a:1"),
            (Some("other:1"), "127.0.0.1:5000/lab/a:1"),
            (None, "127.0.0.1:5000/lab/a:1"),
        ] {
            let name = name_for_labels(asked, &names);
            assert_eq!(name.as_deref(), Some(expected), "{asked:?}");
        }
        assert_eq!(name_for_labels(None, &names[..3]).unwrap(), digest());
        assert_eq!(name_for_labels(Some(ID), &names[..1]), None);
    }

    #[test]
    fn a_repository_is_the_part_before_tag_and_digest() {
        for (name, expected) in [
            ("r.example/app:1", Some("r.example/app")),
            (&digest(), Some("127.0.0.1:5000/lab/app")),
            ("[fd00::1]:5000/lab/a:1", Some("[fd00::1]:5000/lab/a")),
            ("busybox:1", None),
        ] {
            assert_eq!(repository(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_host_is_the_part_before_the_port() {
        for (registry, expected) in [
            ("docker.io", "docker.io"),
            ("r.example:5000", "r.example"),
            ("127.0.0.1:5000", "127.0.0.1"),
            ("[fd00::1]:5000", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
        ] {
            assert_eq!(hostname(registry), expected, "{registry}");
        }
    }

    #[test]
    fn an_image_has_the_names_of_all_records_of_its_target() {
        let fake = Fake::default();
        let image = fake.image("r.example/a:1", 1);
        let all = [
            fake.image("r.example/other:1", 2),
            fake.tag("r.example/a:2", image.target.clone()),
        ];
        // With the image's own record in the list and without it.
        for images in [&all[..], &[&all[..], std::slice::from_ref(&image)].concat()] {
            assert_eq!(names_of(&image, images), ["r.example/a:1", "r.example/a:2"]);
        }
    }

    proptest! {
        /// For any given name and any order of the store's records.
        #[test]
        fn the_name_is_the_best_of_the_images_names(
            mut names in proptest::collection::vec(
                prop_oneof![
                    "sha256:[0-9a-f]{64}",
                    "r\\.example/[ab]:[12]",
                    "r\\.example/[ab]@sha256:[0-9a-f]{64}",
                    "[a-z]{1,5}",
                ],
                0..6,
            ),
            asked in proptest::option::of(prop_oneof!["r\\.example/[ab]:[12]", "[a-f0-9]{7,64}", ".*"]),
        ) {
            let name = name_for_labels(asked.as_deref(), &names);
            names.reverse();
            prop_assert_eq!(&name, &name_for_labels(asked.as_deref(), &names));
            match &name {
                None => prop_assert!(!names.iter().any(|name| is_pullable(name))),
                Some(name) => {
                    prop_assert!(names.contains(name) && is_pullable(name));
                    if name.contains('@') && asked.as_ref() != Some(name) {
                        prop_assert!(!names.iter().any(|n| is_pullable(n) && !n.contains('@')));
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn images_are_found_by_short_names_and_ids() {
        let fake = Fake::default();
        let target = fake.image("docker.io/library/busybox:latest", 1).target;
        let id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        fake.tag(id, target);
        for asked in [
            "busybox",
            "docker.io/library/busybox:latest",
            id,
            &id[7..],
            &id[7..19],
        ] {
            assert!(find(&fake, asked).await.is_ok(), "{asked}");
        }
        for asked in ["busybox:2", "0123456", "UPPER", "", "a b"] {
            let found = find(&fake, asked).await;
            assert_eq!(found.is_ok(), asked == "0123456", "{asked}");
        }
        let twin = format!("{}{}", &id[..20], "0".repeat(51));
        fake.tag(&twin, fake.image("r.example/twin:1", 2).target);
        let message = find(&fake, &id[7..20]).await.unwrap_err().to_string();
        assert!(message.contains("more than one image id"), "{message}");
        let message = find(&fake, "nope:1").await.unwrap_err().to_string();
        assert!(message.contains("crictl pull nope:1"), "{message}");
    }
}
