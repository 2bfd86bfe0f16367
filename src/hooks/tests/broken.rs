//! Chains and volumes from which no container may start, under every configuration; and what it
//! costs to look at pods that are left alone.

use super::*;

const EXCLUDE: &str = "[snapshotters.nydus]\nexclude = [\"*\"]\n";
const NO_SWAP: &str = "[hooks]\nswap = false\non_unready = \"allow\"\n";

/// The label of a container's snapshot in a user namespace.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";

impl Bench {
    /// The lowest layer was left to the guest, the others were unpacked on the host.
    fn mixed(&self) {
        let bottom = &self.chain_ids[0];
        let fake = &self.fake;
        fake.put("nydus", bottom, None, proxied(Labels::new()));
        for two in self.chain_ids.windows(2) {
            fake.commit_unlabelled("nydus", &two[1], Some(&two[0]));
        }
    }

    /// The container `c` of this pod, on this chain.
    async fn create_on(&self, pod: Pod, snapshotter: &str, chain: &str) -> HandlerResult {
        self.fake.activate(snapshotter, "c", chain);
        self.create_in(pod, vec![]).await
    }

    async fn create_in(&self, pod: Pod, mounts: Vec<nri::Mount>) -> HandlerResult {
        let container = Container {
            id: "c".to_owned(),
            name: "main".to_owned(),
            annotations: BTreeMap::from([(IMAGE_NAME.to_owned(), NAME.to_owned())]),
            mounts,
            ..Container::default()
        };
        self.hooks.create_container(pod, container).await
    }

    fn top(&self) -> &str {
        self.chain_ids.last().unwrap()
    }

    async fn parent(&self, snapshotter: &str) -> String {
        let own = self.fake.stat(snapshotter, "c").await.unwrap();
        own.parent.unwrap()
    }
}

