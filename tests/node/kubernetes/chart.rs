//! The Helm chart renders the manifests that kustomize renders, for each distribution and component. Helm is not packaged;
//! [`render_chart`] has the part of it that the chart needs.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use lab::render_chart;
use nri_unpack::config::{Config, Eager};
use serde_json::{Value, json};

use super::manifests::{VARIANTS, checked, directory, documents, render, render_with};

/// The namespace of the manifests.
const NAMESPACE: &str = "kube-system";

fn chart(namespace: &str, values: &Value) -> Result<Vec<Value>> {
    let text = render_chart(&directory(), namespace, &values.to_string())?;
    let mut documents = documents(&text)?;
    documents.retain(|document| !document.is_null());
    for document in &documents {
        match document["kind"].as_str() {
            Some("DaemonSet") => drop(checked::<DaemonSet>(document)?),
            Some("ConfigMap") => drop(checked::<ConfigMap>(document)?),
            Some("ServiceAccount") => drop(checked::<ServiceAccount>(document)?),
            Some("ClusterRole") => drop(checked::<ClusterRole>(document)?),
            Some("ClusterRoleBinding") => drop(checked::<ClusterRoleBinding>(document)?),
            _ => bail!("this test does not know the kind of document: {document:#}"),
        }
    }
    Ok(documents)
}

/// Sorts the objects, and removes what may differ: the digest in the name of the configuration, and labels and the
/// namespace of the objects of components, which kustomize sets by where it is added, and Helm when it applies them.
fn comparable(mut documents: Vec<Value>) -> Result<Vec<Value>> {
    for document in &mut documents {
        match document["kind"].as_str() {
            Some("DaemonSet") => {
                let pod = document
                    .pointer_mut("/spec/template/spec")
                    .context("no pod")?;
                for volume in sorted(pod, "/volumes")? {
                    if let Some(name) = volume.pointer_mut("/configMap/name") {
                        *name = without_digest(name)?;
                    }
                }
                sorted(pod, "/containers/0/volumeMounts")?;
            }
            Some("ConfigMap") => {
                let name = without_digest(&document["metadata"]["name"])?;
                document["metadata"]["name"] = name;
            }
            _ => {
                let metadata = document["metadata"]
                    .as_object_mut()
                    .context("no metadata")?;
                metadata.remove("labels");
                metadata.remove("namespace");
            }
        }
    }
    let key = |document: &Value| {
        (
            document["kind"].to_string(),
            document["metadata"]["name"].to_string(),
        )
    };
    documents.sort_by_key(key);
    Ok(documents)
}

/// Sorts a list by the names of its elements: its order means nothing, and kustomize puts what a patch adds first.
fn sorted<'a>(object: &'a mut Value, list: &str) -> Result<&'a mut Vec<Value>> {
    let list = object.pointer_mut(list).and_then(Value::as_array_mut);
    let list = list.context("no list")?;
    list.sort_by_key(|element| element["name"].to_string());
    Ok(list)
}

fn without_digest(name: &Value) -> Result<Value> {
    let name = name.as_str().context("no name")?;
    let (name, digest) = name.rsplit_once('-').context("no digest")?;
    ensure!(
        name == "nri-unpack" && digest.len() == 10,
        "{name}-{digest}"
    );
    Ok(name.into())
}

fn assert_same(what: &str, chart: Vec<Value>, kustomize: Vec<Value>) -> Result<()> {
    let (chart, kustomize) = (comparable(chart)?, comparable(kustomize)?);
    ensure!(chart.len() == kustomize.len(), "{what}: {chart:#?}");
    for (chart, kustomize) in chart.iter().zip(&kustomize) {
        ensure!(
            chart == kustomize,
            "{what}: the chart has\n{chart:#}\nkustomize has\n{kustomize:#}"
        );
    }
    Ok(())
}

#[test]
fn the_chart_has_the_version_of_the_program() -> Result<()> {
    let text = std::fs::read_to_string(directory().join("Chart.yaml"))?;
    let [chart] = &documents(&text)?[..] else {
        bail!("not one document");
    };
    for key in ["version", "appVersion"] {
        ensure!(chart[key] == env!("CARGO_PKG_VERSION"), "{chart:#}");
    }
    Ok(())
}

