//! The plugins that NRI requires. Its validator (containerd 2.2 and later) rejects every container while one of them
//! is not registered. NRI does not report which plugins are registered.

use std::path::Path;

use crate::handlers::{NRI_TABLE, Settings};

use super::finding::{Finding, Severity};
use super::instances::Instances;
use super::inventory::Inventory;

/// The first containerd whose NRI has the validator's list. An earlier one does not read the key.
const SINCE: (u64, u64) = (2, 2);

pub(super) fn check(inventory: &Inventory, instances: &Instances) -> Vec<Finding> {
    if inventory.version().is_some_and(|version| version < SINCE) {
        return vec![];
    }
    let own = instances.identities(inventory.config());
    let required = Required::read(inventory.files.settings());
    required.map_or_else(Vec::new, |required| {
        let start = (!instances.is_running()).then(|| instances.start());
        required.check(&own, start)
    })
}

/// What the validator requires.
#[derive(Debug)]
struct Required<'a> {
    names: Vec<&'a str>,
    /// The file that requires them.
    path: &'a Path,
}

impl<'a> Required<'a> {
    /// Returns the required plugins. `None` if nothing is required, or if the validator is off, which is the default.
    fn read(settings: &'a Settings) -> Option<Self> {
        let key = |key| ["plugins", NRI_TABLE, "default_validator", key];
        let (is_on, _) = settings.switch(&key("enable"))?;
        let (names, path) = settings.find(&key("required_plugins"))?;
        let names = names.as_array()?.iter();
        let names: Vec<_> = names.filter_map(toml::Value::as_str).collect();
        (is_on && !names.is_empty()).then_some(Self { names, path })
    }

