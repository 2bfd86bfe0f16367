//! Images that are broken, and images that are indexes.

use std::time::{Duration, Instant};

use lab::{Cri, Flaw, Image, Lab, Layer, Registry, Version};

/// containerd rejects each broken image of the lab for its flaw.
#[tokio::test]
async fn each_flaw_is_rejected_for_its_reason() {
    let cases = [
        (Flaw::WrongDiffId(3), "wrong diff id"),
        (
            Flaw::DiffIdMissing,
            "mismatched image rootfs and manifest layers",
        ),
        (
            Flaw::LayerMissing(2),
            "failed to get reader from content store",
        ),
    ];
    for version in Version::ALL {
        let lab = Lab::start(version).await.unwrap();
        let mut cri = lab.cri().await.unwrap();
        let store = lab.store().await.unwrap();
        let pod = cri.run_pod("", &[]).await.unwrap();
        for (n, (flaw, message)) in cases.into_iter().enumerate() {
            let layers = (0..4).map(|i| Layer::new().file("n", 0o644, format!("{n} {i}")));
            let builder = Image::builder(format!("registry.test/lab/flawed:{n}")).command(&["/n"]);
            let image = layers
                .fold(builder, |image, layer| image.layer(layer))
                .flaw(flaw)
                .build();
            store.put_image(&image).await.unwrap();
            assert_cri_knows(&mut cri, image.name()).await;
            let error = cri
                .create_container(&pod, image.name(), &[], &[])
                .await
                .unwrap_err();
            assert!(
                error.message().contains(message),
                "{version:?}, {flaw:?}: {}",
                error.message()
            );
        }
        let truncated = Image::builder("registry.test/lab/truncated:1")
            .flaw(Flaw::ManifestTruncated)
            .build();
        store.put_image(&truncated).await.unwrap();
        let images = store.images().await.unwrap();
        assert_eq!(
            images[truncated.name()],
            truncated.manifest.digest,
            "{version:?}"
        );
    }
}

async fn assert_cri_knows(cri: &mut Cri, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while cri.image_status(name).await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "CRI does not know {name}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An index that lists a foreign platform first can be pulled, imported and stored.
#[tokio::test]
async fn an_index_resolves_to_this_machines_manifest() {
    let lab = Lab::start(Version::V2_1).await.unwrap();
    let registry = Registry::start().await.unwrap();
    lab.use_registry(&registry).unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();
    for way in ["pull", "import", "put"] {
        let name = format!("registry.test/lab/indexed:{way}");
        let layer = Layer::new().file("way", 0o644, way);
        let image = Image::builder(name.as_str())
            .layer(layer)
            .command(&["/way"])
            .indexed()
            .build();
        assert_ne!(image.target, image.manifest);
        match way {
            "pull" => {
                registry.push(&image).await.unwrap();
                cri.pull_image(&name).await.unwrap();
            }
            "import" => lab.import(&image).await.unwrap(),
            _ => {
                store.put_image(&image).await.unwrap();
                assert_cri_knows(&mut cri, &name).await;
            }
        }
        assert_eq!(
            store.images().await.unwrap()[&name],
            image.target.digest,
            "{way}"
        );
        let known = cri.image_status(&name).await.unwrap().unwrap();
        assert_eq!(known.id, image.config.digest, "{way}");
    }
}
