//! The image of the recipe, with the program under test in it. This program is not static, so the image also
//! contains its libraries.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::{Image, Layer};

use super::manifests::directory;
use crate::support::PROGRAM;

/// Returns the image with this name.
pub(super) fn image(name: &str) -> Result<Image> {
    let recipe = std::fs::read_to_string(directory().join("Containerfile"))?;
    let instructions = recipe.lines().filter(|line| !line.starts_with('#'));
    let mut image = Image::builder(name);
    for instruction in instructions {
        let (word, rest) = instruction.split_once(' ').context("a lone word")?;
        image = match word {
            "FROM" => {
                ensure!(rest == "scratch", "from {rest}");
                image.layer(libraries()?)
            }
            "COPY" => {
                let (from, to) = rest.split_once(' ').context("from where to where")?;
                ensure!(from == "nri-unpack", "another file: {from}");
                let to = to.strip_prefix('/').context("not from the root")?;
                image.layer(Layer::new().file(to, 0o755, program()?))
            }
            "ENTRYPOINT" => image.entrypoint(&serde_json::from_str::<Vec<&str>>(rest)?),
            "CMD" => image.command(&serde_json::from_str::<Vec<&str>>(rest)?),
            _ => bail!("this test does not know the instruction: {instruction}"),
        };
    }
    Ok(image.build())
}

/// Returns a layer with the libraries that `ldd` names, at the same paths.
fn libraries() -> Result<Layer> {
    let output = Command::new("ldd").arg(PROGRAM).output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let words = text.split_whitespace();
    let paths = words.filter_map(|word| Some((word.strip_prefix('/')?, word)));
    let mut layer = Layer::new();
    for (name, path) in paths.collect::<BTreeMap<_, _>>() {
        let content = std::fs::read(path).with_context(|| path.to_owned())?;
        layer = layer.file(name, 0o755, content);
    }
    Ok(layer)
}

/// Returns the program without debug information, which is seven eighths of it.
fn program() -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let stripped = directory.path().join("nri-unpack");
    let output = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(Path::new(PROGRAM))
        .output()
        .context("running strip, of Debian's binutils")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(std::fs::read(stripped)?)
}
