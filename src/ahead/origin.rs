//! From where an image comes that is still being pulled.
//!
//! containerd labels what it pulls with the registry's host and the repository, but not with the port
//! (`distribution.source.<host>`). The whole reference is in the labels of the layer's extraction where
//! snapshot annotations are on. Else the names of the images that are here already tell by which port such
//! a host is asked. Where nothing tells, only the image's record will.

use std::collections::BTreeSet;

use crate::containerd::{Containerd, Error, Image, Labels};
use crate::image::{IMAGE_REF, MANIFEST_DIGEST, hostname, is_pullable, repository};

/// The one registry whose name never has a port.
const DOCKER_HUB: &str = "docker.io";

/// A layer that containerd is extracting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extraction {
    /// Into this snapshotter.
    pub(super) snapshotter: String,
    /// Its snapshot.
    pub(super) key: String,
    /// The chain id that it is committed under.
    pub(super) chain: String,
    /// Images that were removed before this was heard of.
    pub(super) removals: u64,
}

/// Puts the registry's port into the name of an image, which is made of its manifest's label. Answers
/// whether the name is known to be right.
pub(super) async fn complete(
    containerd: &dyn Containerd,
    image: &mut Image,
    extraction: &Extraction,
) -> Result<bool, Error> {
    if let Some(labels) = labels(containerd, extraction).await?
        && labels.get(MANIFEST_DIGEST) == Some(&image.target.digest)
        && let Some(name) = labels.get(IMAGE_REF).filter(|name| is_pullable(name))
    {
        image.name.clone_from(name);
        return Ok(true);
    }
    let images = containerd.images().await?;
    let names = images.iter().map(|image| image.name.as_str());
    let Some(name) = with_port(&image.name, names) else {
        return Ok(false);
    };
    image.name = name;
    Ok(true)
}

/// The labels of the layer's snapshot, which has another name when it is committed.
async fn labels(
    containerd: &dyn Containerd,
    extraction: &Extraction,
) -> Result<Option<Labels>, Error> {
    for key in [&extraction.key, &extraction.chain] {
        match containerd.stat(&extraction.snapshotter, key).await {
            Ok(snapshot) => return Ok(Some(snapshot.labels)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// The same name with the port by which the registry's host is asked in `names`; `None` where they do not
/// tell, or tell of more than one.
fn with_port<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (host, path) = name.split_once('/')?;
    let registry = |name| Some(repository(name)?.split_once('/')?.0.to_owned());
    let of_host = |registry: &String| hostname(registry) == host;
    let mut known: BTreeSet<_> = names.filter_map(registry).filter(of_host).collect();
    if host == DOCKER_HUB {
        known.insert(host.to_owned());
    }
    let registry = known.pop_first()?;
    known.is_empty().then(|| format!("{registry}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    fn digest() -> String {
        format!("sha256:{}", "0".repeat(64))
    }

    #[test]
    fn the_names_of_other_images_tell_the_port() {
        let by_digest = format!("r.example/app@{}", digest());
        let id = digest();
        for (host, names, expected) in [
            (
                "r.example",
                &["r.example:5000/other:1"][..],
                Some("r.example:5000"),
            ),
            (
                "r.example",
                &["r.example/other:1", &by_digest],
                Some("r.example"),
            ),
            ("r.example", &["r.example/a:1", "r.example:5000/a:1"], None),
            ("r.example", &["other.example:5000/a:1", &id], None),
            ("127.0.0.1", &["127.0.0.1:5001/a:1"], Some("127.0.0.1:5001")),
            ("fd00::1", &["[fd00::1]:5000/a:1"], Some("[fd00::1]:5000")),
            ("docker.io", &[], Some("docker.io")),
            ("r.example", &[], None),
        ] {
            let name = format!("{host}/lab/app@{}", digest());
            let found = with_port(&name, names.iter().copied());
            let expected = expected.map(|registry| name.replacen(host, registry, 1));
            assert_eq!(found, expected, "{host}, {names:?}");
        }
    }

    #[tokio::test]
    async fn a_labelled_extraction_tells_the_name() {
        let fake = Fake::default();
        let image = fake.image("r.example:5000/app:1", 1);
        fake.untag(&image.name);
        let guess = Image {
            name: format!("r.example/app@{}", image.target.digest),
            ..image.clone()
        };
        let extraction = Extraction {
            snapshotter: "overlayfs".to_owned(),
            key: "extract-1 sha256:c".to_owned(),
            chain: "sha256:c".to_owned(),
            removals: 0,
        };
        let mut found = guess.clone();
        assert!(!complete(&fake, &mut found, &extraction).await.unwrap());
        assert_eq!(found, guess);

        let labels = |manifest: &str| {
            let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            Labels::from([
                label(MANIFEST_DIGEST, manifest),
                label(IMAGE_REF, &image.name),
            ])
        };
        // The layer was there already, from another image.
        fake.put("overlayfs", &extraction.chain, None, labels("sha256:other"));
        assert!(!complete(&fake, &mut found, &extraction).await.unwrap());
        fake.put(
            "overlayfs",
            &extraction.key,
            None,
            labels(&image.target.digest),
        );
        assert!(complete(&fake, &mut found, &extraction).await.unwrap());
        assert_eq!(found.name, image.name);
    }
}
