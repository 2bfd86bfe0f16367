//! Where the distribution of this node changes the configuration of its containerd, and how it restarts it. Several write
//! containerd's files themselves, at each start, and their services have other names. The checks know plain containerd;
//! their remedies are translated here.
//!
//! A distribution is known by the path of containerd's configuration. Pure.

use std::path::Path;

use crate::handlers::CRI;

use super::finding::{Finding, Remedy};

/// The commands of plain containerd in remedies.
const RESTART: &str = "systemctl restart containerd";
const START: &str = "systemctl start containerd";
const LOG: &str = "journalctl -u containerd";

/// The file of Talos' machine configuration that is merged into containerd's.
const TALOS_PART: &str = "/etc/cri/conf.d/20-customization.part";

/// A distribution that manages its containerd.
#[derive(Debug)]
pub(super) struct Distribution {
    /// The directory of the files that it writes.
    writes: &'static str,
    change: Change,
    /// The command in the place of [`RESTART`].
    restart: &'static str,
    /// The command in the place of [`START`]. Which service of a distribution runs depends on the role of the node:
    /// `--all` starts the enabled one.
    start: &'static str,
    /// The command in the place of [`LOG`].
    log: &'static str,
}

/// How the configuration is changed.
#[derive(Debug)]
enum Change {
    /// By a file that the distribution reads or imports, relative to the directory that it writes, and what to know of it.
    File(&'static str, &'static str),
    /// By a file of k3s or RKE2, whose name depends on the version of containerd.
    Rancher,
    /// By a patch of the machine configuration.
    MachineConfiguration,
}

/// For containerd 2 on k3s and RKE2, and for an unknown version.
const RANCHER: (&str, &str) = (
    "config-v3.toml.d/nri-unpack.toml",
    "config.toml is written at each start; if it does not import config-v3.toml.d, put the keys into the same table of the \
     template config-v3.toml.tmpl",
);

/// For containerd 1.7 on k3s and RKE2.
const RANCHER_1_7: (&str, &str) = (
    "config.toml.d/nri-unpack.toml",
    "config.toml is written at each start; if it does not import config.toml.d, put the keys into the same table of the \
     template config.toml.tmpl",
);

/// For a key of CRI's table and containerd 1.7, where an imported file replaces a plugin's table as a whole.
const RANCHER_1_7_CRI: (&str, &str) = (
    "config.toml.tmpl",
    "config.toml is written from this template at each start; if there is none, begin it as a copy of config.toml, and change \
     the keys in the table that it has; a file of config.toml.d would replace all of CRI's settings",
);

const ALL: [Distribution; 5] = [
    Distribution {
        writes: "/var/lib/rancher/k3s/agent/etc/containerd",
        change: Change::Rancher,
        restart: "systemctl try-restart 'k3s*.service'",
        start: "systemctl start --all 'k3s*.service'",
        log: "tail /var/lib/rancher/k3s/agent/containerd/containerd.log",
    },
    Distribution {
        writes: "/var/lib/rancher/rke2/agent/etc/containerd",
        change: Change::Rancher,
        restart: "systemctl try-restart 'rke2-*.service'",
        start: "systemctl start --all 'rke2-*.service'",
        log: "tail /var/lib/rancher/rke2/agent/containerd/containerd.log",
    },
    Distribution {
        writes: "/var/snap/microk8s/current/args",
        change: Change::File(
            "containerd-template.toml",
            "containerd.toml is written from the template at each start",
        ),
        restart: "snap restart microk8s.daemon-containerd",
        start: "snap start microk8s.daemon-containerd",
        log: "journalctl -u snap.microk8s.daemon-containerd",
    },
    Distribution {
        writes: "/etc/k0s",
        change: Change::File(
            "containerd.d/nri-unpack.toml",
            "k0s writes containerd.toml as long as it begins with k0s_managed=true",
        ),
        restart: "systemctl try-restart 'k0s*.service'",
        start: "systemctl start --all 'k0s*.service'",
        log: "journalctl -u 'k0s*.service'",
    },
    Distribution {
        writes: "/etc/cri",
        change: Change::MachineConfiguration,
        restart: "talosctl --nodes NODE reboot",
        start: "talosctl --nodes NODE reboot",
        log: "talosctl --nodes NODE logs cri",
    },
];

