//! Finds what on this node keeps the plugin from working. Each [`Finding`] has its consequence and a remedy.
//!
//! Findings are values. Each check is a small function over one [`Inventory`] of the node, and changes
//! nothing. Only [`Examination::fix`] changes the node, by the remedies that are safe.

mod cri;
mod distribution;
mod files;
mod finding;
mod guest_layers;
mod handler_pulls;
mod images;
mod instances;
mod inventory;
mod kubernetes;
mod leftovers;
mod lost;
mod nri;
mod permissions;
mod process_files;
mod processes;
mod pulls;
mod reach;
mod required;
mod snapshotters;

use std::sync::Arc;

use crate::containerd;
use crate::node::Node;
use crate::unpack::{Request, Urgency, Want};

pub(crate) use distribution::restart;
use finding::Cure;
pub use finding::{Finding, Remedy, Severity};
use instances::Instances;
use inventory::Inventory;
pub use processes::{Search, search};

/// The result of an examination.
#[derive(Debug)]
pub struct Examination {
    /// containerd's version, or the error if it does not answer.
    pub containerd: Result<String, containerd::Error>,
    /// The findings, the most severe first. Within a severity, causes precede their consequences.
    pub findings: Vec<Finding>,
}

/// Examines the node. If containerd does not answer, only the checks that do not need it have findings.
pub async fn examine(node: &Arc<Node>) -> Examination {
    let inventory = Inventory::read(node.clone()).await;
    let instances = Instances::read(&inventory).await;
    let mut findings = [
        reach::check(&inventory).await,
        cri::check(&inventory),
        nri::check(&inventory, &instances),
        files::check(&inventory),
        instances.check(),
        permissions::check(&inventory),
        kubernetes::check(&inventory).await,
        snapshotters::check(&inventory),
        pulls::check(&inventory),
        handler_pulls::check(&inventory),
        lost::check(&inventory).await,
        images::check(&inventory).await,
        guest_layers::check(&inventory).await,
        leftovers::check(&inventory).await,
    ]
    .concat();
    findings.sort_by_key(|finding| finding.severity);
    if let Some(distribution) = distribution::of(inventory.config().containerd.config.as_ref()) {
        let version = inventory.version();
        let each = findings.iter_mut();
        each.for_each(|finding| distribution.translate(finding, version));
    }
    Examination {
        containerd: inventory.seen.map(|seen| seen.version),
        findings,
    }
}

impl Examination {
    /// Applies the safe remedies, and records in each finding what was done.
    pub async fn fix(&mut self, node: &Arc<Node>) {
        for finding in &mut self.findings {
            finding.fixed = match &finding.cure {
                None => None,
                Some(Cure::Ensure {
                    images,
                    snapshotter,
                }) => ensure_all(node, images, snapshotter).await,
                Some(Cure::Sweep) => sweep(node).await,
            };
        }
    }
}

/// Makes images ready. Returns what was done; `None` if one of them failed, and the finding stays open.
async fn ensure_all(node: &Arc<Node>, images: &[String], snapshotter: &str) -> Option<String> {
    let mut done = Vec::new();
    for image in images {
        done.push(ensure(node, image, snapshotter).await);
    }
    let done: Option<Vec<_>> = done.into_iter().collect();
    Some(done?.join("; "))
}

/// Makes an image ready. Returns what was done; `None` if it failed, and the finding stays open.
async fn ensure(node: &Arc<Node>, image: &str, snapshotter: &str) -> Option<String> {
    let request = Request {
        want: Want::Image(image.to_owned()),
        snapshotter: snapshotter.to_owned(),
        urgency: Urgency::Asked,
    };
    match node.engine.ensure(request).outcome().await {
        Ok(done) => Some(format!(
            "{image} is ready in {snapshotter}: {}",
            done.action
        )),
        Err(e) => {
            log::error!(image, snapshotter, error:% = e; "cannot make the image ready; the finding stays open");
            None
        }
    }
}

async fn sweep(node: &Arc<Node>) -> Option<String> {
    match node.engine.sweep().await {
        Ok(leases) => {
            let left = node.engine.leftovers().await;
            let is_gone = left.is_ok_and(|left| left.is_empty());
            is_gone
                .then(|| format!("removed, with the snapshots that they kept (leases: {leases})"))
        }
        Err(e) => {
            log::error!(error:% = e; "cannot remove what a crash has left; the finding stays open");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    const PAGE: &str = "docs/reference.md";

    /// Returns the words in quotation marks that contain dashes. In these files only ids have this form.
    fn ids(text: &str) -> impl Iterator<Item = &str> {
        text.split('"').skip(1).step_by(2).filter(|word| {
            let mut parts = word.split('-');
            let is_word =
                |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
            *word == "leftovers" || (word.contains('-') && parts.all(is_word))
        })
    }

    #[test]
    fn the_reference_has_every_id() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = BTreeSet::new();
        for file in fs::read_dir(root.join("src/doctor")).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            // The code uses double quotation marks for string literals only.
            found.extend(ids(code).map(str::to_owned));
        }
        let page = fs::read_to_string(root.join(PAGE)).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.filter_map(|row| Some(row.split_once('`')?.0));
        let documented: BTreeSet<_> = rows
            .filter(|id| !id.starts_with("nri_unpack_"))
            .map(str::to_owned)
            .collect();
        assert!(found.len() > 30, "{found:?}");
        assert_eq!(found, documented);
    }
}
