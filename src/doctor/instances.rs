//! Checks that exactly one plugin serves NRI on this node. NRI has no list of plugins, so the processes in /proc
//! are searched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nri::Identity;

use crate::config::Config;
use crate::handlers::NRI_TABLE;
use crate::install::{ENABLED, PACKAGED, PLUGINS, UNIT, is_named};
use crate::peer;

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

/// What started a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Containerd,
    Another,
}

/// The running plugins, and the files that would start one.
#[derive(Debug, Default)]
pub(super) struct Instances {
    running: Vec<(u32, By)>,
    /// The entries of NRI's plugin directory that start this plugin.
    links: Vec<PathBuf>,
    has_unit: bool,
    is_enabled: bool,
}

impl Instances {
    pub(super) async fn read(inventory: &Inventory) -> Self {
        let containerd = peer::pid(inventory.config().containerd.socket.as_ref()).await;
        let settings = inventory.files.settings();
        let plugins = settings.find(&["plugins", NRI_TABLE, "plugin_path"]);
        let plugins = plugins.and_then(|(path, _)| path.as_str());
        Self {
            running: running(inventory.config(), containerd),
            links: links(Path::new(plugins.unwrap_or(PLUGINS))),
            has_unit: PACKAGED
                .iter()
                .chain([&UNIT])
                .any(|unit| Path::new(unit).exists()),
            is_enabled: Path::new(ENABLED).exists(),
        }
    }

    /// Whether containerd has launched a running plugin.
    pub(super) fn is_launched(&self) -> bool {
        self.running.iter().any(|(_, by)| *by == By::Containerd)
    }

    /// Whether a plugin runs.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Returns the identities that plugins register under: those that containerd launches by the names of their files,
    /// another by its configuration.
    pub(super) fn identities(&self, config: &Config) -> Vec<Identity> {
        let launched = self.links.iter().filter_map(|link| {
            let name = link.file_name()?.to_str()?;
            name.parse().ok()
        });
        let configured = Identity {
            index: config.nri.index,
            name: config.nri.name.clone(),
        };
        let is_launched = self.is_launched();
        let configured = (!is_launched).then_some(configured);
        configured.into_iter().chain(launched).collect()
    }

    pub(super) fn check(&self) -> Vec<Finding> {
        match self.running.len() {
            0 => vec![self.absent()],
            1 if self.is_enabled && !self.links.is_empty() => vec![self.started_twice()],
            1 if self.links.len() > 1 => vec![self.started_twice()],
            1 => vec![],
            _ => vec![self.several()],
        }
    }

    /// Returns the finding that no plugin runs. The remedy depends on what is installed.
    fn absent(&self) -> Finding {
        let finding = Finding::new(
            "plugin-absent",
            Severity::Warning,
            "no plugin runs on this node",
            "no image is made ready for a pod, and containerd unpacks without labels where one is missing",
        );
        let advice = match self.links.first() {
            Some(link) => format!(
                "restart containerd, which starts {}; if it does not, see containerd's log",
                link.display()
            ),
            None if self.has_unit => "start it".to_owned(),
            None => "install it; with `--launched-by containerd` containerd starts it".to_owned(),
        };
        let finding = finding.advise(advice);
        self.start().iter().copied().fold(finding, Finding::run)
    }

    /// Returns the commands that start the plugin in the way in which it is installed, or that install and start it.
    pub(super) fn start(&self) -> &'static [&'static str] {
        if !self.links.is_empty() {
            &["systemctl restart containerd"]
        } else if self.has_unit {
            &["systemctl enable --now nri-unpack"]
        } else {
            &[
                "nri-unpack install --launched-by systemd",
                "systemctl daemon-reload && systemctl enable --now nri-unpack",
            ]
        }
    }

    fn several(&self) -> Finding {
        let named = |(pid, by): &(u32, By)| match by {
            By::Containerd => format!("{pid} (launched by containerd)"),
            By::Another => pid.to_string(),
        };
        let pids: Vec<_> = self.running.iter().map(named).collect();
        let finding = Finding::new(
            "second-instance",
            Severity::Error,
            format!(
                "{} plugins serve this node, processes {}",
                pids.len(),
                pids.join(", ")
            ),
            "each treats the unfinished work of the other as left by a crash, and may remove it; containerd waits for both in every hook",
        );
        self.choose(finding)
    }

    /// Returns the finding that a second plugin would be started.
    fn started_twice(&self) -> Finding {
        let finding = Finding::new(
            "second-instance",
            Severity::Warning,
            "the plugin is in NRI's plugin directory, and would be started a second time",
            "after the next restart two plugins serve this node",
        );
        self.choose(finding)
    }

    fn choose(&self, finding: Finding) -> Finding {
        let finding = finding.advise("choose what starts it: systemd (remove it from NRI's plugin directory) or containerd (disable the unit)");
        match self.links.as_slice() {
            [] => finding.run("systemctl restart nri-unpack"),
            links => links.iter().fold(finding, |finding, link| {
                finding.run(format!("rm {}", link.display()))
            }),
        }
    }
}

/// The search for a plugin that runs on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// The processes of the plugins; empty if none runs.
    Found(Vec<u32>),
    /// This process runs in another process namespace than containerd, and does not see the processes of the node.
    Blind,
}

/// Searches for a plugin that serves the NRI of this configuration.
pub async fn search(config: &Config) -> Search {
    match peer::pid(config.containerd.socket.as_ref()).await {
        Some(0) => Search::Blind,
        containerd => {
            let seen = running(config, containerd).into_iter();
            let seen = seen.map(|(pid, _)| pid);
            let hidden = pids().filter(|pid| is_hidden_child(*pid, containerd));
            Search::Found(seen.chain(hidden).collect())
        }
    }
}

