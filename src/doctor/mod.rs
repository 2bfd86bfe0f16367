//! What on this node keeps the plugin from working, each thing with what it means and its remedy.
//!
//! [`Finding`]s are values. Each check is a small function over one look at the node, and changes
//! nothing; only what is [safe](Examination::fix) is done, and only where that is asked for.

mod cri;
mod files;
mod finding;
mod guest_layers;
mod images;
mod instances;
mod inventory;
mod leftovers;
mod nri;
mod permissions;
mod pulls;
mod reach;
mod required;
mod snapshotters;
mod split;

use std::sync::Arc;

use crate::containerd;
use crate::node::Node;
use crate::unpack::{Request, Urgency, Want};

use finding::Cure;
pub use finding::{Finding, Remedy, Severity};
use instances::Instances;
use inventory::Inventory;

/// What was found.
#[derive(Debug)]
pub struct Examination {
    /// containerd's version, or why it does not answer.
    pub containerd: Result<String, containerd::Error>,
    /// The worst first; of the same severity in the order in which things depend on each other.
    pub findings: Vec<Finding>,
}

/// Looks at the node. Where containerd does not answer, what can be said without it is.
pub async fn examine(node: &Arc<Node>) -> Examination {
    let inventory = Inventory::look(node.clone()).await;
    let instances = Instances::look(&inventory).await;
    let mut findings = [
        reach::check(&inventory),
        cri::check(&inventory),
        nri::check(&inventory, &instances),
        files::check(&inventory),
        instances.check(),
        permissions::check(&inventory),
        snapshotters::check(&inventory),
        pulls::check(&inventory),
        split::check(&inventory).await,
        images::check(&inventory).await,
        guest_layers::check(&inventory).await,
        leftovers::check(&inventory).await,
    ]
    .concat();
    findings.sort_by_key(|finding| finding.severity);
    Examination {
        containerd: inventory.seen.map(|seen| seen.version),
        findings,
    }
}

impl Examination {
    /// Does what is safe about the findings, and notes in each what was done.
    pub async fn fix(&mut self, node: &Arc<Node>) {
        for finding in &mut self.findings {
            finding.fixed = match &finding.cure {
                None => None,
                Some(Cure::Ensure { image, snapshotter }) => ensure(node, image, snapshotter).await,
                Some(Cure::Sweep) => sweep(node).await,
            };
        }
    }
}

/// What was done; `None` where it failed, and the finding stays.
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
            log::error!(image, snapshotter, error:% = e; "not fixed");
            None
        }
    }
}

async fn sweep(node: &Arc<Node>) -> Option<String> {
    match node.engine.sweep().await {
        Ok(leases) => {
            let left = node.engine.leftovers().await;
            let is_gone = left.is_ok_and(|left| left.is_empty());
            is_gone.then(|| format!("taken away, with what it held (leases: {leases})"))
        }
        Err(e) => {
            log::error!(error:% = e; "not fixed");
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

    /// Words in quotation marks with dashes between them: nothing else in these files looks so.
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
            // Comments and paths have other quotation marks, and an apostrophe is none.
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
