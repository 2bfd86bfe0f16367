//! Reads a request.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The limit of a request's head, and of its body.
const MAX_REQUEST: usize = 16 << 10;

/// A request without its headers but two.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) token: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) body: Vec<u8>,
}

pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Request, String)> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        ensure!(bytes.len() < MAX_REQUEST, "a request without end");
        bytes.push(stream.read_u8().await?);
    }
    let text = String::from_utf8(bytes)?;
    let mut lines = text.lines();
    let first = lines.next().context("no request")?;
    let (method, rest) = first.split_once(' ').context("no method")?;
    let target = rest.split(' ').next().context("no target")?.to_owned();
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let header = |name: &str| {
        let mut named = headers
            .iter()
            .filter(|(of, _)| of.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| *value)
    };
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let length = header("content-length").unwrap_or("0").parse()?;
    ensure!(length <= MAX_REQUEST, "a body of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: pairs
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect(),
        token: bearer.map(str::to_owned),
        content_type: header("content-type").map(str::to_owned),
        body,
    };
    Ok((request, target))
}

/// Returns a value of a query without its percent signs.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let digits = |rest: &mut std::str::Bytes<'_>| {
            let text = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&text).ok()?, 16).ok()
        };
        bytes.push(match byte {
            b'%' => digits(&mut rest).unwrap_or(byte),
            _ => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Request {
    /// Whether the field selector selects this object.
    pub(super) fn selects(&self, object: &Value) -> bool {
        let Some(selector) = self.query.get("fieldSelector") else {
            return true;
        };
        let node = selector.strip_prefix("spec.nodeName=");
        node.is_some_and(|node| object["spec"]["nodeName"] == node)
    }

    pub(super) fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true")
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.query.get(name)?.parse().ok()
    }
}