#[test]
#[ignore = "compiles a program in Go: `make check-chart`"]
fn the_chart_renders_what_kustomize_renders() -> Result<()> {
    for variant in VARIANTS {
        let values = json!({"distribution": variant});
        assert_same(variant, chart(NAMESPACE, &values)?, render(variant)?)?;
        let values = json!({"distribution": variant, "watch": true});
        assert_same(
            variant,
            chart(NAMESPACE, &values)?,
            render_with(variant, &["watch"])?,
        )?;
        let values = json!({"distribution": variant, "taint": true});
        assert_same(
            variant,
            chart(NAMESPACE, &values)?,
            render_with(variant, &["token", "taint"])?,
        )?;
        let values = json!({"distribution": variant, "watch": true, "taint": true});
        assert_same(
            variant,
            chart(NAMESPACE, &values)?,
            render_with(variant, &["watch", "taint"])?,
        )?;
        let values = json!({"distribution": variant, "imports": ["/opt/kata/containerd/config.d"]});
        assert_same(
            variant,
            chart(NAMESPACE, &values)?,
            render_with(variant, &["kata-deploy"])?,
        )?;
    }
    // Without values.
    assert_same("default", chart(NAMESPACE, &json!({}))?, render("base")?)
}

#[test]
#[ignore = "compiles a program in Go: `make check-chart`"]
fn the_values_of_the_chart_are_used() -> Result<()> {
    let values = json!({
        "distribution": "k3s",
        "image": "registry.test/nri-unpack:2",
        "config": "[snapshotters.erofs]\neager = \"all\"\n",
        "paths": {"containerd-root": "/disk/containerd"},
        "imports": ["/a", "/b"],
        "metricsListen": "0.0.0.0:9464",
        "watch": true,
        "resources": {"limits": {"memory": "64Mi"}},
    });
    let documents = chart("other", &values)?;
    let of_kind = |kind: &str| {
        let mut all = documents
            .iter()
            .filter(move |document| document["kind"] == kind);
        all.next().with_context(|| format!("no {kind}"))
    };
    let daemon_set = of_kind("DaemonSet")?;
    let pod = &daemon_set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(
        container["image"] == "registry.test/nri-unpack:2",
        "{container:#}"
    );
    ensure!(
        container["resources"] == values["resources"],
        "{container:#}"
    );
    let volumes = pod["volumes"].as_array().context("no volumes")?.iter();
    let paths: Vec<_> = volumes
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    let expected = [
        "/run/k3s/containerd",
        "/var/run/nri",
        "/var/lib/rancher/k3s/agent/etc/containerd",
        "/disk/containerd",
        "/a",
        "/b",
    ];
    ensure!(paths == expected, "{paths:?}");
    let mounts = container["volumeMounts"]
        .as_array()
        .context("no mounts")?
        .iter();
    let mounts: Vec<_> = mounts
        .filter_map(|mount| mount["mountPath"].as_str())
        .collect();
    let own = "/etc/nri-unpack";
    ensure!(
        expected
            .iter()
            .chain([&own])
            .all(|path| mounts.contains(path)),
        "{mounts:?}"
    );
    ensure!(mounts.len() == expected.len() + 1, "{mounts:?}");

    let config_map = of_kind("ConfigMap")?;
    let config = config_map["data"]["config.toml"]
        .as_str()
        .context("no configuration")?;
    let config = Config::from_toml(config, "the chart")?;
    ensure!(config.snapshotter("erofs").eager == Eager::All);
    let listen = config.metrics.listen.as_ref().map(ToString::to_string);
    ensure!(listen.as_deref() == Some("0.0.0.0:9464"), "{listen:?}");
    ensure!(config.containerd.socket.as_ref().starts_with("/run/k3s"));
    let binding = of_kind("ClusterRoleBinding")?;
    ensure!(
        binding["subjects"][0]["namespace"] == "other",
        "{binding:#}"
    );
    for object in [daemon_set, config_map] {
        ensure!(object["metadata"]["namespace"] == "other", "{object:#}");
    }
    // Another configuration is rolled out.
    let other = chart("other", &json!({"distribution": "k3s"}))?;
    let other = other
        .iter()
        .find(|document| document["kind"] == "ConfigMap");
    ensure!(other.context("none")?["metadata"]["name"] != config_map["metadata"]["name"]);

    let Err(error) = chart("other", &json!({"distribution": "k4s"})) else {
        bail!("a distribution that does not exist");
    };
    ensure!(error.to_string().contains("there is no k4s"), "{error:#}");
    Ok(())
}
