//! Reads credentials from a file in the form of docker's `config.json`. Such a file may name helper programs.
//! They are not run: a daemon of the node must not read a user's keychain.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::containerd::{Login, Logins};

/// The names of docker's registry in the file. The first one is written with a scheme and a path.
const DOCKER: [&str; 2] = ["index.docker.io", "docker.io"];
/// The name of docker's registry when containerd looks up its credentials.
const DOCKER_HOST: &str = "registry-1.docker.io";

/// Why the configured file gives no credentials.
#[derive(Debug, thiserror::Error)]
pub(in crate::unpack) enum Error {
    #[error("cannot read the credentials {path}: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error("the credentials {path} are not in the form of docker's config.json: {reason}")]
    Malformed { path: String, reason: String },
}

/// Reads the file. This is done for each fetch: the file is short, and its content may be rotated without a
/// restart of the daemon.
pub(super) async fn read(path: &Path) -> Result<Logins, Error> {
    let name = || path.display().to_string();
    let text = tokio::fs::read(path).await;
    let text = text.map_err(|source| Error::Unreadable {
        path: name(),
        source,
    })?;
    parse(&text).map_err(|reason| Error::Malformed {
        path: name(),
        reason,
    })
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Parses the file. The reason of a failure never contains the file's content.
fn parse(text: &[u8]) -> Result<Logins, String> {
    let file: File = serde_json::from_slice(text)
        .map_err(|e| format!("line {}, column {}", e.line(), e.column()))?;
    let mut logins = Logins::new();
    for (key, auth) in file.auths {
        let host = host(&key);
        let login = auth
            .login()
            .ok_or_else(|| format!("auth of {host} is not base64 of user:password"))?;
        // An entry has no secret if a helper program keeps it.
        if !login.secret.is_empty() {
            logins.insert(host, login);
        }
    }
    Ok(logins)
}

/// Returns the host of an entry's key, which is a host or a URL: docker writes a URL for the first name of
/// [`DOCKER`].
fn host(key: &str) -> String {
    let (_, address) = key.split_once("://").unwrap_or(("", key));
    let host = address.split('/').next().unwrap_or(address);
    match DOCKER.contains(&host) {
        true => DOCKER_HOST.to_owned(),
        false => host.to_owned(),
    }
}

impl Auth {
    /// Returns the entry's login; `None` if the entry is malformed.
    fn login(self) -> Option<Login> {
        if !self.identitytoken.is_empty() {
            return Some(Login {
                username: String::new(),
                secret: self.identitytoken,
            });
        }
        if self.auth.is_empty() {
            return Some(Login {
                username: self.username,
                secret: self.password,
            });
        }
        let decoded = String::from_utf8(STANDARD.decode(self.auth).ok()?).ok()?;
        let (username, secret) = decoded.split_once(':')?;
        Some(Login {
            username: username.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(username: &str, secret: &str) -> Login {
        Login {
            username: username.to_owned(),
            secret: secret.to_owned(),
        }
    }

    #[test]
    fn every_form_that_docker_writes_is_read() {
        let text = r#"{
            "auths": {
                "https://DOCKER/v1/": {"auth": "dXNlcjpwYTpzcw=="},
                "registry.example:5000": {"username": "u", "password": "p"},
                "http://token.example/v2": {"auth": "eDo=", "identitytoken": "t"},
                "helped.example": {}
            },
            "credsStore": "desktop", "HttpHeaders": {"User-Agent": "x"}
        }"#;
        let text = text.replace("DOCKER", DOCKER[0]);
        let expected = [
            (DOCKER_HOST, login("user", "pa:ss")),
            ("registry.example:5000", login("u", "p")),
            ("token.example", login("", "t")),
        ];
        let expected: Logins = expected.map(|(k, v)| (k.to_owned(), v)).into();
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        assert_eq!(parse(b"{}").unwrap(), Logins::new());
    }

    #[test]
    fn an_error_contains_no_secret() {
        for (text, words) in [
            (
                r#"{"auths": {"a.example": {"auth": "secret"}}}"#,
                "auth of a.example",
            ),
            (
                r#"{"auths": {"a.example": {"auth": "c2VjcmV0"}}}"#,
                "auth of a.example",
            ),
            ("{\n\"auths\": \"secret\"}", "line 2"),
            ("secret", "line 1"),
        ] {
            let reason = parse(text.as_bytes()).unwrap_err();
            assert!(
                reason.contains(words) && !reason.contains("secret"),
                "{reason}"
            );
        }
        let shown = format!("{:?}", login("user", "secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[tokio::test]
    async fn the_error_names_a_missing_file() {
        let error = read(Path::new("/nowhere/config.json")).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/config.json"));
    }
}
