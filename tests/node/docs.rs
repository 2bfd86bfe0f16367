//! The documentation, carried out: a reader finds an error by its text, runs the one command below it, and the pod
//! starts. All commands and configurations that the documents show are checked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lab::{Options, Remote, Version, images};
use nri_unpack::config::Config;

use crate::after_pull::image;
use crate::guest_pull::NYDUS;
use crate::support::{Node, handler};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Result<Vec<PathBuf>> {
    let pages = std::fs::read_dir(root().join("docs"))?;
    let pages = pages.map(|page| Ok(page?.path()));
    let mut pages: Vec<_> = pages.collect::<Result<_>>()?;
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.push(root().join("README.md"));
    Ok(pages)
}

/// The blocks of this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("\n```{language}\n");
    let blocks = text.split(&begin).skip(1);
    let blocks = blocks.filter_map(|rest| Some(rest.split_once("\n```")?.0.to_owned()));
    blocks.collect()
}

/// Whether a heading is that of a message: «…» stands for what differs.
fn is_of(heading: &str, message: &str) -> bool {
    let mut rest = message;
    heading
        .split('…')
        .map(str::trim)
        .all(|piece| match rest.split_once(piece) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
}

/// The first commands below the heading of this message.
fn remedy(message: &str) -> Result<String> {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md"))?;
    let mut sections = page.split("\n## ").skip(1);
    let section = sections.find(|section| is_of(section.lines().next().unwrap_or(""), message));
    let section = section.with_context(|| format!("not in the documentation: {message}"))?;
    let command = blocks(section, "sh").into_iter().next();
    command.with_context(|| format!("no command: {section}"))
}

impl Node {
    /// Runs a command as it is written, on this node.
    async fn run(&mut self, command: &str, handler: &str) -> Result<()> {
        let image = self.image.name().to_owned();
        let words = command.split_whitespace().map(|word| match word {
            "IMAGE" | "registry.example/app:1" | "docker.io/library/busybox:1" => image.as_str(),
            "HANDLER" | "kata" => handler,
            word => word,
        });
        let words: Vec<_> = words.collect();
        match &words[..] {
            ["nri-unpack", arguments @ ..] => {
                let output = self.command(arguments)?;
                // One means that something is not ready, which is for `check` to say.
                let is_check = arguments[0] == "check" && output.status.code() == Some(1);
                ensure!(output.status.success() || is_check, "{command}: {output:?}");
            }
            ["crictl", "pull", image] => drop(self.cri.pull_image(image).await?),
            ["ctr", "-n", "k8s.io", arguments @ ..] => {
                let hosts = self.lab.path("hosts").display().to_string();
                let here = |word: &&str| match *word {
                    "/etc/containerd/certs.d" => hosts.clone(),
                    word => word.to_owned(),
                };
                let arguments: Vec<_> = arguments.iter().map(here).collect();
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                self.lab.ctr(&arguments).await?;
            }
            ["systemctl", "stop", "nydus-snapshotter"] => self.lab.remote(Remote::Nydus).kill(),
            ["systemctl", "start", "nydus-snapshotter"] => {
                self.lab.remote(Remote::Nydus).restart().await?;
            }
            ["rm", file] => {
                let file = file.strip_prefix("/var/lib/containerd-nydus/");
                let file = file.with_context(|| command.to_owned())?;
                std::fs::remove_file(self.lab.path("nydus").join(file))?;
            }
            _ => bail!("no test runs this: {command}"),
        }
        Ok(())
    }

    /// The error that a creation meets, and that is gone after the commands that the documentation gives.
    pub(crate) async fn play(&mut self, handler: &str, message: &str) -> Result<()> {
        for command in remedy(message)?.lines() {
            self.run(command, handler).await?;
        }
        Ok(())
    }
}

async fn content_not_found(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.discard_unpacked_layers = true;
    let mut node = Node::start_with(version, options).await?;
    let handler = handler(version);
    node.image = images::app("registry.test/lab/discarded:1")?;
    node.registry.push(&node.image).await?;
    let name = node.image.name().to_owned();
    node.cri.pull_image(&name).await?;
    node.store.collect_garbage().await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let Err(error) = node.cri.create_container(&pod, &name, &[], &[]).await else {
        bail!("created without its blobs");
    };
    node.play(handler, error.message()).await?;
    let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn content_not_found_on_2_1() -> Result<()> {
    content_not_found(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn content_not_found_on_1_7() -> Result<()> {
    content_not_found(Version::V1_7).await
}

/// containerd 1.7 pulls for the handler that the kubelet names; 2.1 does so only where it is configured.
#[tokio::test(flavor = "multi_thread")]
async fn missing_reference_on_1_7() -> Result<()> {
    let version = Version::V1_7;
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    options.snapshot_annotations = false;
    let mut node = Node::start_with(version, options).await?;
    node.serve("").await?;
    // Shares no layer with what is ready already.
    node.image = image(3, 0);
    node.registry.push(&node.image).await?;
    let name = node.image.name().to_owned();
    let Err(error) = node.cri.pull_image_for(&name, NYDUS).await else {
        bail!("pulled without labels");
    };
    node.play(NYDUS, error.message()).await?;
    node.wait_image(&node.image, NYDUS).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
    node.assert_guest_pulls(&container).await
}

/// What is shown of our own configuration is right, and what is linked is there.
#[test]
fn configurations_and_links() -> Result<()> {
    for page in pages()? {
        let text = std::fs::read_to_string(&page)?;
        for block in blocks(&text, "toml") {
            // containerd's own tables are not ours to check.
            if !block.contains("proxy_plugins") && !block.contains("[plugins.") {
                Config::from_toml(&block, &page.display().to_string())?;
            }
        }
        let directory = page.parent().unwrap_or(root());
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').unwrap_or_default();
            let is_ours = !link.contains("://");
            ensure!(
                !is_ours || directory.join(link).exists(),
                "{}: {link}",
                page.display()
            );
        }
    }
    Ok(())
}

/// All commands of the chapters; the README's own need a system.
#[tokio::test(flavor = "multi_thread")]
async fn commands() -> Result<()> {
    let mut options = Options::new(Version::V2_1);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(Version::V2_1, options).await?;
    node.registry.push(&node.image).await?;
    let mut count = 0;
    for page in pages()?.iter().filter(|page| !page.ends_with("README.md")) {
        let text = std::fs::read_to_string(page)?;
        for command in blocks(&text, "sh").iter().flat_map(|block| block.lines()) {
            node.run(command, "erofs")
                .await
                .with_context(|| page.display().to_string())?;
            count += 1;
        }
    }
    ensure!(count >= 4, "only {count}");
    Ok(())
}
