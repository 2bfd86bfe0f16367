//! What pods and images say is shown on one line, escaped and bounded: in the log, and by each command.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Version};

use crate::support::{Node, handler};

/// A line of the log as text has it, in the middle of a name.
const FORGED: &str = "a\n[2026-01-01T00:00:00.000Z ERROR nri_unpack::hooks] forged";

/// What clears a terminal, colours it, and turns the rest of a line around.
const SEQUENCES: &str = "b\u{1b}[2J\u{9b}31m\u{202e}c\r";

/// The most that one line may take: a handful of texts of 2 KiB.
const MAX_LINE: usize = 16 << 10;

/// Nothing but text and the ends of lines.
fn ensure_plain(what: &str, text: &str) -> Result<()> {
    let is_control = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
    for line in text.lines() {
        ensure!(!line.contains(is_control), "{what}: {line:?}");
        ensure!(
            line.len() <= MAX_LINE,
            "{what}: a line of {} bytes",
            line.len()
        );
        ensure!(!line.starts_with("[2026-01-01T00"), "{what}: {line:?}");
    }
    Ok(())
}

async fn shown_on_one_line(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let handler = handler(version);
    let huge = "x".repeat(200_000);
    for annotation in [FORGED, SEQUENCES, &huge, &format!("{FORGED},{SEQUENCES}")] {
        let annotations = [("nri-unpack/images", annotation)];
        node.cri.run_pod(handler, &annotations).await?;
    }
    node.wait_for_lines("are no image reference", 4).await?;

    // An archive may bring a name along that no registry would take, and a layer's media type.
    let name = format!("registry.test/{FORGED}{SEQUENCES}:1");
    let image = Image::builder(&name).layer(Layer::new().file("f", 0o644, "f\n"));
    let image = image.build();
    node.store.put_image(&image).await?;
    for arguments in [
        &["check", "--snapshotter", handler][..],
        &["check", "--snapshotter", handler, "--output", "wide"],
        &["check", "--snapshotter", handler, "--output", "json"],
        &["check", &name, "--snapshotter", handler],
        &["check", &format!("{name}2"), "--snapshotter", handler],
        &["ensure", "--all", "--dry-run", "--snapshotter", handler],
        &["ensure", "--all", "--snapshotter", handler],
        &[
            "ensure",
            &name,
            "--snapshotter",
            handler,
            "--output",
            "json",
        ],
        &["doctor"],
        &["doctor", "--output", "json"],
    ] {
        let output = node.command(arguments)?;
        for stream in [&output.stdout, &output.stderr] {
            ensure_plain(&format!("{arguments:?}"), std::str::from_utf8(stream)?)?;
        }
    }
    let text = node.log.text();
    ensure_plain("the log", &text)?;
    ensure!(
        text.lines().all(|line| line.starts_with("[20")),
        "a line of the log begins in the middle: {text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_shown_on_one_line_on_2_1() -> Result<()> {
    shown_on_one_line(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_shown_on_one_line_on_1_7() -> Result<()> {
    shown_on_one_line(Version::V1_7).await
}