/// Whether containerd has launched this process of this program, and this process may not read it: it has fewer
/// capabilities.
fn is_hidden_child(pid: u32, containerd: Option<u32>) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let is_denied = |e: std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
    if !fs::read_link(proc.join("exe")).is_err_and(is_denied) {
        return false;
    }
    let command = fs::read(proc.join("cmdline")).unwrap_or_default();
    let program = command.split(|&b| b == 0).next().unwrap_or_default();
    is_ours(Path::new(OsStr::from_bytes(program)))
        && containerd.is_some()
        && parent(&proc) == containerd
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns the processes of this program that serve the same NRI. Processes that this user cannot read are left
/// out.
fn running(config: &Config, containerd: Option<u32>) -> Vec<(u32, By)> {
    let mut running: Vec<_> = pids()
        .filter_map(|pid| Some((pid, serves(pid, config, containerd)?)))
        .collect();
    running.sort_by_key(|(pid, _)| *pid);
    running
}

fn serves(pid: u32, config: &Config, containerd: Option<u32>) -> Option<By> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    if !is_ours(&fs::read_link(proc.join("exe")).ok()?) {
        return None;
    }
    let environment = fs::read(proc.join("environ")).ok()?;
    let is_launched = environment
        .split(|&b| b == 0)
        .any(|variable| variable.starts_with(b"NRI_PLUGIN_SOCKET="));
    if is_launched {
        return (containerd.is_some() && parent(&proc) == containerd).then_some(By::Containerd);
    }
    let command = fs::read(proc.join("cmdline")).ok()?;
    let arguments: Vec<_> = command
        .split(|&b| b == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    if !arguments.iter().any(|word| word == "run") {
        return None;
    }
    let its = nri_socket(&arguments, &proc)?;
    (is_same_socket(&proc, &its, config.nri.socket.as_ref())).then_some(By::Another)
}

/// Whether a process that has this socket uses our own. Its path alone does not tell: a pod has a root of its own.
fn is_same_socket(proc: &Path, its: &Path, own: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    let in_its_root = its
        .strip_prefix("/")
        .map(|path| proc.join("root").join(path));
    match (in_its_root.ok().and_then(|path| file(&path)), file(own)) {
        (Some(its), Some(own)) => its == own,
        _ => same(its, own),
    }
}

/// Whether a path is this program, by its name. The file may have been replaced since the process started.
fn is_ours(program: &Path) -> bool {
    let name = program.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    is_named(name)
}

/// Returns the parent process. In `stat` it is the second field after the command's name, which may contain any
/// characters.
fn parent(proc: &Path) -> Option<u32> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the NRI socket of a plugin that was started with these arguments.
fn nri_socket(arguments: &[String], proc: &Path) -> Option<PathBuf> {
    if let Some(socket) = option(arguments, "--nri-socket") {
        return Some(socket.into());
    }
    let file = option(arguments, "--config").unwrap_or_else(|| Config::DEFAULT_PATH.to_owned());
    // The path is resolved in the root and working directory of that process.
    let file = match Path::new(&file).strip_prefix("/") {
        Ok(file) => proc.join("root").join(file),
        Err(_) => proc.join("cwd").join(file),
    };
    let config = match file.exists() {
        true => Config::load(Some(&file)).ok()?,
        false => Config::default(),
    };
    Some(config.nri.socket.as_ref().to_owned())
}

/// Returns the value of an option, from `--name value` or `--name=value`.
fn option(arguments: &[String], name: &str) -> Option<String> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(name) {
            Some("") => return arguments.next().cloned(),
            Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
            _ => {}
        }
    }
    None
}

fn same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

/// Returns the entries of NRI's plugin directory by which containerd launches this plugin.
fn links(plugins: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(plugins).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let target = fs::canonicalize(entry.path());
        is_named(&entry.file_name().to_string_lossy()) || target.is_ok_and(|path| is_ours(&path))
    });
    let mut links: Vec<_> = ours.map(|entry| entry.path()).collect();
    links.sort();
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_known_by_its_name() {
        for (path, ours) in [
            ("/usr/local/bin/nri-unpack", true),
            ("/usr/local/bin/nri-unpack (deleted)", true),
            ("/opt/nri/plugins/10-nri-unpack", true),
            ("/usr/bin/containerd", false),
            ("/usr/bin/not-nri-unpack", false),
        ] {
            assert_eq!(is_ours(Path::new(path)), ours, "{path}");
        }
    }

    #[test]
    fn the_value_of_an_option_follows_it() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (text, value) in [
            ("run --config /a", Some("/a")),
            ("run --config=/b --x", Some("/b")),
            ("run --configs /a", None),
            ("run", None),
        ] {
            let found = option(&arguments(text), "--config");
            assert_eq!(found.as_deref(), value, "{text}");
        }
    }

    #[test]
    fn the_remedy_for_an_absent_plugin_depends_on_what_is_installed() {
        let link = PathBuf::from("/opt/nri/plugins/10-nri-unpack");
        for (links, has_unit, commands) in [
            (vec![link], false, vec!["systemctl restart containerd"]),
            (vec![], true, vec!["systemctl enable --now nri-unpack"]),
            (
                vec![],
                false,
                vec![
                    "nri-unpack install --launched-by systemd",
                    "systemctl daemon-reload && systemctl enable --now nri-unpack",
                ],
            ),
        ] {
            let instances = Instances {
                links,
                has_unit,
                ..Instances::default()
            };
            let found = instances.check();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].id, "plugin-absent");
            assert_eq!(found[0].remedy.commands, commands);
        }
    }
}
