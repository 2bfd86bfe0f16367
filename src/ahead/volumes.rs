//! Images that a pod mounts as volumes (containerd 2.1 and later).
//!
//! containerd unpacks such an image, without labels, while it creates the container, and mounts a
//! snapshot of it before it calls any hook. So the hook of the first container comes too late to label it: the image
//! is made ready for the next container. An image of the eager set was ready before.

use std::path::{Component, Path};

use crate::image;
use crate::unpack::{Action, Urgency, Want};

use super::worker::Worker;
use super::{Ahead, is_news};

/// containerd mounts a volume's image at `<state>/image-volumes/<sandbox>/<digest of its target>`
/// (`internal/cri/server/helpers.go`).
const DIRECTORY: &str = "image-volumes";

/// Hex digits of a sha256 digest.
const DIGEST_LENGTH: usize = 64;

/// An image that is mounted on the host for the containers of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVolume {
    /// The directory where it is mounted, which is also the key of its snapshot.
    pub path: String,
    /// The target digest of the image's record.
    pub target: String,
}

/// Returns the image volume that a mount with this source directory on the host uses, if it uses one. The source may
/// be a directory below the volume's.
pub fn image_volume(source: &str) -> Option<ImageVolume> {
    let mut components = Path::new(source).components();
    components.find(|component| component.as_os_str() == DIRECTORY)?;
    let _sandbox = components.next()?;
    let Component::Normal(digest) = components.next()? else {
        return None;
    };
    let digest = digest.to_str()?;
    let is_digest =
        digest.len() == DIGEST_LENGTH && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let below = components.as_path().to_str()?;
    let path = source.strip_suffix(below)?.trim_end_matches('/');
    is_digest.then(|| ImageVolume {
        path: path.to_owned(),
        target: format!("sha256:{digest}"),
    })
}

pub(super) async fn make_ready(ahead: &Ahead, worker: &Worker, target: &str) {
    let snapshotter = worker.name();
    let images = match ahead.node.containerd.images().await {
        Ok(images) => images,
        Err(e) => return log::debug!(error:% = e; "image of a volume could not be looked up"),
    };
    let names = images
        .into_iter()
        .filter(|image| image.target.digest == target);
    let names: Vec<_> = names.map(|image| image.name).collect();
    let Some(name) = image::name_for_labels(None, &names) else {
        return;
    };
    let want = Want::Image(name.clone());
    let entry = worker.unready.enter(want, target, None);
    // A pod needs it.
    match ahead.make_ready(worker, &entry, Urgency::Asked).await {
        Ok(done) if done.action == Action::None => {}
        Ok(done) => {
            log::info!(image = name, snapshotter, state:% = done.found, action:% = done.action; "image of a volume is ready for the next pod");
        }
        Err(e) if is_news(&e) => {
            log::warn!(image = name, snapshotter, error:% = e; "image of a volume cannot be made ready");
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_volume_is_recognized_by_its_path() {
        let hex = "0123456789abcdef".repeat(4);
        let cri = format!("/run/c/io.containerd.grpc.v1.cri/image-volumes/s1/{hex}");
        let volume = |path: &str| {
            Some(ImageVolume {
                path: path.to_owned(),
                target: format!("sha256:{hex}"),
            })
        };
        for (source, expected) in [
            (cri.clone(), volume(&cri)),
            (format!("{cri}/"), volume(&cri)),
            (format!("{cri}/models/v1"), volume(&cri)),
            (format!("/run/c/image-volumes/{hex}"), None),
            ("/run/c/image-volumes/s1/short".to_owned(), None),
            (format!("/var/lib/kubelet/pods/p/volumes/{hex}"), None),
            (String::new(), None),
        ] {
            assert_eq!(image_volume(&source), expected, "{source}");
        }
    }
}