/// Returns the distribution whose containerd has this configuration; `None` where nothing but an administrator writes it.
pub(super) fn of(containerd_config: &Path) -> Option<&'static Distribution> {
    ALL.iter()
        .find(|it| containerd_config.starts_with(it.writes))
}

/// Returns the command that restarts the containerd with this configuration.
pub(crate) fn restart(containerd_config: &Path) -> &'static str {
    of(containerd_config).map_or(RESTART, |it| it.restart)
}

impl Distribution {
    /// Translates the remedy of a finding for this version of containerd.
    pub(super) fn translate(&self, finding: &mut Finding, version: Option<(u64, u64)>) {
        let remedy = &mut finding.remedy;
        for command in &mut remedy.commands {
            if let Some(own) = self.command(command) {
                *command = own;
            }
        }
        if !remedy
            .file
            .as_deref()
            .is_some_and(|file| self.is_written(file))
        {
            return;
        }
        let (name, note) = match self.change {
            Change::File(name, note) => (name, note),
            Change::Rancher => rancher(remedy, version),
            Change::MachineConfiguration => return machine_configuration(remedy),
        };
        remedy.file = Some(Path::new(self.writes).join(name));
        remedy.say = format!("{}; {note}", remedy.say);
    }

    /// Returns the command in the place of one of plain containerd; `None` if it is another command.
    fn command(&self, of_containerd: &str) -> Option<String> {
        match of_containerd {
            RESTART => Some(self.restart.to_owned()),
            START => Some(self.start.to_owned()),
            other => Some(format!("{}{}", self.log, other.strip_prefix(LOG)?)),
        }
    }

    /// Whether the distribution writes this file, and overwrites changes. A file in a directory below is one that it
    /// imports.
    fn is_written(&self, file: &Path) -> bool {
        match self.change {
            Change::File(..) | Change::Rancher => file.parent() == Some(Path::new(self.writes)),
            Change::MachineConfiguration => file.starts_with(self.writes),
        }
    }
}

/// Returns the file of k3s or RKE2 to change, and what to know of it.
fn rancher(remedy: &Remedy, version: Option<(u64, u64)>) -> (&'static str, &'static str) {
    let is_of_cri = || remedy.lines.iter().any(|line| line.contains(CRI));
    match version {
        Some((1, _)) if is_of_cri() => RANCHER_1_7_CRI,
        Some((1, _)) => RANCHER_1_7,
        _ => RANCHER,
    }
}

