//! Credentials of registries, with which missing blobs are pulled.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lab::{PASSWORD, Registry, USER, Version};

use super::{LEVELS, Level};
use crate::pull::node_without_blobs;
use crate::support::{APP, Node, PATIENCE, RESOLVED};

/// Entries of other hosts in the same file.
const TOKEN: &str = "identity-token-of-a-registry";
const PLAIN: &str = "password-of-another-registry";
/// A password that the registry refuses.
const WRONG: &str = "password-that-is-refused";
/// What is in a file that is none.
const BROKEN: &str = "password-in-a-broken-file";
/// A header that containerd sends to the registry.
const HEADER: &str = "header-of-the-hosts-file";

const SECRETS: [&str; 6] = [PASSWORD, TOKEN, PLAIN, WRONG, BROKEN, HEADER];

fn credentials(host: &str, password: &str) -> String {
    let auth = STANDARD.encode(format!("{USER}:{password}"));
    format!(
        r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}, "a.example": {{"identitytoken": "{TOKEN}"}},
        "b.example": {{"username": "u", "password": "{PLAIN}"}}}}}}"#
    )
}

impl Node {
    fn pulling(&self, credentials: &std::path::Path) -> String {
        let hosts = self.lab.path("hosts");
        self.config(&format!(
            "[unpack]\nmin_free = \"0%\"\nmissing_content = [\"pull\"]\n[pull]\nhosts = {hosts:?}\ncredentials = {credentials:?}\n"
        ))
    }
}

async fn credentials_are_not_shown(level: Level) -> Result<()> {
    let mut node = node_without_blobs(Version::V2_1, Registry::start().await?).await?;
    let registry = Registry::start_private().await?;
    registry.push(&node.image).await?;
    node.lab.use_registry(&registry)?;
    let hosts = node.lab.path("hosts/registry.test/hosts.toml");
    let address = registry.pull_address().to_owned();
    let header = format!("[host.\"http://{address}\".header]\nx-lab = \"{HEADER}\"\n");
    std::fs::write(&hosts, std::fs::read_to_string(&hosts)? + &header)?;

    node.log_at(level)?;
    let files = [
        ("refused", credentials(&address, WRONG)),
        (
            "broken",
            format!("{{\"auths\": {{\"{address}\": \"{BROKEN}\"}}}}"),
        ),
        (
            "not-base64",
            format!("{{\"auths\": {{\"{address}\": {{\"auth\": \"{BROKEN}\"}}}}}}"),
        ),
        // The last one is the one with which the pulls succeed.
        ("good", credentials(&address, PASSWORD)),
    ];
    for (name, text) in files {
        let file = node.lab.path(&format!("{name}.json"));
        std::fs::write(&file, text)?;
        let config = node.pulling(&file);
        let metrics = node.start_traced(&config)?;
        node.log.wait_for(RESOLVED, PATIENCE).await?;
        let annotation = [("nri-unpack/images", APP)];
        let pod = node.cri.run_pod("erofs", &annotation).await?;
        if name == "good" {
            node.wait_labelled("erofs").await?;
            node.cri.create_container(&pod, APP, &[], &[]).await?;
        } else {
            let failed = node.log.wait_for("pull: ", PATIENCE).await;
            failed.context(name)?;
        }
        node.cri.remove_pod(&pod).await?;
        node.check_plugin(&format!("{level:?}, {name}"), &metrics, &SECRETS)
            .await?;
        let path = node.lab.path("commands.toml");
        std::fs::write(&path, &config)?;
        node.check_commands(name, &path, &SECRETS)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_registries_are_not_shown() -> Result<()> {
    credentials_are_not_shown(LEVELS[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_registries_are_not_shown_by_any_crate() -> Result<()> {
    credentials_are_not_shown(LEVELS[1]).await
}
