//! The credentials of a kubeconfig: a client's certificate, or a token, in the file or in files that it names.

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use lab::{ApiServer, Log, Version};

use super::{CLASS, NODE, pod};
use crate::support::{Node, PATIENCE, handler};

const TOKEN: &str = "a-token-of-the-lab";

/// Has the image of a bound pod made ready by a plugin with these credentials; the plugin starts anew.
async fn works_with(node: &mut Node, server: &ApiServer, user: &str) -> Result<()> {
    let handler = handler(Version::V2_1);
    let path = node.lab.path("kubeconfig");
    std::fs::write(&path, server.kubeconfig(user))?;
    let config = format!("[kubernetes]\nkubeconfig = {path:?}\nnode = \"{NODE}\"\n");
    let log = Log::new(node.lab.path("plugin.log")).from_now();
    node.serve(&config).await?;
    let begins = log.wait_for("watch at the API server begins what=pods", PATIENCE);
    begins.await.context(user.to_owned())?;
    node.wait_labelled(handler).await?;
    node.plugin.as_mut().context("no plugin")?.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_tokens_are_used() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let put = |server: &ApiServer, node: &Node| {
        server.put_class(CLASS, handler(Version::V2_1));
        server.put_pod(pod("1", Some(CLASS), &[node.image.name()]));
    };
    let server = ApiServer::start_with_tls().await?;
    put(&server, &node);
    let (certificate, key) = server.certificate().context("no TLS")?;
    let files = [node.lab.path("client.crt"), node.lab.path("client.key")];
    std::fs::write(&files[0], certificate)?;
    std::fs::write(&files[1], key)?;
    let inline = format!(
        "{{client-certificate-data: {}, client-key-data: {}}}",
        BASE64_STANDARD.encode(certificate),
        BASE64_STANDARD.encode(key)
    );
    works_with(&mut node, &server, &inline).await?;
    // As the kubelet's own, next to the kubeconfig.
    let named = "{client-certificate: client.crt, client-key: client.key}";
    works_with(&mut node, &server, named).await?;

    let server = ApiServer::start().await?;
    put(&server, &node);
    server.set_token(TOKEN);
    works_with(&mut node, &server, &format!("{{token: {TOKEN}}}")).await?;
    let file = node.lab.path("token");
    std::fs::write(&file, TOKEN)?;
    works_with(
        &mut node,
        &server,
        &format!("{{tokenFile: {}}}", file.display()),
    )
    .await
}
