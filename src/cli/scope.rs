//! The images and the snapshotters that a command covers.

use clap::Args;

use crate::config::ImagePattern;
use crate::containerd::{self, Image};
use crate::image;
use crate::node::Node;
use crate::policy;

use super::{Failure, short};

/// `--snapshotter` or `--handler`.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct Where {
    /// Use this snapshotter
    #[arg(long, value_name = "NAME")]
    snapshotter: Option<String>,
    /// Use the snapshotter of this runtime handler
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
}

/// The snapshotters that a command covers.
pub(super) struct Meant {
    /// Those that containerd lists, and that have started.
    pub(super) usable: Vec<String>,
    /// The error of each of the others.
    pub(super) unusable: Vec<Failure>,
}

impl Meant {
    /// Returns all snapshotters, or the first error, for a command that needs all of them.
    pub(super) fn all(self) -> Result<Vec<String>, Failure> {
        self.unusable
            .into_iter()
            .next()
            .map_or(Ok(self.usable), Err)
    }
}

impl Where {
    pub(super) fn is_given(&self) -> bool {
        self.snapshotter.is_some() || self.handler.is_some()
    }

    /// Returns the snapshotters that the arguments select. Without an argument these are the snapshotters of all
    /// handlers that the plugin manages. An argument that selects a snapshotter which containerd does not have
    /// is wrong usage.
    pub(super) async fn snapshotters(&self, node: &Node) -> Result<Meant, Failure> {
        let known = node.containerd.snapshotters().await?;
        let mut meant = Meant {
            usable: vec![],
            unusable: vec![],
        };
        for name in self.named(node).await? {
            match usable(&name, &known) {
                Ok(()) => meant.usable.push(name),
                Err(wrong @ Failure::Usage(_)) if self.is_given() => return Err(wrong),
                Err(wrong) => meant.unusable.push(wrong),
            }
        }
        Ok(meant)
    }

    async fn named(&self, node: &Node) -> Result<Vec<String>, Failure> {
        if let Some(snapshotter) = &self.snapshotter {
            return Ok(vec![snapshotter.clone()]);
        }
        let handlers = node.resolve().await?;
        if let Some(handler) = &self.handler {
            let resolved = handlers.snapshotter(handler);
            let resolved = resolved.map_err(|e| Failure::Usage(e.to_string()))?;
            return Ok(vec![resolved.snapshotter.clone()]);
        }
        let default = handlers.default_name();
        let all = handlers.snapshotters().into_iter();
        let kept = all.filter(|name| policy::is_kept(&node.config(), name, default));
        Ok(kept.map(|name| name.to_string()).collect())
    }
}

fn usable(name: &str, known: &[containerd::Snapshotter]) -> Result<(), Failure> {
    let Some(snapshotter) = known.iter().find(|s| s.name == name) else {
        let known: Vec<_> = known.iter().map(|s| s.name.as_str()).collect();
        let known = known.join(", ");
        return Err(Failure::Usage(format!(
            "containerd has no snapshotter {name}; it has {known}"
        )));
    };
    match &snapshotter.init_error {
        None => Ok(()),
        Some(why) => Err(Failure::Other(anyhow::anyhow!(
            "snapshotter {name} did not start: {why}; see containerd's log"
        ))),
    }
}

/// A selected image: its record, or the error of its look-up.
pub(super) struct Asked {
    /// The name as the argument has it, or the best of the image's names.
    pub(super) name: String,
    /// All of its names.
    pub(super) names: Vec<String>,
    /// Whether an argument names this image, in contrast to a pattern or all images.
    pub(super) by_name: bool,
    pub(super) image: Result<Image, image::Error>,
}

/// Returns the images that the arguments select by name or pattern, or all images. Patterns and «all» give each
/// image once, under the best of its names.
pub(super) async fn images(node: &Node, named: &[String]) -> Result<Vec<Asked>, Failure> {
    let containerd = node.containerd.as_ref();
    let all = containerd.images().await?;
    if named.is_empty() {
        return Ok(all_images(all));
    }
    let mut asked = Vec::new();
    for name in named {
        if is_pattern(name) {
            asked.extend(matching(name, all.clone())?);
            continue;
        }
        let image = image::find(containerd, name).await;
        if let Err(image::Error::Containerd { source, .. }) = &image
            && source.is_unreachable()
        {
            return Err(source.clone().into());
        }
        let names = image.iter().flat_map(|image| image::names_of(image, &all));
        asked.push(Asked {
            name: name.clone(),
            names: names.collect(),
            by_name: true,
            image,
        });
    }
    Ok(asked)
}

/// Whether an argument is a pattern. A name contains none of these characters. `[` is not among them, since it
/// begins an IPv6 address in a name.
fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '{'])
}

/// Returns the images that have a matching name, in full or in the short form that `check` shows.
fn matching(pattern: &str, all: Vec<Image>) -> Result<Vec<Asked>, Failure> {
    let matcher: ImagePattern = pattern
        .parse()
        .map_err(|e: crate::config::InvalidValue| Failure::Usage(e.to_string()))?;
    let mut images = all_images(all);
    images.retain(|asked| {
        let mut names = asked.names.iter();
        names.any(|name| matcher.matches(name) || matcher.matches(&short::name(name)))
    });
    match images.is_empty() {
        true => Err(Failure::Other(anyhow::anyhow!(
            "no image in containerd's image store matches {pattern:?}: `nri-unpack check` shows all"
        ))),
        false => Ok(images),
    }
}

fn all_images(images: Vec<Image>) -> Vec<Asked> {
    let all = image::distinct(images).into_iter();
    let asked = |image::Distinct { image, names }| Asked {
        name: image.name.clone(),
        names,
        by_name: false,
        image: Ok(image),
    };
    all.map(asked).collect()
}
