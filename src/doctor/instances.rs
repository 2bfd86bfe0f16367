//! Checks that exactly one plugin serves NRI on this node.

use std::fs;
use std::path::{Path, PathBuf};

use nri::Identity;

use crate::config::Config;
use crate::handlers::NRI_TABLE;
use crate::install::{ENABLED, PACKAGED, PLUGINS, UNIT, is_launched, misnamed};
use crate::peer;

use super::finding::{Finding, Severity, word};
use super::inventory::Inventory;
use super::processes::{By, is_ours, running};

/// The running plugins, and the files that would start one.
#[derive(Debug, Default)]
pub(super) struct Instances {
    running: Vec<(u32, By)>,
    /// The entries of NRI's plugin directory that start this plugin.
    links: Vec<PathBuf>,
    /// The entries with which containerd does not start.
    misnamed: Vec<PathBuf>,
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
            misnamed: misnamed(&inventory.files),
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
            _ if self.must_be_renamed() => "remove or rename what plugin-misnamed names; containerd starts the plugin by an entry of the form NN-name, at its next start".to_owned(),
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
        if self.must_be_renamed() {
            &[]
        } else if !self.links.is_empty() {
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

    /// Whether containerd starts this plugin only after an entry of the plugin directory has another name. With it
    /// containerd does not start.
    fn must_be_renamed(&self) -> bool {
        let is_own = || self.misnamed.iter().any(|path| is_entry_of_ours(path));
        match self.links.is_empty() {
            true => !self.has_unit && is_own(),
            false => !self.misnamed.is_empty(),
        }
    }

    fn several(&self) -> Finding {
        let named = |(pid, by): &(u32, By)| match by {
            By::Containerd => format!("{pid} (launched by containerd)"),
            By::Unit => format!("{pid} (the unit)"),
            By::Pod => format!("{pid} (a pod)"),
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

    /// Adds the remedy: one of the plugins stays.
    fn choose(&self, finding: Finding) -> Finding {
        let stays = self.stays();
        let mut say = match stays {
            By::Pod => "keep one DaemonSet, delete others, and remove what else starts the plugin on this node",
            By::Unit => "keep the unit, and remove what else starts the plugin: links in NRI's plugin directory, processes, a DaemonSet",
            By::Containerd => "keep one link in NRI's plugin directory, and remove what else starts the plugin",
            By::Another => "keep one process, and end those that were started by hand",
        }
        .to_owned();
        let mut commands = self.removals(stays);
        let others = self.pids(By::Containerd).len();
        if others > usize::from(stays == By::Containerd) {
            match self.misnamed.is_empty() {
                true => commands.push("systemctl restart containerd".to_owned()),
                false => {
                    say += "; containerd ends the plugins that it has launched at its next restart, before which remove or rename what plugin-misnamed names"
                }
            }
        }
        commands.into_iter().fold(finding.advise(say), Finding::run)
    }

    /// Returns what the remaining plugin is started by. Of the running ones, a DaemonSet would come back by itself.
    fn stays(&self) -> By {
        let order = [By::Pod, By::Unit, By::Containerd];
        let is_running = |by: &By| !self.pids(*by).is_empty();
        order.into_iter().find(is_running).unwrap_or(By::Another)
    }

    fn pids(&self, wanted: By) -> Vec<u32> {
        let running = self.running.iter().filter(|(_, by)| *by == wanted);
        running.map(|(pid, _)| *pid).collect()
    }

    /// Returns the commands that remove what starts the other plugins. A plugin that containerd has launched runs until
    /// containerd is restarted.
    fn removals(&self, stays: By) -> Vec<String> {
        let has_unit = self.is_enabled || !self.pids(By::Unit).is_empty();
        let is_link_kept = match stays {
            By::Containerd => true,
            By::Another => !has_unit,
            By::Unit | By::Pod => false,
        };
        let ends_unit = has_unit && matches!(stays, By::Containerd | By::Pod);
        let unit = ends_unit.then(|| "systemctl disable --now nri-unpack".to_owned());
        let links = self.links.iter().skip(usize::from(is_link_kept));
        let links = links.map(|link| format!("rm {}", word(&link.display().to_string())));
        let by_hand = self.pids(By::Another).into_iter();
        let by_hand = by_hand.skip(usize::from(stays == By::Another));
        let by_hand = by_hand.map(|pid| format!("kill {pid}"));
        unit.into_iter().chain(by_hand).chain(links).collect()
    }
}

/// Returns the entries of NRI's plugin directory by which containerd launches this plugin.
fn links(plugins: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(plugins).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut links: Vec<_> = paths
        .filter(|path| is_launched(path) && is_entry_of_ours(path))
        .collect();
    links.sort();
    links
}

/// Whether an entry of NRI's plugin directory is this program, by its name or the name of its target.
fn is_entry_of_ours(path: &Path) -> bool {
    is_ours(path) || fs::canonicalize(path).is_ok_and(|path| is_ours(&path))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn containerd_launches_executable_files_with_an_index() {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [
            ("10-nri-unpack", 0o755),
            ("20-nri-unpack", 0o644),
            ("30-another", 0o755),
            ("nri-unpack", 0o755),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        symlink("/opt/x/nri-unpacker", directory.path().join("40-other")).unwrap();
        let expected = directory.path().join("10-nri-unpack");
        assert_eq!(links(directory.path()), [expected]);
    }

    /// containerd does not start with a file whose name has no index.
    #[test]
    fn containerd_is_not_restarted_with_a_misnamed_file() {
        let link = || vec![PathBuf::from("/opt/nri/plugins/10-nri-unpack")];
        let ours = || vec![PathBuf::from("/opt/nri/plugins/nri-unpack")];
        let other = || vec![PathBuf::from("/opt/nri/plugins/other")];
        for (links, misnamed, has_unit, start) in [
            (link(), ours(), false, ""),
            (link(), other(), true, ""),
            (vec![], ours(), false, ""),
            (vec![], ours(), true, "systemctl enable --now nri-unpack"),
            (
                vec![],
                other(),
                false,
                "nri-unpack install --launched-by systemd",
            ),
        ] {
            let instances = Instances {
                links,
                misnamed,
                has_unit,
                ..Instances::default()
            };
            let found = &instances.check()[0];
            let first = found.remedy.commands.first();
            assert_eq!(first.map_or("", |it| it), start);
            let names_it = found.remedy.say.contains("plugin-misnamed");
            assert_eq!(names_it, start.is_empty(), "{}", found.remedy.say);
        }
    }

    #[test]
    fn one_of_several_plugins_stays() {
        use By::{Another, Containerd, Pod, Unit};
        const RESTART: &str = "systemctl restart containerd";
        const DISABLE: &str = "systemctl disable --now nri-unpack";
        for (running, links, is_enabled, expected) in [
            // Running plugins.
            (
                &[Containerd, Containerd][..],
                &["10-a", "20-b"][..],
                false,
                &["rm 20-b", RESTART][..],
            ),
            (&[Containerd, Containerd], &["10-a"], false, &[RESTART]),
            (
                &[Containerd, Unit],
                &["10-a b"],
                true,
                &["rm '10-a b'", RESTART],
            ),
            (&[Containerd, Another], &["10-a"], false, &["kill 1"]),
            (&[Pod, Unit], &[], true, &[DISABLE]),
            (&[Pod, Containerd], &["10-a"], false, &["rm 10-a", RESTART]),
            (&[Pod, Pod], &[], false, &[]),
            (&[Unit, Another], &[], true, &["kill 1"]),
            (&[Another, Another], &[], false, &["kill 1"]),
            // A second one starts later.
            (&[Unit], &["10-a"], true, &["rm 10-a"]),
            (&[Containerd], &["10-a"], true, &[DISABLE]),
            (&[Containerd], &["10-a", "20-b"], false, &["rm 20-b"]),
            (&[Another], &["10-a", "20-b"], false, &["rm 20-b"]),
            (&[Another], &["10-a"], true, &["rm 10-a"]),
        ] {
            let instances = Instances {
                running: (0..).zip(running.iter().copied()).collect(),
                links: links.iter().map(PathBuf::from).collect(),
                is_enabled,
                ..Instances::default()
            };
            let found = instances.check();
            assert_eq!(found[0].id, "second-instance");
            let commands = &found[0].remedy.commands;
            assert_eq!(commands, expected, "{running:?} {links:?} {is_enabled}");
        }
    }

    #[test]
    fn containerd_does_not_restart_with_two_plugins_and_a_misnamed_file() {
        let instances = Instances {
            running: vec![(1, By::Containerd), (2, By::Unit)],
            links: vec!["10-a".into()],
            misnamed: vec!["a".into()],
            ..Instances::default()
        };
        let found = &instances.check()[0].remedy;
        assert_eq!(found.commands, ["rm 10-a"]);
        assert!(found.say.contains("plugin-misnamed"), "{}", found.say);
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
