//! The manifests of each distribution on its node: every mount is there, as the kubelet and containerd resolve it. In the
//! plugin's pod `handlers` has what that containerd has, and `doctor` finds what is wrong there, and nothing else.
//!
//! The node is a real containerd whose root is made of `tests/distributions` ([`lab::Tree`]).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Log, Options, Registry, Tree, Version, images};
use serde_json::Value;

use super::host_path::View;
use super::manifests::{Manifests, VARIANTS};
use crate::support::{APP, Node, PATIENCE, RESOLVED, program};

/// A distribution's node, and what the plugin's pod finds on it.
struct Distribution {
    /// The directory in `tests/distributions`.
    name: &'static str,
    /// The directory in `examples/kubernetes`.
    variant: &'static str,
    /// What it starts containerd with.
    arguments: &'static [&'static str],
    config: &'static str,
    run: &'static str,
    root: &'static str,
    pause: &'static str,
    /// See [`View::seen`].
    kubelet_sees: Option<&'static [&'static str]>,
    /// Each handler with its snapshotter.
    handlers: &'static [(&'static str, &'static str)],
    /// The ids of what `doctor` finds.
    findings: &'static [&'static str],
}

const KUBERNETES_PAUSE: &str = "registry.k8s.io/pause:3.10";
const RUNC_AND_KATA: &[(&str, &str)] = &[("kata", "native"), ("runc", "overlayfs")];

/// containerd with its configuration in its usual place.
const CONTAINERD: Distribution = Distribution {
    name: "containerd",
    variant: "base",
    arguments: &[],
    config: "/etc/containerd/config.toml",
    run: "/run/containerd",
    root: "/var/lib/containerd",
    pause: KUBERNETES_PAUSE,
    kubelet_sees: None,
    handlers: RUNC_AND_KATA,
    findings: &[],
};

/// Where a distribution whose name is `k3s` or `rke2` has its files.
macro_rules! rancher {
    ($name:literal, $pause:literal) => {
        Distribution {
            name: $name,
            variant: $name,
            config: concat!(
                "/var/lib/rancher/",
                $name,
                "/agent/etc/containerd/config.toml"
            ),
            run: "/run/k3s/containerd",
            root: concat!("/var/lib/rancher/", $name, "/agent/containerd"),
            pause: $pause,
            ..CONTAINERD
        }
    };
}

/// A node with the plugin's pod.
struct Deployed {
    node: Node,
    container: String,
    handlers: &'static [(&'static str, &'static str)],
    pause: &'static str,
}

impl Distribution {
    async fn start(&self) -> Result<Node> {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/distributions");
        let version = Version::V2_1;
        let mut options = Options::new(version);
        options.tree = Some(Tree {
            files: files.join(self.name),
            config: self.config,
            arguments: self.arguments,
            run: self.run,
            root: self.root,
            pause: self.pause,
        });
        let lab = Lab::start_with(version, options).await?;
        Ok(Node {
            plugin: None,
            program: program(),
            log: Log::new(lab.path("plugin.log")),
            cri: lab.cri().await?,
            store: lab.store().await?,
            image: images::app(APP)?,
            registry: Registry::start().await?,
            hooks: "",
            tap: None,
            lab,
        })
    }

    /// Returns the node as the kubelet sees it.
    fn view(&self, lab: &Lab) -> Result<View> {
        Ok(View {
            root: lab.node_root().context("a tree")?,
            seen: self.kubelet_sees,
        })
    }

    /// Does what the kubelet does with the volumes of the pod.
    fn mount(&self, lab: &Lab, manifests: &Manifests) -> Result<()> {
        let view = self.view(lab)?;
        let volumes = manifests.pod()?.volumes.iter().flatten();
        for host_path in volumes.filter_map(|volume| volume.host_path.as_ref()) {
            view.check(host_path)?;
        }
        Ok(())
    }

    /// Starts the plugin's pod on its node.
    async fn deploy(&self, manifests: Manifests) -> Result<Deployed> {
        let mut node = self.start().await?;
        // On this node the others wait in `ContainerCreating`. Those of Talos name the usual places by other names.
        let others = VARIANTS.iter().filter(|other| **other != self.variant);
        for other in others.filter(|other| **other != "talos") {
            let mounted = self.mount(&node.lab, &Manifests::of(other)?);
            ensure!(mounted.is_err(), "{other} starts on {}", self.name);
        }
        self.mount(&node.lab, &manifests)?;
        let container = node.deploy_manifests(manifests).await?.container;
        Ok(Deployed {
            node,
            container,
            handlers: self.handlers,
            pause: self.pause,
        })
    }
}

