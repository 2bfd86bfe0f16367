//! The name of an image that is still being pulled.
//!
//! containerd labels what it pulls with the registry's host and the repository, but not with the port
//! (`distribution.source.<host>`). With snapshot annotations on, the labels of the layer's extraction hold the
//! whole reference. Otherwise the port comes from the names of other images of that host on the node. If
//! these do not show it, the name is known only when the image has its record.

use std::collections::BTreeSet;

use crate::containerd::{Containerd, Error, Image, Labels};
use crate::image::{DOCKER_HUB, IMAGE_REF, MANIFEST_DIGEST, hostname, is_pullable, repository};

/// A layer that containerd is extracting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extraction {
    /// The snapshotter of the extraction.
    pub(super) snapshotter: String,
    /// The key of the extraction snapshot.
    pub(super) key: String,
    /// The layer's chain id.
    pub(super) chain: String,
    /// The number of images that had been removed when the event came.
    pub(super) removals: u64,
}

/// Puts the registry's port into the name of an image, which comes from its manifest's label. Returns
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

/// Returns the labels of the layer's snapshot: under its key, or under its chain id if it is committed already.
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

/// Returns the name with the port that its host has in `names`; `None` if the host is not in `names`, or with more
/// than one port.
fn with_port<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (host, path) = name.split_once('/')?;
    let registry = |name| Some(repository(name)?.split_once('/')?.0.to_owned());
    let of_host = |registry: &String| hostname(registry) == host;
    let mut registries: BTreeSet<_> = names.filter_map(registry).filter(of_host).collect();
    if host == DOCKER_HUB {
        registries.insert(host.to_owned());
    }
    let registry = registries.pop_first()?;
    registries.is_empty().then(|| format!("{registry}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    fn digest() -> String {
        format!("sha256:{}", "0".repeat(64))
    }

    #[test]
    fn the_port_comes_from_the_names_of_other_images() {
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
    async fn the_name_comes_from_the_labels_of_the_extraction() {
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
