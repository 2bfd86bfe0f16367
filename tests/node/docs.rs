//! The tests carry out the documentation: they look up an error by its text and run the first command below its
//! heading, and the pod starts. They check all commands and configurations of the documents.

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

/// Returns the code blocks of this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("\n```{language}\n");
    let blocks = text.split(&begin).skip(1);
    let blocks = blocks.filter_map(|rest| Some(rest.split_once("\n```")?.0.to_owned()));
    blocks.collect()
}

/// Whether a heading matches a message; «…» matches any text.
fn matches_message(heading: &str, message: &str) -> bool {
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

/// Returns the first command block below the heading of this message.
fn remedy(message: &str) -> Result<String> {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md"))?;
    let mut sections = page.split("\n## ").skip(1);
    let section =
        sections.find(|section| matches_message(section.lines().next().unwrap_or(""), message));
    let section = section.with_context(|| format!("not in the documentation: {message}"))?;
    let command = blocks(section, "sh").into_iter().next();
    command.with_context(|| format!("no command: {section}"))
}

impl Node {
    /// Runs a documented command on this node.
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
                // Exit code 1 means that an image is not ready, which `check` reports.
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

    /// Runs the documented commands for the error `message` of a creation.
    pub(crate) async fn play(&mut self, handler: &str, message: &str) -> Result<()> {
        for command in remedy(message)?.lines() {
            self.run(command, handler).await?;
        }
        Ok(())
    }
}

async fn the_remedy_for_missing_content_helps(version: Version) -> Result<()> {
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
async fn the_remedy_for_missing_content_helps_on_2_1() -> Result<()> {
    the_remedy_for_missing_content_helps(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_for_missing_content_helps_on_1_7() -> Result<()> {
    the_remedy_for_missing_content_helps(Version::V1_7).await
}

/// containerd 1.7 pulls for the handler that the kubelet names; containerd 2.1 does so only if that is
/// configured.
#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_for_a_missing_reference_helps_on_1_7() -> Result<()> {
    let version = Version::V1_7;
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    options.snapshot_annotations = false;
    let mut node = Node::start_with(version, options).await?;
    node.serve("").await?;
    // This image shares no layer with the ready images.
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

/// Whether a page has a heading with this anchor: its words in small letters, with hyphens between them.
fn has_heading(page: &Path, anchor: &str) -> Result<bool> {
    if anchor.is_empty() {
        return Ok(true);
    }
    let text = std::fs::read_to_string(page)?;
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    Ok(headings.any(|heading| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-") == anchor
    }))
}

/// The plugin's configurations in the documents are valid, and the targets of links exist.
#[test]
fn configurations_and_links_are_valid() -> Result<()> {
    for page in pages()? {
        let text = std::fs::read_to_string(&page)?;
        for block in blocks(&text, "toml") {
            // The tables of containerd's own configuration are not checked here.
            if !block.contains("proxy_plugins") && !block.contains("[plugins.") {
                Config::from_toml(&block, &page.display().to_string())?;
            }
        }
        let directory = page.parent().unwrap_or(root());
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').unwrap_or_default();
            let is_ours = !link.contains("://");
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                directory.join(file)
            };
            let exists = !is_ours || target.exists() && has_heading(&target, heading)?;
            ensure!(exists, "{}: {link}", page.display());
        }
    }
    Ok(())
}

/// Returns the names of the tests of a source file, each with its module.
fn tests_of(kind: &str, file: &Path, directory: &Path) -> Result<Vec<String>> {
    let module = file.strip_prefix(directory)?.with_extension("");
    let module = module.iter().map(|part| part.to_string_lossy());
    let module: Vec<_> = module.filter(|part| part != "mod").collect();
    let text = std::fs::read_to_string(file)?;
    // The attribute of a test, perhaps others, and then its function.
    let attributes = ["#[test]", "#[tokio::test"];
    let tests = attributes.iter().flat_map(|it| text.split(it).skip(1));
    let names = tests.filter_map(|rest| rest.split("fn ").nth(1)?.split('(').next());
    let inner = if text.contains("\nmod tests {") {
        "tests::"
    } else {
        ""
    };
    let name = |name| format!("{kind}{}::{inner}{name}", module.join("::"));
    Ok(names.map(name).collect())
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Each row of a table of claims names tests that exist, by the beginning of their names.
#[test]
fn each_claim_of_the_threat_model_has_a_test() -> Result<()> {
    let mut tests = vec![];
    for (kind, directory) in [
        ("", "tests/node"),
        ("lib:", "src"),
        ("nri:", "nri/src"),
        ("nri:", "nri/tests/plugin"),
    ] {
        let directory = root().join(directory);
        let mut files = vec![];
        sources(&directory, &mut files)?;
        for file in files {
            tests.extend(tests_of(kind, &file, &directory)?);
        }
    }
    let text = std::fs::read_to_string(root().join("docs/threat-model.md"))?;
    let tables = text.split("\n| claim | test |\n").skip(1);
    let rows = tables.flat_map(|table| {
        table
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with('|'))
    });
    let mut count = 0;
    for row in rows {
        let last = row.trim_end_matches('|').rsplit(" | ").next();
        let named = last.context("no cell")?.split('`').skip(1).step_by(2);
        let named: Vec<_> = named.filter(|name| name.contains("::")).collect();
        ensure!(!named.is_empty(), "no test: {row}");
        for name in named {
            let exists = tests.iter().any(|test| test.starts_with(name));
            ensure!(exists, "no test {name}: {row}");
            count += 1;
        }
    }
    ensure!(count > 20, "only {count}");
    Ok(())
}

/// Runs all commands of the chapters. The commands of the README need a real system.
#[tokio::test(flavor = "multi_thread")]
async fn documented_commands_work() -> Result<()> {
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