impl Deployed {
    async fn report(&mut self, command: &[&str]) -> Result<Value> {
        let command = [&["nri-unpack"], command, &["--output", "json"]].concat();
        let exec = self.node.cri.exec_sync(&self.container, &command).await?;
        let report = serde_json::from_str(&exec.stdout);
        report.with_context(|| format!("{command:?}: {exec:?}"))
    }

    /// Checks the handlers.
    async fn assert_handlers(&mut self) -> Result<()> {
        let report = self.report(&["handlers"]).await?;
        let found = report["handlers"].as_array().context("handlers")?.iter();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let found: Vec<_> = found
            .map(|row| (word(&row["handler"]), word(&row["snapshotter"])))
            .collect();
        let expected = self.handlers.iter();
        let expected: Vec<_> = expected
            .map(|&(handler, it)| (handler.to_owned(), it.to_owned()))
            .collect();
        ensure!(found == expected, "{report:#}");
        ensure!(report["problems"] == Value::Array(vec![]), "{report:#}");
        ensure!(report["default_snapshotter"] == "overlayfs", "{report:#}");
        Ok(())
    }

    async fn findings(&mut self) -> Result<Vec<Value>> {
        let report = self.report(&["doctor"]).await?;
        Ok(report["findings"].as_array().context("findings")?.clone())
    }

    async fn assert_findings(&mut self, expected: &[&str]) -> Result<()> {
        let findings = self.findings().await?;
        let ids: Vec<_> = findings.iter().filter_map(|it| it["id"].as_str()).collect();
        ensure!(ids == expected, "{findings:#?}");
        Ok(())
    }

    /// Waits until the plugin serves, and has made the pause image ready in each snapshotter that it manages.
    async fn serves(&mut self) -> Result<()> {
        self.node.log.wait_for(RESOLVED, PATIENCE).await?;
        let snapshotters = self.handlers.iter().map(|(_, snapshotter)| *snapshotter);
        for snapshotter in snapshotters.filter(|name| *name != "overlayfs") {
            self.node.wait_reconciled(snapshotter).await?;
            let pause = ["check", self.pause, "--snapshotter", snapshotter];
            let report = self.report(&pause).await?;
            ensure!(report["images"][0]["state"] == "ready", "{report:#}");
        }
        Ok(())
    }
}

