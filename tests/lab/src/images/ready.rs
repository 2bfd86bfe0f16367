//! The images that most tests want.

use anyhow::{Context, Result};
use serde_json::json;

use super::build::bytes;
use super::{Blob, Builder, Image, Layer};
use crate::packages::Packages;

/// What busybox answers to in these images.
const APPLETS: &str =
    "cat df echo env find grep id ls md5sum mkdir mount ps rm sh sha256sum sleep stat touch wc";

/// The pause image under the names given: one layer, one process that sleeps. It needs no signal handling, since
/// containerd kills sandboxes.
///
/// # Errors
/// When busybox cannot be had.
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
    Ok(builder.layer(layer).command(&["/sleep", FOREVER]).build())
}

/// Longer than any test, in seconds.
const FOREVER: &str = "1000000";

/// Five layers: directories, busybox, two with a file and some noise, and one that adds `/data/three` and hides
/// `/data/one`. The files hold their names.
///
/// # Errors
/// When busybox cannot be had.
pub fn app(name: &str) -> Result<Image> {
    Ok(on_busybox(name)?
        .layer(Layer::new().file("data/one", 0o644, "one\n").file(
            "data/noise1",
            0o644,
            noise(1, 64 << 10),
        ))
        .layer(Layer::new().file("data/two", 0o644, "two\n").file(
            "data/noise2",
            0o644,
            noise(2, 64 << 10),
        ))
        .layer(
            Layer::new()
                .whiteout("data/one")
                .file("data/three", 0o644, "three\n"),
        )
        .build())
}

/// `layers` layers on top of busybox, each with `bytes` of noise in `/data/N`: slow to unpack, as slow as wanted.
///
/// # Errors
/// When busybox cannot be had.
pub fn large(name: &str, layers: usize, bytes: usize) -> Result<Image> {
    let add = |image: Builder, n: usize| {
        image.layer(Layer::new().file(&format!("data/{n}"), 0o644, noise(1000 + n as u64, bytes)))
    };
    Ok((0..layers).fold(on_busybox(name)?, add).build())
}

/// What some images expect containerd to read from them before a container starts: it is run by the user `app`, who is
/// in its own `/etc/passwd` as 1234:1235, and `/data`, which holds `/data/kept`, is a volume.
///
/// # Errors
/// When busybox cannot be had.
pub fn service(name: &str) -> Result<Image> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1235:app:/data:/bin/sh\n";
    let layer = Layer::new()
        .file("etc/passwd", 0o644, passwd)
        .file("data/kept", 0o644, "kept\n");
    let image = on_busybox(name)?.layer(layer);
    Ok(image.user("app").volume("/data").build())
}

/// As many tiny layers on top of busybox as wanted: every cost that is paid once a layer shows.
///
/// # Errors
/// When busybox cannot be had.
pub fn many_layers(name: &str, layers: usize) -> Result<Image> {
    large(name, layers, 16)
}

/// As many tiny layers on top of busybox, which no image of another name has: `/data/0` and so on, each with its number
/// and the name in it.
///
/// # Errors
/// When busybox cannot be had.
pub fn own_layers(name: &str, layers: usize) -> Result<Image> {
    Ok(own(name, layers)?.build())
}

/// The same in the format that stargz mounts lazily.
///
/// # Errors
/// When busybox, or the program that converts the layers, cannot be had.
pub fn estargz(name: &str, layers: usize) -> Result<Image> {
    Ok(own(name, layers)?.estargz()?.build())
}

fn own(name: &str, layers: usize) -> Result<Builder> {
    let add = |image: Builder, n: usize| {
        image.layer(Layer::new().file(&format!("data/{n}"), 0o644, format!("{n} of {name}\n")))
    };
    Ok((0..layers).fold(on_busybox(name)?, add))
}

/// An image of docker's first schema, as far as a store needs it: its name points at a manifest that has no config.
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

/// The two layers below everything that runs a shell.
fn on_busybox(name: &str) -> Result<Builder> {
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
        .command(&["sleep", FOREVER]))
}

fn busybox() -> Result<Vec<u8>> {
    let path = Packages::fetch()?.program("busybox-static", "usr/bin/busybox");
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// Bytes that do not compress and are the same every time: the `splitmix64` sequence.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
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
