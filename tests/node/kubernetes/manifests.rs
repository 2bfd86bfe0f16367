//! The manifests as kustomize renders them, compared with the published schemas: a field that is in no schema
//! is an error.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, HostPathVolumeSource, PodSpec, Volume};
use lab::Packages;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Every directory that an administrator may apply.
pub(super) const VARIANTS: [&str; 6] = ["base", "k3s", "rke2", "microk8s", "k0s", "talos"];

/// The rendered objects of a directory.
pub(super) struct Manifests {
    pub(super) daemon_set: DaemonSet,
    pub(super) config_map: ConfigMap,
}

pub(super) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kubernetes")
}

/// Returns the documents of a YAML text.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(text)?)
}

/// Returns the documents that kustomize renders for a variant.
pub(super) fn render(variant: &str) -> Result<Vec<Value>> {
    render_below(&directory(), variant)
}

/// Like [`render`], in another directory with variants.
pub(super) fn render_below(directory: &Path, variant: &str) -> Result<Vec<Value>> {
    let kustomize = Packages::fetch()?.program("kustomize", "usr/bin/kustomize");
    let mut command = Command::new(kustomize);
    let output = command.arg("build").arg(directory.join(variant));
    let output = output.output().context("running kustomize")?;
    // kustomize warns of deprecated fields on stderr.
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{variant}: {output:?}"
    );
    documents(&String::from_utf8(output.stdout)?)
}

/// Copies the manifests, adds components to a variant as `kustomize edit add component` does, and returns what kustomize
/// renders for it.
pub(super) fn render_with(variant: &str, components: &[&str]) -> Result<Vec<Value>> {
    const KEY: &str = "components:\n";
    let work = tempfile::tempdir()?;
    copy(&directory(), work.path())?;
    let file = work.path().join(variant).join("kustomization.yaml");
    let mut text = std::fs::read_to_string(&file)?;
    if !text.contains(KEY) {
        text += KEY;
    }
    // The list is the end of the file.
    let lines = components.iter().map(|name| format!("  - ../{name}\n"));
    text.extend(lines);
    std::fs::write(&file, text)?;
    render_below(work.path(), variant)
}

/// Copies a directory with its directories.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => drop(std::fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

impl Manifests {
    pub(super) fn of(variant: &str) -> Result<Self> {
        Self::from_documents(render(variant)?)
    }

    /// Like [`Self::of`], with a component that adds no objects.
    pub(super) fn with_component(variant: &str, component: &str) -> Result<Self> {
        Self::from_documents(render_with(variant, &[component])?)
    }

    fn from_documents(documents: Vec<Value>) -> Result<Self> {
        let (mut daemon_set, mut config_map) = (None, None);
        for document in documents {
            match document["kind"].as_str() {
                Some("DaemonSet") => daemon_set = Some(checked(&document)?),
                Some("ConfigMap") => config_map = Some(checked(&document)?),
                _ => bail!("this test does not know the kind of document: {document:#}"),
            }
        }
        Ok(Self {
            daemon_set: daemon_set.context("a DaemonSet")?,
            config_map: config_map.context("a ConfigMap")?,
        })
    }

    pub(super) fn pod(&self) -> Result<&PodSpec> {
        let spec = self.daemon_set.spec.as_ref();
        spec.and_then(|spec| spec.template.spec.as_ref())
            .context("no pod")
    }

    /// Returns the pod's annotations.
    pub(super) fn annotations(&self) -> Vec<(&str, &str)> {
        let metadata = self.daemon_set.spec.as_ref();
        let metadata = metadata.and_then(|spec| spec.template.metadata.as_ref());
        let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
        let annotations = annotations.into_iter().flatten();
        annotations.map(|(key, value)| (&**key, &**value)).collect()
    }

    pub(super) fn container(&self) -> Result<&Container> {
        match &self.pod()?.containers[..] {
            [container] => Ok(container),
            containers => bail!("{} containers", containers.len()),
        }
    }

    /// Returns the volume of a mount.
    pub(super) fn volume(&self, name: &str) -> Result<&Volume> {
        let volumes = self.pod()?.volumes.iter().flatten();
        let mut named = volumes.filter(|volume| volume.name == name);
        named.next().with_context(|| format!("no volume {name}"))
    }

    /// Returns the plugin's configuration.
    pub(super) fn config(&self) -> Result<&str> {
        let data = self.config_map.data.as_ref();
        let config = data.and_then(|data| data.get("config.toml"));
        config.map(String::as_str).context("no config.toml")
    }
}

/// Changes for tests.
impl Manifests {
    pub(super) fn set_config(&mut self, config: String) {
        let data = self.config_map.data.get_or_insert_default();
        data.insert("config.toml".to_owned(), config);
    }

    pub(super) fn set_arguments(&mut self, arguments: &[&str]) -> Result<()> {
        let arguments = arguments.iter().map(|&word| word.to_owned());
        self.container_mut()?.args = Some(arguments.collect());
        Ok(())
    }

    /// Returns the capabilities of the container.
    pub(super) fn capabilities(&mut self) -> Result<&mut Vec<String>> {
        let context = self.container_mut()?.security_context.as_mut();
        let capabilities = context.and_then(|context| context.capabilities.as_mut());
        capabilities
            .and_then(|capabilities| capabilities.add.as_mut())
            .context("no capabilities")
    }

    /// Returns the path of a volume.
    pub(super) fn host_path(&mut self, volume: &str) -> Result<&mut HostPathVolumeSource> {
        let mut volumes = self.pod_mut()?.volumes.iter_mut().flatten();
        let named = volumes.find(|it| it.name == volume);
        named
            .and_then(|it| it.host_path.as_mut())
            .context("no path of the node")
    }

    fn container_mut(&mut self) -> Result<&mut Container> {
        let mut containers = self.pod_mut()?.containers.iter_mut();
        containers.next().context("no container")
    }

    fn pod_mut(&mut self) -> Result<&mut PodSpec> {
        let spec = self.daemon_set.spec.as_mut();
        let pod = spec.and_then(|spec| spec.template.spec.as_mut());
        pod.context("no pod")
    }
}

/// Parses a document; returns an error if the type does not know all of its fields.
pub(super) fn checked<T: Serialize + DeserializeOwned>(document: &Value) -> Result<T> {
    let typed: T = serde_json::from_value(document.clone())?;
    let mut unknown = Vec::new();
    compare("", document, &serde_json::to_value(&typed)?, &mut unknown);
    ensure!(
        unknown.is_empty(),
        "not in the schema: {}",
        unknown.join(", ")
    );
    Ok(typed)
}

/// Collects the paths of fields that one value has and the other lacks.
fn compare(path: &str, value: &Value, other: &Value, differing: &mut Vec<String>) {
    match (value, other) {
        (Value::Object(fields), Value::Object(others)) => {
            for (name, field) in fields {
                let other = others.get(name).unwrap_or(&Value::Null);
                compare(&format!("{path}.{name}"), field, other, differing);
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            for (i, (item, other)) in items.iter().zip(others).enumerate() {
                compare(&format!("{path}[{i}]"), item, other, differing);
            }
        }
        _ if value == other => {}
        _ => differing.push(path.to_owned()),
    }
}
