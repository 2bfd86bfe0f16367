//! The component that lets the plugin watch the pods of its node, in each variant: what it adds, and that nothing of it
//! is there without it.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::manifests::{VARIANTS, checked, render, render_with};

/// Returns the only document of this kind.
fn only<T: Serialize + DeserializeOwned>(documents: &[Value], kind: &str) -> Result<T> {
    let mut of_kind = documents.iter().filter(|document| document["kind"] == kind);
    let document = of_kind.next().with_context(|| format!("no {kind}"))?;
    ensure!(of_kind.next().is_none(), "two {kind}");
    checked(document)
}

fn pod(documents: &[Value]) -> Result<PodSpec> {
    let daemon_set: DaemonSet = only(documents, "DaemonSet")?;
    let spec = daemon_set.spec.context("no spec")?;
    spec.template.spec.context("no pod")
}

#[test]
fn no_variant_has_a_token() -> Result<()> {
    for variant in VARIANTS {
        let documents = render(variant)?;
        ensure!(documents.len() == 2, "{variant}: {documents:#?}");
        let pod = pod(&documents)?;
        ensure!(
            pod.automount_service_account_token == Some(false),
            "{variant}"
        );
        ensure!(pod.service_account_name.is_none(), "{variant}");
    }
    Ok(())
}

#[test]
fn the_component_adds_a_token_that_lists_and_watches() -> Result<()> {
    for variant in VARIANTS {
        let documents = render_with(variant, &["watch"])?;
        ensure!(documents.len() == 5, "{variant}: {documents:#?}");

        let account: ServiceAccount = only(&documents, "ServiceAccount")?;
        ensure!(account.metadata.namespace.as_deref() == Some("kube-system"));
        let name = account.metadata.name.context("no name")?;
        let pod = pod(&documents)?;
        ensure!(
            pod.automount_service_account_token == Some(true),
            "{variant}"
        );
        ensure!(
            pod.service_account_name.as_ref() == Some(&name),
            "{variant}"
        );
        let env = serde_json::to_value(&pod.containers[0].env)?;
        let field = &env[0]["valueFrom"]["fieldRef"]["fieldPath"];
        ensure!(
            env[0]["name"] == "NODE_NAME" && field == "spec.nodeName",
            "{env:#}"
        );
        ensure!(
            !pod.containers[0]
                .volume_mounts
                .iter()
                .flatten()
                .any(|m| m.read_only != Some(true))
        );

        let role: ClusterRole = only(&documents, "ClusterRole")?;
        let rules = role.rules.context("no rules")?;
        let rules = rules.iter().map(|rule| {
            let groups = rule.api_groups.as_deref().unwrap_or_default();
            let resources = rule.resources.as_deref().unwrap_or_default();
            (groups.join(","), resources.join(","), rule.verbs.join(","))
        });
        let rules: Vec<_> = rules.collect();
        let owned = |group: &str, resource: &str| {
            (
                group.to_owned(),
                resource.to_owned(),
                "list,watch".to_owned(),
            )
        };
        ensure!(
            rules == [owned("", "pods"), owned("node.k8s.io", "runtimeclasses")],
            "{rules:?}"
        );
        let binding: ClusterRoleBinding = only(&documents, "ClusterRoleBinding")?;
        ensure!(Some(&binding.role_ref.name) == role.metadata.name.as_ref());
        let subjects = binding.subjects.context("no subjects")?;
        ensure!(subjects.len() == 1 && subjects[0].name == name);
        ensure!(subjects[0].namespace.as_deref() == Some("kube-system"));
    }
    Ok(())
}
