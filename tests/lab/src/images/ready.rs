//! The images that most tests use.

use anyhow::{Context, Result};
use serde_json::json;

use super::build::bytes;
use super::{Blob, Builder, Image, Layer};
use crate::packages::Packages;

/// The busybox commands in these images.
const APPLETS: &str =
    "cat df echo env find grep id ls md5sum mkdir mount ps rm sh sha256sum sleep stat touch wc";

/// Returns the pause image with these names: one layer, one process that sleeps. The process needs no signal
/// handlers, since containerd kills sandboxes.
///
/// # Errors
/// If busybox is not available.
pub fn pause(names: &[&str]) -> Result<Image> {
    let (first, others) = names
        .split_first()
        .context("the pause image needs a name")?;
    let mut builder = Image::builder(*first);
    for name in others {
        builder = builder.named(*name);
    }
    let layer = Layer::new()
        .file("busybox", 0o755, busybox()?)
        .symlink("sleep", "busybox");
    Ok(builder
        .layer(layer)
        .command(&["/sleep", LONG_SLEEP])
        .build())
}

/// Longer than any test, in seconds.
const LONG_SLEEP: &str = "1000000";

/// Returns an image of five layers: directories, busybox, two with a file and some random bytes, and one that
/// adds `/data/three` and hides `/data/one`. Each file contains its name.
///
/// # Errors
/// If busybox is not available.
pub fn app(name: &str) -> Result<Image> {
    Ok(with_busybox(name)?
        .layer(Layer::new().file("data/one", 0o644, "one\n").file(
            "data/noise1",
            0o644,
            random_bytes(1, 64 << 10),
        ))
        .layer(Layer::new().file("data/two", 0o644, "two\n").file(
            "data/noise2",
            0o644,
            random_bytes(2, 64 << 10),
        ))
        .layer(
            Layer::new()
                .whiteout("data/one")
                .file("data/three", 0o644, "three\n"),
        )
        .build())
}

/// Returns an image of `layers` layers on top of busybox, each with `bytes` random bytes in `/data/N`: the
/// unpack takes as long as a test needs.
///
/// # Errors
/// If busybox is not available.
pub fn large(name: &str, layers: usize, bytes: usize) -> Result<Image> {
    let add = |image: Builder, n: usize| {
        image.layer(Layer::new().file(
            &format!("data/{n}"),
            0o644,
            random_bytes(1000 + n as u64, bytes),
        ))
    };
    Ok((0..layers).fold(with_busybox(name)?, add).build())
}

/// Returns an image whose config containerd reads before a container starts: its user is `app`, 1234:1235 in
/// its own `/etc/passwd`, and `/data`, which holds `/data/kept`, is a volume.
///
/// # Errors
/// If busybox is not available.
pub fn service(name: &str) -> Result<Image> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1235:app:/data:/bin/sh\n";
    let layer = Layer::new()
        .file("etc/passwd", 0o644, passwd)
        .file("data/kept", 0o644, "kept\n");
    let image = with_busybox(name)?.layer(layer);
    Ok(image.user("app").volume("/data").build())
}

/// Returns an image of this many small layers on top of busybox: it shows all costs for each layer.
///
/// # Errors
/// If busybox is not available.
pub fn many_layers(name: &str, layers: usize) -> Result<Image> {
    large(name, layers, 16)
}

/// Returns an image of this many small layers on top of busybox, which no image of another name has: `/data/0`
/// and so on, each with its number and the name in it.
///
/// # Errors
/// If busybox is not available.
pub fn own_layers(name: &str, layers: usize) -> Result<Image> {
    Ok(with_own_layers(name, layers)?.build())
}

/// Like [`own_layers`], in the format that stargz mounts lazily.
///
/// # Errors
/// If busybox or the conversion program is not available.
pub fn estargz(name: &str, layers: usize) -> Result<Image> {
    Ok(with_own_layers(name, layers)?.estargz()?.build())
}

fn with_own_layers(name: &str, layers: usize) -> Result<Builder> {
    let add = |image: Builder, n: usize| {
        image.layer(Layer::new().file(&format!("data/{n}"), 0o644, format!("{n} of {name}\n")))
    };
    Ok((0..layers).fold(with_busybox(name)?, add))
}

/// Returns an image of docker's first schema: its name points to a manifest without a config.
pub fn schema1(name: &str) -> Image {
    let body =
        json!({ "schemaVersion": 1, "name": name, "tag": "1", "fsLayers": [], "history": [] });
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let manifest = Blob::new(media_type, bytes(&body));
    Image {
        names: vec![name.to_owned()],
        target: manifest.clone(),
        config: manifest.clone(),
        layers: Vec::new(),
        blobs: vec![manifest.clone()],
        manifest,
    }
}

/// Returns a builder with the two lowest layers of each image that runs a shell.
fn with_busybox(name: &str) -> Result<Builder> {
    let directories = ["data", "dev", "etc", "proc", "root", "sys", "var"];
    let base = directories
        .iter()
        .fold(Layer::new(), |layer, dir| layer.dir(dir, 0o755));
    let base = base
        .dir("tmp", 0o1777)
        .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\n");
    let programs = Layer::new()
        .dir("bin", 0o755)
        .file("bin/busybox", 0o755, busybox()?);
    let programs = APPLETS.split(' ').fold(programs, |layer, applet| {
        layer.symlink(&format!("bin/{applet}"), "busybox")
    });
    Ok(Image::builder(name)
        .layer(base)
        .layer(programs)
        .command(&["sleep", LONG_SLEEP]))
}

fn busybox() -> Result<Vec<u8>> {
    let path = Packages::fetch()?.program("busybox-static", "usr/bin/busybox");
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// Returns bytes that do not compress and are always the same: the `splitmix64` sequence.
fn random_bytes(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(bytes);
    out
}
