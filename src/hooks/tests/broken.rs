//! Tests of chains and volumes from which no container may start under any configuration, and of the calls that the
//! check of a pod takes that is left to containerd.

use super::*;

const EXCLUDE: &str = "[snapshotters.nydus]\nexclude = [\"*\"]\n";
const NO_SWAP: &str = "[hooks]\nswap = false\non_unready = \"allow\"\n";

/// The annotation `skip` counts in the namespace of the pods, also with nydus.
const SKIPS: &str = "[hooks]\nskip_namespaces = [\"n\"]\n";

/// The label of a container's snapshot in a user namespace.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";

impl Bench {
    /// Makes a mixed chain: the lowest layer is a guest-pulled layer, the others are unpacked on the host.
    fn make_mixed_chain(&self) {
        let bottom = &self.chain_ids[0];
        let fake = &self.fake;
        fake.put("nydus", bottom, None, proxied(Labels::new()));
        for two in self.chain_ids.windows(2) {
            fake.commit_unlabelled("nydus", &two[1], Some(&two[0]));
        }
    }

    /// Creates the container `c` of this pod on this chain.
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

fn pod_with_skip(handler: &str) -> Pod {
    let mut pod = pod(handler);
    let skip = (policy::MODE.to_owned(), "skip".to_owned());
    pod.annotations.extend([skip]);
    pod
}

#[tokio::test(start_paused = true)]
async fn no_container_starts_from_a_mixed_chain() {
    for (config, pod, private) in [
        ("", pod("guest"), "nri-unpack-private-sha256:"),
        ("", pod_with_skip("guest"), "nri-unpack-private-sha256:"),
        (EXCLUDE, pod("guest"), "nri-unpack-private-host-sha256:"),
        (
            EXCLUDE,
            pod_with_skip("guest"),
            "nri-unpack-private-host-sha256:",
        ),
        (
            "[snapshotters.nydus]\nlabels = \"none\"\n",
            pod("guest"),
            "nri-unpack-private-host-sha256:",
        ),
    ] {
        let bench = Bench::new(&format!("{SKIPS}{config}")).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.make_mixed_chain();
        let created = bench.create_on(pod.clone(), "nydus", bench.top()).await;
        created.unwrap();
        let parent = bench.parent("nydus").await;
        assert!(parent.starts_with(private), "{config}: {parent}");

        let bench = Bench::new(&format!("{NO_SWAP}{config}")).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.make_mixed_chain();
        let created = bench.create_on(pod, "nydus", bench.top()).await;
        assert!(created.is_err(), "{config}");
        assert_eq!(bench.parent("nydus").await, bench.top());
    }
}

/// The private chain is still being unpacked, or cannot be unpacked.
#[tokio::test(start_paused = true)]
async fn a_container_on_a_mixed_chain_without_a_private_chain_is_rejected() {
    let config = format!("[hooks]\non_unready = \"allow\"\n{EXCLUDE}");
    let bench = Bench::new(&config).await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.make_mixed_chain();
    bench.fake.slow("apply layer", Duration::from_secs(2));
    let created = bench.create_on(pod("guest"), "nydus", bench.top()).await;
    let why = created.unwrap_err().to_string();
    assert!(why.contains("of 3 layers are ready"), "{why}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.create_in(pod("guest"), vec![]).await.unwrap();
    assert_ne!(bench.parent("nydus").await, bench.top());

    let bench = Bench::new(&config).await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.make_mixed_chain();
    let manifests = Manifests::new(Platform::of_this_node());
    let manifest = manifests.read(bench.fake.as_ref(), &bench.image).await;
    let lowest = manifest.unwrap().layers[0].blob.digest.clone();
    bench.fake.discard(&lowest);
    let created = bench.create_on(pod("guest"), "nydus", bench.top()).await;
    let why = created.unwrap_err().to_string();
    assert!(why.contains("is mixed") && why.contains(&lowest), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_healthy_container_left_to_containerd_takes_one_round_trip_and_no_log_line() {
    let bench = Bench::new(SKIPS).await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.commit_without_labels("nydus");
    for first in [true, false] {
        logged();
        bench.fake.calls();
        bench.fake.slow("stat snapshot", Duration::from_millis(10));
        bench.fake.activate("nydus", "c", bench.top());
        let began = Instant::now();
        let created = bench.create_in(pod_with_skip("guest"), vec![]).await;
        let took = began.elapsed();
        created.unwrap();
        assert_eq!(logged(), []);
        let calls = bench.fake.calls();
        assert!(!Fake::writes(&calls), "{calls:?}");
        if !first {
            assert_eq!(calls, ["stat snapshot", "stat snapshot"]);
            assert!(took < Duration::from_millis(20), "{took:?}");
        }
        assert_eq!(bench.parent("nydus").await, bench.top());
        bench.fake.remove("nydus", "c").await.unwrap();
    }
    // The cached result does not apply to a pod that is not left to containerd.
    bench.fake.heal();
    bench.create("guest", "nydus", "other").await.unwrap();
    let other = bench.fake.stat("nydus", "other").await.unwrap();
    assert_ne!(other.parent.as_deref(), Some(bench.top()));
}

/// The older sandbox keeps the chain, so a further rejection would not help.
#[tokio::test(start_paused = true)]
async fn a_sandbox_on_a_mixed_chain_in_use_is_rejected_once() {
    let bench = Bench::new("").await;
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.make_mixed_chain();
    bench.fake.activate("nydus", "older", bench.top());
    let mut pod = pod_with_skip("guest");
    for (sandbox, is_rejected) in [("s1", true), ("s2", false)] {
        pod.id = sandbox.to_owned();
        bench.fake.activate("nydus", sandbox, bench.top());
        logged();
        let ran = bench.hooks.run_pod_sandbox(pod.clone()).await;
        assert_eq!(ran.is_err(), is_rejected, "{sandbox}: {ran:?}");
        let lines = logged();
        let warned = lines.iter().any(|(level, _)| *level == Level::Warn);
        assert!(warned, "{lines:?}");
        bench.fake.collect_container("nydus", sandbox);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(bench.state("nydus").await, State::Mixed);
}

/// The sandbox runs already, so it is rejected only if the next attempt gets another chain.
#[tokio::test(start_paused = true)]
async fn a_sandbox_on_a_mixed_chain_is_rejected_until_the_chain_is_replaced() {
    for (config, is_rejected) in [("", true), (EXCLUDE, false)] {
        let bench = Bench::new(&format!("{SKIPS}{config}")).await;
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.make_mixed_chain();
        let mut pod = pod_with_skip("guest");
        pod.id = "s1".to_owned();
        bench.fake.activate("nydus", "s1", bench.top());
        logged();
        let ran = bench.hooks.run_pod_sandbox(pod.clone()).await;
        assert_eq!(ran.is_err(), is_rejected, "{config}: {ran:?}");
        let lines = logged();
        assert!(
            lines.iter().any(|(level, _)| *level == Level::Warn),
            "{lines:?}"
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

/// The labels of the snapshots decide.
#[tokio::test(start_paused = true)]
async fn a_chain_without_an_image_is_judged_by_its_labels() {
    let mapped = || Labels::from([(UID_MAPPING.to_owned(), "0:1000:65536".to_owned())]);
    for (config, below, own, created) in [
        ("", Labels::new(), Labels::new(), false),
        ("", proxied(Labels::new()), Labels::new(), true),
        // A copy of an unknown chain: another attempt would have the same result.
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
        logged();
        let answer = bench.create_in(pod("guest"), vec![]).await;
        assert_eq!(answer.is_ok(), created, "{config} {chain}: {answer:?}");
        let warned = logged().iter().any(|(level, _)| *level == Level::Warn);
        assert_eq!(warned, copied || !created);
    }
}

/// containerd has made the copy of guest-pulled layers for a user namespace.
#[tokio::test(start_paused = true)]
async fn a_container_is_moved_off_a_copy_of_guest_pulled_layers() {
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

/// It is not known whether the volume has its layers.
#[tokio::test(start_paused = true)]
async fn a_volume_that_may_lack_layers_is_logged_and_may_reject_its_container() {
    for (config, pod, created) in [
        ("", pod("guest"), false),
        ("[hooks]\non_unready = \"allow\"\n", pod("guest"), true),
        ("", pod_with_skip("guest"), false),
        (SKIPS, pod_with_skip("guest"), true),
    ] {
        let bench = Bench::new(config).await;
        bench.run("guest", (policy::IMAGES, NAME)).await;
        bench.fake.activate("nydus", "c", bench.top());
        let digest = bench.image.target.digest.strip_prefix("sha256:").unwrap();
        let mount = nri::Mount {
            source: format!("/run/cri/image-volumes/s/{digest}"),
            ..nri::Mount::default()
        };
        logged();
        let answer = bench.create_in(pod, vec![mount]).await;
        assert_eq!(answer.is_ok(), created, "{config}: {answer:?}");
        let warned = logged().iter().any(|(level, _)| *level == Level::Warn);
        assert!(warned, "{config}");
    }
}

impl Bench {
    /// Creates the container `c` with this handler. It mounts the image as a volume.
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

/// Without guest pull, containerd has unpacked the whole image.
#[tokio::test(start_paused = true)]
async fn a_volume_of_an_excluded_image_is_allowed_without_guest_pull() {
    let bench = Bench::new("[snapshotters.nydus]\nexclude = [\"*\"]\n").await;
    // The name says nydus, but the snapshotter is not in proxy mode.
    bench.fake.set_mode("nydus", false);
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.commit_without_labels("nydus");
    bench.node.engine.forget();
    assert!(bench.node.engine.profile("nydus").may_proxy);
    logged();
    let created = bench.create_with_volume("guest", "nydus").await;
    created.unwrap();
    assert!(!bench.node.engine.supports_guest_pull("nydus"));
    let warned = logged().iter().any(|(level, _)| *level <= Level::Warn);
    assert!(!warned);
}

/// The other half is for the container's own chain.
#[tokio::test(start_paused = true)]
async fn volumes_take_at_most_half_of_the_wait_of_a_hook() {
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

/// A handler of another platform: its image has no manifest for this node. Another attempt would have the same result.
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
            bench.fake.commit_unlabelled(snapshotter, "foreign", None);
            for container in ["c1", "c2"] {
                bench.fake.activate(snapshotter, container, "foreign");
                let created = Container {
                    id: container.to_owned(),
                    name: "main".to_owned(),
                    annotations: BTreeMap::from([(IMAGE_NAME.to_owned(), OTHER.to_owned())]),
                    ..Container::default()
                };
                logged();
                let answer = bench.hooks.create_container(pod(handler), created).await;
                answer.unwrap();
                let own = bench.fake.stat(snapshotter, container).await.unwrap();
                assert_eq!(own.parent.as_deref(), Some("foreign"));
                let warned = logged().iter().any(|(level, _)| *level == Level::Warn);
                assert!(warned, "{snapshotter}, {config}");
            }
        }
    }
}
