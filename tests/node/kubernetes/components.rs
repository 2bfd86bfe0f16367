//! The components, in each variant. Those that let the plugin use the API server: what they add, alone and together, and
//! that nothing of it is there without them. The one that purges: what it changes.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

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

/// The pod has the token of this account, and the name of its node.
fn assert_has_token(documents: &[Value]) -> Result<String> {
    let account: ServiceAccount = only(documents, "ServiceAccount")?;
    ensure!(account.metadata.namespace.as_deref() == Some("kube-system"));
    let name = account.metadata.name.context("no name")?;
    let pod = pod(documents)?;
    ensure!(pod.automount_service_account_token == Some(true));
    ensure!(pod.service_account_name.as_ref() == Some(&name));
    let env = serde_json::to_value(&pod.containers[0].env)?;
    let field = &env[0]["valueFrom"]["fieldRef"]["fieldPath"];
    ensure!(
        env[0]["name"] == "NODE_NAME" && field == "spec.nodeName",
        "{env:#}"
    );
    let mut mounts = pod.containers[0].volume_mounts.iter().flatten();
    ensure!(mounts.all(|mount| mount.read_only == Some(true)));
    Ok(name)
}

/// Returns the rules of each role that is bound to this account.
fn rules(documents: &[Value], account: &str) -> Result<Vec<[String; 3]>> {
    let of_kind = |kind| {
        documents
            .iter()
            .filter(move |document| document["kind"] == kind)
    };
    let mut rules = Vec::new();
    for binding in of_kind("ClusterRoleBinding") {
        let binding: ClusterRoleBinding = checked(binding)?;
        let subjects = binding.subjects.context("no subjects")?;
        ensure!(subjects.len() == 1 && subjects[0].name == account);
        ensure!(subjects[0].namespace.as_deref() == Some("kube-system"));
        let mut roles = of_kind("ClusterRole");
        let role = roles.find(|role| role["metadata"]["name"] == binding.role_ref.name);
        let role: ClusterRole = checked(role.context("no such role")?)?;
        for rule in role.rules.context("no rules")? {
            let groups = rule.api_groups.unwrap_or_default();
            let resources = rule.resources.unwrap_or_default();
            rules.push([groups.join(","), resources.join(","), rule.verbs.join(",")]);
        }
    }
    ensure!(of_kind("ClusterRole").count() == of_kind("ClusterRoleBinding").count());
    Ok(rules)
}

#[test]
fn each_set_of_components_gives_one_token_with_the_least_rights() -> Result<()> {
    let rule =
        |group: &str, resource: &str, verbs: &str| [group, resource, verbs].map(str::to_owned);
    let watch = [
        rule("", "pods", "list,watch"),
        rule("node.k8s.io", "runtimeclasses", "list,watch"),
    ];
    let taint = [rule("", "nodes", "get,patch")];
    let sets: [(&[&str], Vec<_>); 3] = [
        (&["watch"], watch.to_vec()),
        (&["token", "taint"], taint.to_vec()),
        (&["watch", "taint"], [&watch[..], &taint].concat()),
    ];
    for variant in VARIANTS {
        for (components, expected) in &sets {
            let of = || format!("{variant} with {components:?}");
            let documents = render_with(variant, components).with_context(of)?;
            let account = assert_has_token(&documents).with_context(of)?;
            let mut rules = rules(&documents, &account).with_context(of)?;
            rules.sort_by_key(|rule| expected.iter().position(|of| of == rule));
            ensure!(rules == *expected, "{}: {rules:?}", of());
        }
    }
    Ok(())
}

#[test]
fn purge_takes_the_place_of_the_plugin() -> Result<()> {
    for variant in VARIANTS {
        let (plugin, purge) = (render(variant)?, render_with(variant, &["purge"])?);
        let (plugin, mut purge) = (only_pod(&plugin)?, only_pod(&purge)?);
        ensure!(purge["hostPID"] == true, "{variant}");
        let mut expected = plugin;
        expected["hostPID"] = true.into();
        let container = &mut expected["containers"][0];
        container["args"] = json!(["purge"]);
        container["securityContext"]["capabilities"]["add"] =
            json!(["DAC_READ_SEARCH", "SYS_PTRACE"]);
        for key in ["ports", "livenessProbe", "readinessProbe"] {
            let fields = container.as_object_mut().context("a container")?;
            ensure!(fields.remove(key).is_some(), "{variant}: {key}");
        }
        let fields = purge["containers"][0].as_object_mut();
        let ports = fields.context("a container")?.remove("ports");
        ensure!(ports.is_none_or(|ports| ports == json!([])), "{variant}");
        ensure!(purge == expected, "{variant}: {purge:#}");
    }
    Ok(())
}

/// Returns the only pod, as a document.
fn only_pod(documents: &[Value]) -> Result<Value> {
    Ok(serde_json::to_value(pod(documents)?)?)
}