fn skipping(handler: &str) -> Pod {
    let mut pod = pod(handler);
    let skip = (policy::MODE.to_owned(), "skip".to_owned());
    pod.annotations.extend([skip]);
    pod
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_from_a_mixed_chain() {
    for (config, pod, private) in [
        ("", pod("guest"), "nri-unpack-private-sha256:"),
        ("", skipping("guest"), "nri-unpack-private-sha256:"),
        (EXCLUDE, pod("guest"), "nri-unpack-private-host-sha256:"),
        (
            EXCLUDE,
            skipping("guest"),
            "nri-unpack-private-host-sha256:",
        ),
        (
            "[snapshotters.nydus]\nlabels = \"none\"\n",
            pod("guest"),
            "nri-unpack-private-host-sha256:",
        ),
    ] {
        let bench = Bench::new(config).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.mixed();
        let created = bench.create_on(pod.clone(), "nydus", bench.top()).await;
        created.unwrap();
        let parent = bench.parent("nydus").await;
        assert!(parent.starts_with(private), "{config}: {parent}");

        let bench = Bench::new(&format!("{NO_SWAP}{config}")).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.mixed();
        let created = bench.create_on(pod, "nydus", bench.top()).await;
        assert!(created.is_err(), "{config}");
        assert_eq!(bench.parent("nydus").await, bench.top());
    }
}

/// While the private chain is being unpacked, and where it cannot be.
#[tokio::test(start_paused = true)]
async fn without_a_private_chain_it_is_rejected() {
    let config = format!("[hooks]\non_unready = \"allow\"\n{EXCLUDE}");
    let bench = Bench::new(&config).await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.mixed();
    bench.fake.slow("apply layer", Duration::from_secs(2));
    let created = bench.create_on(pod("guest"), "nydus", bench.top()).await;
    let why = created.unwrap_err().to_string();
    assert!(why.contains("of 3 layers are ready"), "{why}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.create_in(pod("guest"), vec![]).await.unwrap();
    assert_ne!(bench.parent("nydus").await, bench.top());

    let bench = Bench::new(&config).await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.mixed();
    let manifests = Manifests::new(Platform::of_this_node());
    let manifest = manifests.read(bench.fake.as_ref(), &bench.image).await;
    let lowest = manifest.unwrap().layers[0].blob.digest.clone();
    bench.fake.discard(&lowest);
    let created = bench.create_on(pod("guest"), "nydus", bench.top()).await;
    let why = created.unwrap_err().to_string();
    assert!(why.contains("is mixed") && why.contains(&lowest), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_healthy_container_that_is_left_alone_costs_one_round_trip_and_no_line() {
    let bench = Bench::new("").await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.unpacked_without_labels("nydus");
    for first in [true, false] {
        said();
        bench.fake.calls();
        bench.fake.slow("stat snapshot", Duration::from_millis(10));
        bench.fake.activate("nydus", "c", bench.top());
        let began = Instant::now();
        let created = bench.create_in(skipping("guest"), vec![]).await;
        let took = began.elapsed();
        created.unwrap();
        assert_eq!(said(), []);
        let calls = bench.fake.calls();
        assert!(!Fake::writes(&calls), "{calls:?}");
        if !first {
            assert_eq!(calls, ["stat snapshot", "stat snapshot"]);
            assert!(took < Duration::from_millis(20), "{took:?}");
        }
        assert_eq!(bench.parent("nydus").await, bench.top());
        bench.fake.remove("nydus", "c").await.unwrap();
    }
    // A pod that is not left alone is not taken for known.
    bench.fake.heal();
    bench.create("guest", "nydus", "other").await.unwrap();
    let other = bench.fake.stat("nydus", "other").await.unwrap();
    assert_ne!(other.parent.as_deref(), Some(bench.top()));
}

/// Sandboxes that run keep the chain: a pod is not rejected for as long as they do.
#[tokio::test(start_paused = true)]
async fn a_sandbox_on_a_mixed_chain_that_others_keep_is_rejected_once() {
    let bench = Bench::new("").await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.mixed();
    bench.fake.activate("nydus", "older", bench.top());
    let mut pod = skipping("guest");
    for (sandbox, is_rejected) in [("s1", true), ("s2", false)] {
        pod.id = sandbox.to_owned();
        bench.fake.activate("nydus", sandbox, bench.top());
        said();
        let ran = bench.hooks.run_pod_sandbox(pod.clone()).await;
        assert_eq!(ran.is_err(), is_rejected, "{sandbox}: {ran:?}");
        let said = said();
        let warned = said.iter().any(|(level, _)| *level == Level::Warn);
        assert!(warned, "{said:?}");
        bench.fake.collect_container("nydus", sandbox);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(bench.state("nydus").await, State::Mixed);
}

/// It runs already: it is rejected where the next try gets another chain.
#[tokio::test(start_paused = true)]
async fn a_sandbox_on_a_mixed_chain_is_rejected_until_that_is_replaced() {
    for (config, is_rejected) in [("", true), (EXCLUDE, false)] {
        let bench = Bench::new(config).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.mixed();
        let mut pod = skipping("guest");
        pod.id = "s1".to_owned();
        bench.fake.activate("nydus", "s1", bench.top());
        said();
        let ran = bench.hooks.run_pod_sandbox(pod.clone()).await;
        assert_eq!(ran.is_err(), is_rejected, "{config}: {ran:?}");
        let said = said();
        assert!(
            said.iter().any(|(level, _)| *level == Level::Warn),
            "{said:?}"
        );
        if is_rejected {
            bench.fake.collect_container("nydus", "s1");
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(bench.state("nydus").await, State::Ready);
            for sandbox in ["s2", "s3", "s4"] {
                bench.fake.activate("nydus", sandbox, bench.top());
                pod.id = sandbox.to_owned();
                bench.fake.calls();
                bench.hooks.run_pod_sandbox(pod.clone()).await.unwrap();
            }
            assert!(
                bench
                    .fake
                    .calls()
                    .iter()
                    .all(|call| call == "stat snapshot")
            );
        }
    }
}

/// The snapshots themselves tell what can be told of a chain of no image.
#[tokio::test(start_paused = true)]
async fn a_chain_of_no_image() {
    let mapped = || Labels::from([(UID_MAPPING.to_owned(), "0:1000:65536".to_owned())]);
    for (config, below, own, created) in [
        ("", Labels::new(), Labels::new(), false),
        ("", proxied(Labels::new()), Labels::new(), true),
        // A copy of an unknown chain: another try would tell no more.
        ("", Labels::new(), mapped(), true),
        (
            "[hooks]\non_unready = \"reject\"\n",
            Labels::new(),
            mapped(),
            true,
        ),
    ] {
        let bench = Bench::new(config).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.fake.put("nydus", "below", None, below);
        let copied = !own.is_empty();
        if copied {
            bench.fake.commit_unlabelled("nydus", "copy", Some("below"));
        }
        let chain = if copied { "copy" } else { "below" };
        bench.fake.activate("nydus", "c", chain);
        bench.fake.label_snapshot("nydus", "c", own).await.unwrap();
        said();
        let answer = bench.create_in(pod("guest"), vec![]).await;
        assert_eq!(answer.is_ok(), created, "{config} {chain}: {answer:?}");
        let warned = said().iter().any(|(level, _)| *level == Level::Warn);
        assert_eq!(warned, copied || !created);
    }
}

/// A copy for a user namespace lies over layers that were left to the guest.
#[tokio::test(start_paused = true)]
async fn a_container_is_moved_off_a_copy_of_what_the_guest_pulls() {
    let bench = Bench::new("").await;
    bench.run("guest", (policy::IMAGES, NAME)).await;
    assert_eq!(bench.state("nydus").await, State::Ready);
    bench
        .fake
        .commit_unlabelled("nydus", "copy", Some(bench.top()));
    bench.fake.activate("nydus", "c", "copy");
    let mapped = Labels::from([(UID_MAPPING.to_owned(), "0:1000:65536".to_owned())]);
    let labelled = bench.fake.label_snapshot("nydus", "c", mapped.clone());
    labelled.await.unwrap();
    bench.create_in(pod("guest"), vec![]).await.unwrap();
    let own = bench.fake.stat("nydus", "c").await.unwrap();
    assert!(
        own.parent
            .unwrap()
            .starts_with("nri-unpack-private-sha256:")
    );
    assert_eq!(own.labels, mapped);
}

/// Where it is not known whether a volume has its layers.
#[tokio::test(start_paused = true)]
async fn a_volume_that_may_lack_layers_is_said_and_judged() {
    for (config, pod, created) in [
        ("", pod("guest"), false),
        ("[hooks]\non_unready = \"allow\"\n", pod("guest"), true),
        ("", skipping("guest"), true),
    ] {
        let bench = Bench::new(config).await;
        bench.run("guest", (policy::IMAGES, NAME)).await;
        bench.fake.activate("nydus", "c", bench.top());
        let digest = bench.image.target.digest.strip_prefix("sha256:").unwrap();
        let mount = nri::Mount {
            source: format!("/run/cri/image-volumes/s/{digest}"),
            ..nri::Mount::default()
        };
        said();
        let answer = bench.create_in(pod, vec![mount]).await;
        assert_eq!(answer.is_ok(), created, "{config}: {answer:?}");
        let warned = said().iter().any(|(level, _)| *level == Level::Warn);
        assert!(warned, "{config}");
    }
}

impl Bench {
    /// The container `c` of this handler, whose pod mounts the image as a volume.
    async fn create_with_volume(&self, handler: &str, snapshotter: &str) -> HandlerResult {
        let digest = self.image.target.digest.strip_prefix("sha256:").unwrap();
        let path = format!("/run/cri/image-volumes/s/{digest}");
        self.fake.activate(snapshotter, &path, self.top());
        self.fake.activate(snapshotter, "c", self.top());
        let mount = nri::Mount {
            source: path,
            ..nri::Mount::default()
        };
        self.create_in(pod(handler), vec![mount]).await
    }
}

/// containerd has unpacked all of it where the snapshotter leaves nothing to the guest.
#[tokio::test(start_paused = true)]
async fn a_volume_of_an_excluded_image_is_allowed_where_no_guest_pulls() {
    // A nydus by its profile, which does not work in proxy mode.
    let config = "[snapshotters.erofs]\nprofile = \"nydus\"\nexclude = [\"*\"]\n";
    let bench = Bench::new(config).await;
    bench.run("local", (policy::IMAGES, "")).await;
    bench.unpacked_without_labels("erofs");
    assert!(bench.node.engine.profile("erofs").may_proxy);
    said();
    let created = bench.create_with_volume("local", "erofs").await;
    created.unwrap();
    assert!(!bench.node.engine.supports_guest_pull("erofs"));
    let warned = said().iter().any(|(level, _)| *level <= Level::Warn);
    assert!(!warned);
}

/// The rest is for the container's own chain.
#[tokio::test(start_paused = true)]
async fn volumes_take_half_of_the_time_of_a_hook() {
    for (config, created) in [
        ("[hooks]\nwait = \"600ms\"\n", false),
        ("[hooks]\nwait = \"600ms\"\non_unready = \"allow\"\n", true),
    ] {
        let bench = Bench::new(config).await;
        bench.run("guest", (policy::IMAGES, NAME)).await;
        bench.fake.slow("apply layer", Duration::from_secs(60));
        let began = Instant::now();
        let answer = bench.create_with_volume("guest", "nydus").await;
        let took = began.elapsed();
        assert_eq!(answer.is_ok(), created, "{config}: {answer:?}");
        let ms = Duration::from_millis;
        assert!(took >= ms(300) && took < ms(310), "{config}: {took:?}");
    }
}

/// A handler of another platform: its image is there, and no manifest for this node. Another try would find the same.
#[tokio::test(start_paused = true)]
async fn a_container_of_another_platform_is_allowed_with_a_warning() {
    const OTHER: &str = "r.example/other:1";
    for (handler, snapshotter) in [("guest", "nydus"), ("local", "erofs")] {
        for config in ["", "[hooks]\non_unready = \"reject\"\n"] {
            let bench = Bench::new(config).await;
            bench.run(handler, (policy::IMAGES, "")).await;
            let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", "0".repeat(64)), "size": 7,
                "platform": {"os": "linux", "architecture": "s390x"},
            }]});
            let media_type = "application/vnd.oci.image.index.v1+json";
            let index = bench
                .fake
                .document(media_type, index.to_string().as_bytes());
            bench.fake.tag(OTHER, index);
            bench.fake.commit_unlabelled(snapshotter, "theirs", None);
            for container in ["c1", "c2"] {
                bench.fake.activate(snapshotter, container, "theirs");
                let created = Container {
                    id: container.to_owned(),
                    name: "main".to_owned(),
                    annotations: BTreeMap::from([(IMAGE_NAME.to_owned(), OTHER.to_owned())]),
                    ..Container::default()
                };
                said();
                let answer = bench.hooks.create_container(pod(handler), created).await;
                answer.unwrap();
                let own = bench.fake.stat(snapshotter, container).await.unwrap();
                assert_eq!(own.parent.as_deref(), Some("theirs"));
                let warned = said().iter().any(|(level, _)| *level == Level::Warn);
                assert!(warned, "{snapshotter}, {config}");
            }
        }
    }
}
