//! Text from pods and images is shown on one line, escaped and truncated, in the log and by each command.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Version};

use crate::support::{Node, handler};

/// A name that contains a forged line of the log.
const FORGED: &str = "a\n[2026-01-01T00:00:00.000Z ERROR nri_unpack::hooks] forged";

/// Sequences that clear a terminal, set a colour, and reverse the direction of the text.
const SEQUENCES: &str = "b\u{1b}[2J\u{9b}31m\u{202e}c\r";

/// The limit for one line: a few texts of 2 KiB.
const MAX_LINE: usize = 16 << 10;

/// Checks that the text has no control characters but line ends.
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

async fn untrusted_text_is_shown_on_one_line(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let handler = handler(version);
    let huge = "x".repeat(200_000);
    for annotation in [FORGED, SEQUENCES, &huge, &format!("{FORGED},{SEQUENCES}")] {
        let annotations = [("nri-unpack/images", annotation)];
        node.cri.run_pod(handler, &annotations).await?;
    }
    node.wait_for_lines("are no image reference", 4).await?;

    // An archive may contain a name that no registry would accept, and any media type of a layer.
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
        "a line of the log does not begin with its time: {text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_text_is_escaped_and_truncated_on_2_1() -> Result<()> {
    untrusted_text_is_shown_on_one_line(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_text_is_escaped_and_truncated_on_1_7() -> Result<()> {
    untrusted_text_is_shown_on_one_line(Version::V1_7).await
}
