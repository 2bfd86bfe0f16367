//! The kubelet's work for the plugin's pod, as far as the pod needs it: its volumes, and its container as a CRI
//! request. The paths of the node are mapped to those of a lab.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, Int64Value,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    MountPropagation, NamespaceMode, NamespaceOption, SeLinuxOption, SecurityProfile,
    security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{
    Container, Probe, ResourceRequirements, SELinuxOptions, SeccompProfile, SecurityContext,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lab::{Lab, Pod};

use super::manifests::Manifests;

/// containerd's root in the manifests.
const ROOT: &str = "/var/lib/containerd";

/// Returns the request for the container, which logs to this file below the lab.
pub(super) fn request(
    manifests: &Manifests,
    lab: &Lab,
    pod: &Pod,
    log: &str,
) -> Result<CreateContainerRequest> {
    let container = manifests.container()?;
    let mounts = container.volume_mounts.iter().flatten();
    let mounts = mounts.map(|mount| self::mount(manifests, lab, mount));
    let context = container.security_context.as_ref();
    let linux = LinuxContainerConfig {
        resources: container.resources.as_ref().map(resources).transpose()?,
        security_context: Some(security_context(context.context("no security context")?)?),
    };
    let mut sandbox = pod.config.clone();
    sandbox.log_directory = lab.path("").display().to_string();
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: log.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: container.image.clone().context("no image")?,
            ..Default::default()
        }),
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        mounts: mounts.collect::<Result<_>>()?,
        log_path: log.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    Ok(CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox),
    })
}

/// Returns the address and the path of a probe.
pub(super) fn probe_target(
    container: &Container,
    probe: Option<&Probe>,
) -> Result<(String, String)> {
    let get = probe.and_then(|probe| probe.http_get.as_ref());
    let get = get.context("no probe by HTTP")?;
    let mut ports = container.ports.iter().flatten();
    let port = match &get.port {
        IntOrString::Int(port) => Some(*port),
        IntOrString::String(name) => ports
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port),
    };
    let port = port.context("no port of this name")?;
    let host = get.host.as_deref().context("the pod's own address")?;
    let path = get.path.clone().context("no path")?;
    Ok((format!("{host}:{port}"), path))
}

/// Returns the lab's path for a path of the node. A lab with the root of a distribution's node has the same paths.
fn lab_path(lab: &Lab, host_path: &str) -> Result<PathBuf> {
    if lab.node_root().is_some() {
        return Ok(host_path.into());
    }
    let sockets = lab.socket().parent().map(Path::to_owned);
    match host_path {
        "/run/containerd" | "/var/run/nri" => sockets.context("no directory of sockets"),
        "/etc/containerd" => {
            let etc = lab.path("etc");
            std::fs::create_dir_all(&etc)?;
            std::fs::copy(lab.config(), etc.join("config.toml"))?;
            Ok(etc)
        }
        ROOT => Ok(lab.root().to_owned()),
        other => bail!("a lab has nothing in the place of {other}"),
    }
}

fn mount(manifests: &Manifests, lab: &Lab, mount: &VolumeMount) -> Result<Mount> {
    let volume = manifests.volume(&mount.name)?;
    let host_path = match (&volume.host_path, &volume.config_map) {
        (Some(host), None) => lab_path(lab, &host.path)?,
        (None, Some(_)) => {
            let directory = lab.path("volumes").join(&volume.name);
            std::fs::create_dir_all(&directory)?;
            for (name, text) in manifests.config_map.data.iter().flatten() {
                std::fs::write(directory.join(name), text)?;
            }
            directory
        }
        _ => bail!("a volume of another kind: {volume:?}"),
    };
    let host_path = host_path.display().to_string();
    // This path is the same on every node.
    let container_path = match &*mount.mount_path {
        ROOT => host_path.clone(),
        path => path.to_owned(),
    };
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("None") => MountPropagation::PropagationPrivate,
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some(other) => bail!("propagation {other}"),
    };
    Ok(Mount {
        container_path,
        host_path,
        readonly: mount.read_only == Some(true),
        propagation: propagation.into(),
        ..Default::default()
    })
}

fn security_context(context: &SecurityContext) -> Result<LinuxContainerSecurityContext> {
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let namespaces = NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    };
    let id = |id: Option<i64>| id.map(|value| Int64Value { value });
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged: context.privileged == Some(true),
        namespace_options: Some(namespaces),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user: id(context.run_as_user),
        run_as_group: id(context.run_as_group),
        readonly_rootfs: context.read_only_root_filesystem == Some(true),
        no_new_privs: context.allow_privilege_escalation == Some(false),
        seccomp: context.seccomp_profile.as_ref().map(seccomp).transpose()?,
        ..Default::default()
    })
}

fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    SeLinuxOption {
        user: word(&options.user),
        role: word(&options.role),
        r#type: word(&options.type_),
        level: word(&options.level),
    }
}

fn seccomp(profile: &SeccompProfile) -> Result<SecurityProfile> {
    ensure!(profile.type_ == "RuntimeDefault", "{profile:?}");
    Ok(SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        ..Default::default()
    })
}

fn resources(resources: &ResourceRequirements) -> Result<LinuxContainerResources> {
    let limits = resources.limits.iter().flatten();
    let mut linux = LinuxContainerResources::default();
    for (name, limit) in limits {
        let mebibytes = limit.0.strip_suffix("Mi").context("not in Mi")?;
        ensure!(name == "memory", "a limit of {name}");
        linux.memory_limit_in_bytes = mebibytes.parse::<i64>()? << 20;
    }
    Ok(linux)
}