/// Makes lines for a file of containerd into a patch of Talos' machine configuration.
fn machine_configuration(remedy: &mut Remedy) {
    let content = remedy.lines.iter().map(|line| format!("        {line}"));
    let head = [
        "machine:",
        "  files:",
        "    - op: create",
        "      path: PART",
        "      content: |",
    ];
    let head = head.iter().map(|line| line.replace("PART", TALOS_PART));
    remedy.lines = head.chain(content).collect();
    remedy.file = None;
    remedy.say = format!(
        "{}; the files on this node come from its machine configuration: patch it, for example with a file patch.yaml of \
         these lines (if it has the file {TALOS_PART} already, add the content there)",
        remedy.say
    );
    let patch = "talosctl --nodes NODE patch machineconfig --patch @patch.yaml";
    remedy.commands = vec![patch.to_owned()];
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::finding::Severity;
    use super::*;

    fn translated(config: &str, file: &str) -> Remedy {
        let finding = Finding::new("id", Severity::Error, "found", "means");
        let mut finding = finding
            .advise("switch it on, and restart containerd")
            .lines(Path::new(file), "[a]\n  b = 1")
            .run("systemctl restart containerd")
            .run("journalctl -u containerd -n 50")
            .run("systemctl start containerd");
        let distribution = of(Path::new(config)).unwrap();
        distribution.translate(&mut finding, Some((2, 1)));
        finding.remedy
    }

    #[test]
    fn the_file_of_k3s_depends_on_the_version() {
        let k3s = Path::new("/var/lib/rancher/k3s/agent/etc/containerd");
        let nri = "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false";
        let cri =
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  discard_unpacked_layers = false";
        for (version, lines, file, named) in [
            (
                Some((1, 7)),
                nri,
                "config.toml.d/nri-unpack.toml",
                "config.toml.tmpl",
            ),
            (Some((1, 7)), cri, "config.toml.tmpl", "copy of config.toml"),
            (
                Some((2, 1)),
                nri,
                "config-v3.toml.d/nri-unpack.toml",
                "config-v3.toml.tmpl",
            ),
            (
                None,
                nri,
                "config-v3.toml.d/nri-unpack.toml",
                "config-v3.toml.tmpl",
            ),
        ] {
            let main = k3s.join("config.toml");
            let finding = Finding::new("id", Severity::Error, "found", "means");
            let mut finding = finding.advise("do").lines(&main, lines);
            of(&main).unwrap().translate(&mut finding, version);
            let Remedy {
                say,
                file: to_change,
                ..
            } = finding.remedy;
            assert_eq!(to_change, Some(k3s.join(file)), "{version:?} {lines}");
            assert!(say.contains(named), "{say}");
            let is_1_7 = version == Some((1, 7));
            assert_eq!(say.contains("v3"), !is_1_7, "{say}");
        }
    }

    #[test]
    fn a_file_that_the_distribution_writes_is_not_changed() {
        let rancher = "/var/lib/rancher/rke2/agent/etc/containerd";
        let drop_in = format!("{rancher}/config-v3.toml.d/nri-unpack.toml");
        let kata = format!("{rancher}/config-v3.toml.d/kata.toml");
        let main = format!("{rancher}/config.toml");
        for (config, file, expected) in [
            (&*main, &*main, &*drop_in),
            (&main, &kata, &kata),
            (
                &main,
                "/etc/nri-unpack/config.toml",
                "/etc/nri-unpack/config.toml",
            ),
            (
                "/etc/k0s/containerd.toml",
                "/etc/k0s/containerd.toml",
                "/etc/k0s/containerd.d/nri-unpack.toml",
            ),
            (
                "/var/snap/microk8s/current/args/containerd.toml",
                "/var/snap/microk8s/current/args/containerd.toml",
                "/var/snap/microk8s/current/args/containerd-template.toml",
            ),
        ] {
            let remedy = translated(config, file);
            assert_eq!(remedy.file, Some(PathBuf::from(expected)));
            assert_eq!(remedy.lines, ["[a]", "  b = 1"]);
            let of_distribution = |it: &&Distribution| Path::new(config).starts_with(it.writes);
            let distribution = ALL.iter().find(of_distribution).unwrap();
            assert_eq!(remedy.commands[0], distribution.restart);
            assert!(remedy.commands[1].starts_with(distribution.log));
            assert_eq!(remedy.commands[2], distribution.start);
            assert_eq!(restart(Path::new(config)), distribution.restart);
        }
    }

    #[test]
    fn talos_is_changed_by_its_machine_configuration() {
        let remedy = translated("/etc/cri/containerd.toml", "/etc/cri/conf.d/cri.toml");
        assert_eq!(remedy.file, None);
        let expected = [
            "machine:",
            "  files:",
            "    - op: create",
            "      path: /etc/cri/conf.d/20-customization.part",
            "      content: |",
            "        [a]",
            "          b = 1",
        ];
        assert_eq!(remedy.lines, expected);
        assert_eq!(
            remedy.commands,
            ["talosctl --nodes NODE patch machineconfig --patch @patch.yaml"]
        );
        let ours = translated("/etc/cri/containerd.toml", "/etc/nri-unpack/config.toml");
        assert_eq!(
            ours.file,
            Some(PathBuf::from("/etc/nri-unpack/config.toml"))
        );
        assert_eq!(ours.commands[0], "talosctl --nodes NODE reboot");
    }

    #[test]
    fn plain_containerd_is_no_distribution() {
        for config in ["/etc/containerd/config.toml", "/etc/k0sctl/x.toml"] {
            assert!(of(Path::new(config)).is_none(), "{config}");
            assert_eq!(restart(Path::new(config)), RESTART);
        }
    }

    /// Each command that starts or restarts containerd has the form that is translated.
    #[test]
    fn the_commands_of_all_checks_are_translated() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor");
        for file in std::fs::read_dir(root).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for verb in ["start", "restart"] {
                for (i, _) in text.match_indices(&format!(".run(\"systemctl {verb} ")) {
                    let command = &text[i + ".run(\"".len()..];
                    let command = command.split('"').next().unwrap();
                    let known = [RESTART, START, "systemctl restart nri-unpack"];
                    assert!(known.contains(&command), "{command}");
                }
            }
        }
    }
}