/// The distribution's manifests on its node.
async fn works(distribution: Distribution) -> Result<()> {
    let manifests = Manifests::of(distribution.variant)?;
    let mut deployed = distribution.deploy(manifests).await?;
    deployed.serves().await?;
    deployed.assert_handlers().await?;
    deployed.assert_findings(distribution.findings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd() -> Result<()> {
    works(CONTAINERD).await
}

/// containerd without any configuration: its directory does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_without_configuration() -> Result<()> {
    works(Distribution {
        name: "bare",
        handlers: &[("runc", "overlayfs")],
        findings: &["containerd-config-missing"],
        ..CONTAINERD
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn k3s() -> Result<()> {
    works(rancher!("k3s", "docker.io/rancher/mirrored-pause:3.6")).await
}

/// Its pause image is written with the former name of the registry.
#[tokio::test(flavor = "multi_thread")]
async fn rke2() -> Result<()> {
    works(rancher!("rke2", "docker.io/rancher/mirrored-pause:3.6")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn microk8s() -> Result<()> {
    works(Distribution {
        name: "microk8s",
        variant: "microk8s",
        arguments: &[
            "--root=/var/snap/microk8s/common/var/lib/containerd",
            "--state=/var/snap/microk8s/common/run/containerd",
            "--address=/var/snap/microk8s/common/run/containerd.sock",
        ],
        config: "/var/snap/microk8s/current/args/containerd.toml",
        run: "/var/snap/microk8s/common/run",
        root: "/var/snap/microk8s/common/var/lib/containerd",
        handlers: &[
            ("kata", "native"),
            ("nvidia-container-runtime", "overlayfs"),
            ("runc", "overlayfs"),
        ],
        ..CONTAINERD
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn k0s() -> Result<()> {
    works(Distribution {
        name: "k0s",
        variant: "k0s",
        arguments: &[
            "--root=/var/lib/k0s/containerd",
            "--state=/run/k0s/containerd",
            "--address=/run/k0s/containerd.sock",
        ],
        config: "/etc/k0s/containerd.toml",
        run: "/run/k0s",
        root: "/var/lib/k0s/containerd",
        pause: "quay.io/k0sproject/pause:3.10.1",
        ..CONTAINERD
    })
    .await
}

/// The pause image is written without a tag.
#[tokio::test(flavor = "multi_thread")]
async fn eks() -> Result<()> {
    works(Distribution {
        name: "eks",
        pause: "localhost/kubernetes/pause:latest",
        findings: &["layers-discarded"],
        ..CONTAINERD
    })
    .await
}

/// NRI is off. `doctor` runs in the pod, its remedy is a patch of the machine configuration, and with what the patch
/// contains the pod that runs already is called.
#[tokio::test(flavor = "multi_thread")]
async fn talos() -> Result<()> {
    let distribution = Distribution {
        name: "talos",
        variant: "talos",
        arguments: &["--address=/run/containerd/containerd.sock"],
        config: "/etc/cri/containerd.toml",
        run: "/var/run/containerd",
        kubelet_sees: Some(&[
            "/var/run",
            "/var/lib/containerd",
            "/etc/kubernetes",
            "/etc/cni",
        ]),
        ..CONTAINERD
    };
    let manifests = Manifests::of("talos")?;
    let mut deployed = distribution.deploy(manifests).await?;
    deployed.assert_handlers().await?;
    let findings = deployed.findings().await?;
    let off = findings.iter().find(|it| it["id"] == "nri-off");
    let remedy = &off.with_context(|| format!("{findings:#?}"))?["remedy"];
    ensure!(remedy["file"].is_null(), "{remedy:#}");
    let lines = remedy["lines"].as_array().context("lines")?.iter();
    let lines: Vec<_> = lines.filter_map(Value::as_str).collect();
    let lines = lines.join("\n");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/distributions.md");
    let is_documented = std::fs::read_to_string(page)?.contains(&lines);
    ensure!(is_documented, "{lines}");
    let patch: Value = serde_saphyr::from_str(&lines)?;
    let file = &patch["machine"]["files"][0];
    ensure!(
        file["path"] == "/etc/cri/conf.d/20-customization.part",
        "{patch:#}"
    );
    let part: toml::Table = file["content"].as_str().context("content")?.parse()?;

    // What Talos makes of it.
    let root = deployed.node.lab.node_root().context("a tree")?;
    let merged = root.join("etc/cri/conf.d/cri.toml");
    let mut config: toml::Table = std::fs::read_to_string(&merged)?.parse()?;
    merge(&mut config, part);
    std::fs::write(&merged, config.to_string())?;
    let log = deployed.node.log.from_now();
    deployed.node.restart_containerd().await?;
    log.wait_for(RESOLVED, PATIENCE).await?;
    deployed.serves().await?;
    deployed.assert_findings(distribution.findings).await
}

/// Merges two documents, table by table.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => _ = into.insert(key, value),
        }
    }
}

/// kata-deploy's file is outside of containerd's directory: it is read with the component, and `doctor` says so
/// without it.
#[tokio::test(flavor = "multi_thread")]
async fn kata_deploy() -> Result<()> {
    let distribution = Distribution {
        name: "kata-deploy",
        handlers: &[("kata-qemu-runtime-rs", "erofs"), ("runc", "overlayfs")],
        // kata-deploy writes `runtime_platforms`, with which a pull that names the handler fails on containerd 2.1.
        findings: &["handler-pull-fails"],
        ..CONTAINERD
    };
    let mut without = distribution.deploy(Manifests::of("base")?).await?;
    without.serves().await?;
    without.assert_handlers().await?;
    without.assert_findings(&["containerd-config"]).await?;
    drop(without);
    let manifests = Manifests::with_component("base", "kata-deploy")?;
    let mut with = distribution.deploy(manifests).await?;
    with.serves().await?;
    with.assert_handlers().await?;
    with.assert_findings(distribution.findings).await
}

/// A wrong type, and a wrong path, of any mount keep the pod from starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_mount_is_found() -> Result<()> {
    let distribution = CONTAINERD;
    let node = distribution.start().await?;
    let manifests = Manifests::of("base")?;
    distribution.mount(&node.lab, &manifests)?;
    for wrong in ["File", "Socket"] {
        let mut manifests = Manifests::of("base")?;
        manifests.host_path("containerd-run")?.type_ = Some(wrong.to_owned());
        let Err(error) = distribution.mount(&node.lab, &manifests) else {
            bail!("{wrong} was not found");
        };
        ensure!(error.to_string().contains("/run/containerd"), "{error:#}");
    }
    let mut manifests = Manifests::of("base")?;
    manifests.host_path("containerd-root")?.path =
        "/var/lib/rancher/k3s/agent/containerd".to_owned();
    ensure!(distribution.mount(&node.lab, &manifests).is_err());
    Ok(())
}
