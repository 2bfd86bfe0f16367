//! A pod with a user namespace of its own (`hostUsers: false`), on a snapshotter that does not map IDs:
//! containerd creates its containers on a copy of the image with other owners.

use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, IdMapping, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RunPodSandboxRequest, UserNamespace,
};
use lab::{Lab, Options, Pod, Version};

use crate::guest_pull::{NYDUS, start_with};
use crate::support::{Node, ON_DEMAND, handler, write_script};

/// A pod with a user namespace needs a network namespace of its own; containerd needs no more of the network
/// than this plugin.
const CNI: &str = r#"#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
ADD) echo '{"cniVersion":"0.3.1","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"version":"4","interface":0,"address":"192.0.2.1/24"}]}' ;;
esac
"#;

fn install_network(lab: &Lab) -> Result<()> {
    let directory = lab.path("cni");
    fs::create_dir_all(&directory)?;
    for name in ["loopback", "none"] {
        let script = directory.join(name);
        write_script(&script, CNI)?;
    }
    let list = r#"{"cniVersion":"0.3.1","name":"lab-network","plugins":[{"type":"none"}]}"#;
    fs::write(directory.join("10-none.conflist"), list)?;
    Ok(())
}

/// containerd 2 asks runc whether it can map the IDs of mounts; the runc of Debian 12 does not report it. No
/// mount of these containers needs it.
const RUNC_WRAPPER: &str = r#"#!/bin/sh
for word; do
	case $word in features) "$0.real" "$@" | sed 's/"linux": {/"linux": {"mountExtensions": {"idmap": {"enabled": true}},/'; exit ;; esac
done
exec "$0.real" "$@"
"#;

/// Configures all handlers to use it after the next start of containerd.
fn use_runc_wrapper(lab: &Lab) -> Result<()> {
    let config = fs::read_to_string(lab.config())?;
    let line = config
        .lines()
        .find_map(|line| line.strip_prefix("BinaryName = "));
    let real = line.context("no runc")?;
    let script = lab.path("runc-for-user-namespaces");
    write_script(&script, RUNC_WRAPPER)?;
    let beside = lab.path("runc-for-user-namespaces.real");
    std::os::unix::fs::symlink(real.trim_matches('"'), beside)?;
    fs::write(lab.config(), config.replace(real, &format!("{script:?}")))?;
    Ok(())
}

fn namespaces() -> NamespaceOption {
    let mapping = IdMapping {
        host_id: 200_000,
        container_id: 0,
        length: 65_536,
    };
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![mapping],
            gids: vec![mapping],
        }),
        ..Default::default()
    }
}

impl Node {
    async fn run_pod_in_user_namespace(&mut self, handler: &str) -> Result<Pod> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "userns".to_owned(),
                namespace: "lab".to_owned(),
                uid: format!("userns-{handler}"),
                attempt: 0,
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.lab.cgroup(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let ran = self.cri.runtime.run_pod_sandbox(request).await?;
        let id = ran.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    async fn create_in_user_namespace(&mut self, pod: &Pod) -> Result<String> {
        let image = self.image.name().to_owned();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "userns".to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.clone(),
                user_specified_image: image,
                ..Default::default()
            }),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created = self.cri.runtime.create_container(request).await?;
        Ok(created.into_inner().container_id)
    }
}

/// The first creation succeeds: on the copy if the host has the image, and on a guest-pull chain if the guest
/// pulls.
async fn a_container_in_a_user_namespace_is_created(version: Version) -> Result<()> {
    // The users of a pod's namespace cannot access a checkout below /root.
    let mut options = Options::new(version);
    options.root_below = Some("/var/tmp".into());
    let mut node = start_with(version, options).await?;
    install_network(&node.lab)?;
    use_runc_wrapper(&node.lab)?;
    node.restart_containerd().await?;
    let local = handler(version);
    node.serve(ON_DEMAND).await?;
    for snapshotter in [local, NYDUS] {
        let pod = node.run_pod_in_user_namespace(snapshotter).await?;
        let container = node.create_in_user_namespace(&pod).await?;
        let snapshots = node.store.snapshots(snapshotter).await?;
        let find = |key: &str| snapshots.iter().find(|s| s.key == key);
        let own = find(&container).context("its own snapshot")?;
        ensure!(
            own.labels.keys().any(|k| k.ends_with("/uidmapping")),
            "{own:?}"
        );
        if snapshotter == local {
            let copy = find(&own.parent).context("the copy")?;
            ensure!(
                copy.parent == *node.image.chain_ids().last().context("layers")?,
                "{copy:?}"
            );
            // The hook decided by the container's image, which got its labels.
            node.wait_labelled(local).await?;
            node.cri.start_container(&container).await?;
        } else {
            // runc cannot start it: instead of a guest pull, the lab mounts files that belong to the host's
            // root user.
            node.assert_guest_pulls(&container).await?;
        }
    }
    let rejected = node.log.lines_with("verdict=rejected");
    ensure!(rejected.is_empty(), "{rejected:?}");
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_in_a_user_namespace_is_created_on_2_1() -> Result<()> {
    a_container_in_a_user_namespace_is_created(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_in_a_user_namespace_is_created_on_1_7() -> Result<()> {
    a_container_in_a_user_namespace_is_created(Version::V1_7).await
}