    /// Returns the findings. `own` are the identities that this plugin registers under while it runs; `start` are the
    /// commands that start it, if it does not run. NRI compares a required name with a plugin's name, and with its index
    /// and name.
    fn check(&self, own: &[nri::Identity], start: Option<&[&'static str]>) -> Vec<Finding> {
        let is_own = |name: &str| {
            let mut own = own.iter();
            own.any(|own| own.name.as_str() == name || own.to_string() == name)
        };
        let is_meant = |name: &str| {
            let identity: Option<nri::Identity> = name.parse().ok();
            let mut own = own.iter();
            identity.is_some_and(|it| own.any(|own| own.name == it.name))
        };
        let (ours, others): (Vec<&str>, Vec<&str>) =
            self.names.iter().copied().partition(|name| is_own(name));
        let (meant, others): (Vec<&str>, Vec<&str>) =
            others.into_iter().partition(|name| is_meant(name));
        let absent = ours.first().zip(start);
        let absent = absent.map(|(name, start)| self.absent(name, start));
        let misnamed = meant.first().zip(own.first());
        let misnamed = misnamed.map(|(name, own)| self.misnamed(name, own));
        let on = ours.first().filter(|_| start.is_none());
        let on = on.map(|name| self.on(name));
        let others = (!others.is_empty()).then(|| self.others(&others));
        let all = [absent, misnamed, on, others];
        all.into_iter().flatten().collect()
    }

    fn finding(&self, id: &'static str, severity: Severity, which: &str, means: &str) -> Finding {
        let path = self.path.display();
        let found = format!("NRI requires {which} (required_plugins in {path})");
        Finding::new(id, severity, found, means)
    }

    fn absent(&self, name: &str, start: &[&'static str]) -> Finding {
        let finding = self.finding(
            "nri-required-absent",
            Severity::Error,
            &format!("the plugin {name}, which does not run"),
            "every container of this node is rejected, also the one of a pod that would start the plugin",
        )
        .advise(format!(
            "start the plugin; pods that must start before it need the annotation that tolerate_missing_plugins_annotation names, with the value true; or remove {name} from required_plugins, and restart containerd"
        ));
        start.iter().copied().fold(finding, Finding::run)
    }

    fn on(&self, name: &str) -> Finding {
        self.finding(
            "nri-required",
            Severity::Note,
            &format!("the plugin {name}, which runs"),
            "while the plugin is away, every container of this node is rejected; sandboxes, and pods with the annotation that tolerate_missing_plugins_annotation names, are not",
        )
        .advise("let only trusted pods have that annotation, the plugin's own DaemonSet among them: docs/recipes.md")
    }

    fn misnamed(&self, name: &str, own: &nri::Identity) -> Finding {
        let corrected = self.names.iter().map(|required| match *required == name {
            true => own.name.as_str(),
            false => *required,
        });
        let corrected: Vec<_> = corrected.map(|name| format!("{name:?}")).collect();
        let lines = format!(
            "[plugins.{NRI_TABLE:?}.default_validator]\n  required_plugins = [{}]",
            corrected.join(", ")
        );
        self.finding(
            "nri-required-misnamed",
            Severity::Error,
            &format!("the plugin {name}, and nri-unpack registers as {own}"),
            "no plugin registers under the required name: every container of this node is rejected",
        )
        .advise("write the name without an index, or with the index of nri.index, and restart containerd")
        .lines(self.path, &lines)
        .run("systemctl restart containerd")
    }

    fn others(&self, names: &[&str]) -> Finding {
        self.finding(
            "nri-required-others",
            Severity::Note,
            &format!("other plugins than nri-unpack: {}", names.join(", ")),
            "every container of this node is rejected while one of them is not registered, also where its image is ready",
        )
        .advise("if containers fail with «required plugin … not present», start the plugin that the error names, or remove it from required_plugins and restart containerd")
        .run("journalctl -u containerd -n 200")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::FileConfig;

    const OWN: &str = "10-nri-unpack";
    const START: &[&str] = &["systemctl restart containerd"];

    fn found(table: &str, is_running: bool) -> Vec<(&'static str, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let heading = "version = 3\n[plugins.'io.containerd.nri.v1.nri'.default_validator]\n";
        std::fs::write(&path, format!("{heading}{table}")).unwrap();
        let files = FileConfig::read(&path, Some((2, 2)));
        let Some(required) = Required::read(files.settings()) else {
            return vec![];
        };
        let own = [OWN.parse().unwrap()];
        let start = (!is_running).then_some(START);
        let findings = required.check(&own, start).into_iter();
        findings
            .map(|finding| (finding.id, finding.remedy.lines))
            .collect()
    }

    #[test]
    fn required_names_are_compared_with_registered_names() {
        const ABSENT: &str = "nri-required-absent";
        const MISNAMED: &str = "nri-required-misnamed";
        const OTHERS: &str = "nri-required-others";
        const ON: &str = "nri-required";
        for (required, is_running, expected) in [
            ("[]", false, &[][..]),
            ("['nri-unpack']", true, &[ON]),
            ("['10-nri-unpack']", true, &[ON]),
            ("['nri-unpack']", false, &[ABSENT]),
            ("['10-nri-unpack']", false, &[ABSENT]),
            ("['20-nri-unpack']", true, &[MISNAMED]),
            ("['20-nri-unpack']", false, &[MISNAMED]),
            ("['device-injector']", true, &[OTHERS]),
            ("['a', '10-nri-unpack', 'b']", false, &[ABSENT, OTHERS]),
            ("['a', '10-nri-unpack', 'b']", true, &[ON, OTHERS]),
        ] {
            let table = format!("enable = true\nrequired_plugins = {required}\n");
            let ids: Vec<_> = found(&table, is_running)
                .into_iter()
                .map(|(id, _)| id)
                .collect();
            assert_eq!(ids, expected, "{required}, {is_running}");
            // With the validator off, nothing is required.
            for off in ["enable = false\n", ""] {
                let table = format!("{off}required_plugins = {required}\n");
                assert_eq!(found(&table, is_running), [], "{required}");
            }
        }
    }

    #[test]
    fn the_advised_list_keeps_the_other_plugins() {
        let table = "enable = true\nrequired_plugins = ['a', '20-nri-unpack']\n";
        let all = found(table, true);
        let (_, lines) = &all[0];
        assert_eq!(
            lines[1].trim(),
            r#"required_plugins = ["a", "nri-unpack"]"#,
            "{lines:?}"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text = format!("version = 3\n{}\nenable = true\n", lines.join("\n"));
        std::fs::write(&path, text).unwrap();
        let files = FileConfig::read(&path, Some((2, 2)));
        let own = [OWN.parse().unwrap()];
        let required = Required::read(files.settings()).unwrap();
        let ids: Vec<_> = required.check(&own, None).iter().map(|it| it.id).collect();
        assert_eq!(ids, ["nri-required", "nri-required-others"]);
    }

    #[test]
    fn an_absent_plugin_is_started_as_it_is_installed() {
        let required = Required {
            names: vec!["nri-unpack"],
            path: Path::new("config.toml"),
        };
        let own = [OWN.parse().unwrap()];
        let findings = required.check(&own, Some(START));
        assert_eq!(findings[0].remedy.commands, START);
    }
}
