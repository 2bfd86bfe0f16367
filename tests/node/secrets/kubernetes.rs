//! The token, the key and the addresses in a kubeconfig.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lab::{ApiServer, Version};

use super::{LEVELS, Level};
use crate::bound::{CLASS, NODE, pod};
use crate::support::{Node, PATIENCE, handler};

const TOKEN: &str = "token-of-the-service-account";
const WRONG: &str = "token-that-is-refused";
const USER_INFO: &str = "password-in-an-address";
const BASIC: &str = "password-of-a-user";
const BROKEN: &str = "token-in-a-broken-file";

/// Returns a kubeconfig with this address and this user.
fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters: [{{name: lab, cluster: {{{cluster}}}}}]\n\
         contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n\
         users: [{{name: lab, user: {user}}}]\n"
    )
}

async fn a_kubeconfig_is_not_shown(level: Level) -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.log_at(level)?;
    let server = ApiServer::start().await?;
    server.set_token(TOKEN);
    let tls = ApiServer::start_with_tls().await?;
    for server in [&server, &tls] {
        server.put_class(CLASS, handler(Version::V2_1));
        server.put_pod(pod("1", Some(CLASS), &[node.image.name()]));
    }
    let (certificate, key) = tls.certificate().context("no TLS")?;
    let (certificate, key) = (certificate.to_owned(), key.to_owned());
    // A line of the key, as the file has it.
    let of_key = key.lines().nth(1).context("a key has lines")?.to_owned();
    let key_file = node.lab.path("client.key");
    std::fs::write(&key_file, format!("{key}{BROKEN}"))?;
    let secrets = [TOKEN, WRONG, USER_INFO, BASIC, BROKEN, &of_key];

    let address = server.address().to_owned();
    let inline = format!(
        "{{client-certificate-data: {}, client-key-data: {}}}",
        STANDARD.encode(&certificate),
        STANDARD.encode(&key)
    );
    let plain = format!("server: 'http://{address}'");
    let token = format!("{{token: {TOKEN}}}");
    let works = "watch at the API server begins what=pods";
    let fails = "watch at the API server failed";
    let unusable = "cannot be used";
    let cases = [
        ("token", server.kubeconfig(&token), works),
        ("key", tls.kubeconfig(&inline), works),
        (
            "wrong token",
            kubeconfig(&plain, &format!("{{token: {WRONG}}}")),
            fails,
        ),
        (
            "user in the address",
            kubeconfig(&format!("server: 'http://u:{USER_INFO}@{address}'"), &token),
            "API server",
        ),
        (
            "unreachable",
            kubeconfig(
                &format!("server: 'https://u:{USER_INFO}@127.0.0.1:1'"),
                &token,
            ),
            fails,
        ),
        (
            "a proxy",
            kubeconfig(
                &format!("{plain}, proxy-url: 'http://u:{USER_INFO}@127.0.0.1:1'"),
                &token,
            ),
            "API server",
        ),
        (
            "no address",
            kubeconfig(&format!("server: 'u:{USER_INFO}@not an address'"), &token),
            "API server",
        ),
        (
            "a name and a password",
            kubeconfig(&plain, &format!("{{username: u, password: {BASIC}}}")),
            "API server",
        ),
        (
            "no YAML",
            format!("users: [{{token: {BROKEN}\n  {BROKEN}: {{{{"),
            "kubeconfig",
        ),
        (
            "another type",
            kubeconfig(&plain, &format!("[token, {BROKEN}]")),
            "kubeconfig",
        ),
        (
            "no key",
            tls.kubeconfig(&format!(
                "{{client-certificate-data: {}, client-key-data: {BROKEN}}}",
                STANDARD.encode(&certificate)
            )),
            unusable,
        ),
        (
            "a token with a line break",
            kubeconfig(&plain, &format!("{{token: \"{BROKEN}\\n\"}}")),
            "kubeconfig",
        ),
    ];
    for (what, text, words) in cases {
        let file = node.lab.path("kubeconfig");
        std::fs::write(&file, &text)?;
        let config = node.config(&format!(
            "[kubernetes]\nkubeconfig = {file:?}\nnode = \"{NODE}\"\n"
        ));
        let metrics = node.start_traced(&config)?;
        let logged = node.log.wait_for(words, PATIENCE).await;
        logged.with_context(|| what.to_owned())?;
        node.check_plugin(&format!("{level:?}, {what}"), &metrics, &secrets)
            .await?;
        let path = node.lab.path("commands.toml");
        std::fs::write(&path, &config)?;
        let mut doctor = std::process::Command::new(&node.program);
        let doctor = doctor
            .args(["doctor", "-vv", "--config"])
            .arg(&path)
            .output()?;
        super::check_output(&format!("{what}: doctor"), &doctor, &secrets)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kubeconfig_has_is_not_shown() -> Result<()> {
    a_kubeconfig_is_not_shown(LEVELS[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kubeconfig_has_is_not_shown_by_any_crate() -> Result<()> {
    a_kubeconfig_is_not_shown(LEVELS[1]).await
}
