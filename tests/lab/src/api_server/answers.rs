//! The answers: lists with pages, watches, and errors.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::request::Request;
use super::{Mode, Shared};

pub(super) async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    code: u16,
    body: &str,
) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message})
}

pub(super) async fn fail(
    stream: &mut (impl AsyncWrite + Unpin),
    code: u16,
    message: &str,
) -> Result<()> {
    send(stream, code, &status(code, message).to_string()).await
}

/// Returns the event that nothing has changed up to this version.
pub(super) fn bookmark(version: u64) -> Value {
    let object = json!({"metadata": {"resourceVersion": version.to_string()}});
    json!({"type": "BOOKMARK", "object": object})
}

/// Sends bytes that are no JSON and have no end of a line, until the client goes.
pub(super) async fn garbage(stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    begin_chunks(stream).await?;
    loop {
        chunk(stream, &[0xc3; 4096]).await?;
    }
}

pub(super) async fn begin_chunks(stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    Ok(())
}

pub(super) async fn chunk(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let head = format!("{:x}\r\n", bytes.len());
    stream
        .write_all(&[head.as_bytes(), bytes, b"\r\n"].concat())
        .await?;
    stream.flush().await?;
    Ok(())
}

pub(super) async fn send_list(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    path: &'static str,
    request: &Request,
) -> Result<()> {
    let from = request.number("continue").unwrap_or_default() as usize;
    let list = {
        let state = shared.state.lock();
        let limit = request.number("limit").unwrap_or(u64::MAX);
        let limit = state.page.min(usize::try_from(limit).unwrap_or(usize::MAX));
        let of_path = state.objects.iter().filter(|((of, _), _)| *of == path);
        let all: Vec<_> = of_path.map(|(_, object)| object).collect();
        let all: Vec<_> = all
            .into_iter()
            .filter(|object| request.selects(object))
            .collect();
        let items: Vec<_> = all.iter().skip(from).take(limit).collect();
        let mut metadata = json!({"resourceVersion": state.version.to_string()});
        if from + items.len() < all.len() {
            metadata["continue"] = (from + items.len()).to_string().into();
        }
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
    };
    send(stream, 200, &list.to_string()).await
}

pub(super) async fn send_events(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    path: &'static str,
    request: &Request,
    chosen: Option<Mode>,
) -> Result<()> {
    let mut sent = request.number("resourceVersion").unwrap_or_default();
    let lasts = request.number("timeoutSeconds").unwrap_or(1);
    let deadline = Instant::now() + Duration::from_secs(lasts);
    if sent < shared.state.lock().oldest {
        return fail(stream, 410, "too old resource version").await;
    }
    let (cuts, ends) = {
        let state = shared.state.lock();
        (state.cuts, state.ends)
    };
    let mut changes = shared.changes.subscribe();
    let _watched = shared.watched();
    begin_chunks(stream).await?;
    if let Some(Mode::HalfCut | Mode::HalfSilent) = chosen {
        let event = bookmark(sent).to_string() + "\n";
        let (first, rest) = event.as_bytes().split_at(event.len() / 2);
        chunk(stream, first).await?;
        if chosen == Some(Mode::HalfCut) {
            return Ok(());
        }
        shared.until_calm().await?;
        chunk(stream, rest).await?;
    }
    loop {
        changes.borrow_and_update();
        let (mode, lines, version) = {
            let state = shared.state.lock();
            if state.cuts != cuts {
                return Ok(());
            }
            if state.ends != ends {
                break;
            }
            let new = state.events.iter();
            let new = new.filter(|(version, of, event)| {
                let is_bookmark = event["type"] == "BOOKMARK";
                *version > sent && *of == path && (is_bookmark || request.selects(&event["object"]))
            });
            let lines: Vec<_> = new.map(|(_, _, event)| event.to_string() + "\n").collect();
            (state.mode, lines, state.version)
        };
        for line in lines {
            chunk(stream, line.as_bytes()).await?;
        }
        sent = version;
        match mode {
            Mode::Cut => return Ok(()),
            Mode::CutWatch => return chunk(stream, b"{\"type\":\"ADD").await,
            Mode::WatchError(code) => {
                let event = json!({"type": "ERROR", "object": status(code, "as the test says")});
                chunk(stream, (event.to_string() + "\n").as_bytes()).await?;
                break;
            }
            _ => {}
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(changed) => changed?,
            Err(_) => break,
        }
    }
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(())
}
