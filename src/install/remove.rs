//! The steps of `uninstall`: remove the files that `install` has written, and keep changed files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;

use super::paths::{self, CONFIG, ENABLED, PACKAGED, Root, UNIT};
use super::{Error, LaunchedBy, Step, is_named, unit};

/// Returns the steps that remove the files of both kinds of installation, and name the files that stay.
pub fn removal(root: &Root, config: &Config) -> Result<Vec<Step>, Error> {
    let mut steps = of_containerd(root, config)?;
    // The package manager removes the files of a package.
    if !PACKAGED.iter().any(|path| root.at(path).exists()) {
        steps.extend(of_systemd(root)?);
    }
    for step in &steps {
        root.check_holds(step.path())?;
    }
    Ok(steps)
}

/// Returns what starts the plugin until these steps have run. Call it before the steps run, since it reads the links.
pub fn launchers(root: &Root, steps: &[Step]) -> Vec<LaunchedBy> {
    let unit = root.at(UNIT);
    let removed = || steps.iter().filter(|step| step.is_change()).map(Step::path);
    let mut launchers = vec![];
    if removed().any(|path| path == unit) {
        launchers.push(LaunchedBy::Systemd);
    }
    // The link of `systemctl enable` leads to the unit.
    let enabled = root.at(ENABLED);
    if removed().any(|path| path != enabled && paths::is_our_link(path)) {
        launchers.push(LaunchedBy::Containerd);
    }
    launchers
}

fn of_containerd(root: &Root, config: &Config) -> Result<Vec<Step>, Error> {
    let nri = root.nri(config);
    let mut steps = vec![];
    let mut names = vec![];
    for path in paths::entries(&nri.plugins)? {
        if paths::is_our_link(&path) {
            names.extend(path.file_name().map(|it| it.to_string_lossy().into_owned()));
            steps.push(Step::Remove(path));
        } else if paths::is_ours(&path) {
            let why = "it is not a link to nri-unpack; remove it by hand";
            steps.push(Step::Leave { path, why });
        }
    }
    for path in paths::entries(&nri.config)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_conf = path.extension().is_some_and(|it| it == "conf");
        if is_conf && (is_named(&stem) || names.iter().any(|name| *name == stem)) {
            steps.extend(of_configuration(path, Step::Remove)?);
        }
    }
    Ok(steps)
}

fn of_systemd(root: &Root) -> Result<Vec<Step>, Error> {
    let mut steps = vec![];
    let unit = root.at(UNIT);
    match read(&unit)? {
        Some(text) if unit::is_as_written(&text) => {
            // Without the unit, the link that `systemctl enable` made would have no target.
            let enabled = root.at(ENABLED);
            if enabled.is_symlink() {
                steps.push(Step::Remove(enabled));
            }
            steps.push(Step::Remove(unit));
        }
        Some(_) => steps.push(Step::Leave {
            path: unit,
            why: "it was not written by `install`, or was changed since",
        }),
        None => {}
    }
    steps.extend(of_configuration(
        root.at(CONFIG),
        Step::RemoveWithDirectory,
    )?);
    Ok(steps)
}

fn of_configuration(path: PathBuf, remove: fn(PathBuf) -> Step) -> Result<Option<Step>, Error> {
    Ok(match read(&path)? {
        Some(text) if text == Config::default_toml() => Some(remove(path)),
        Some(_) => Some(Step::Leave {
            path,
            why: "it is not the default",
        }),
        None => None,
    })
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

#[cfg(test)]
mod tests {
    use crate::install::Install;

    use super::*;

    #[test]
    fn launchers_are_derived_from_the_removed_files() {
        use LaunchedBy::{Containerd, Systemd};
        let directory = tempfile::tempdir().unwrap();
        let root = Root(Some(directory.path().to_owned()));
        for (by, program) in [
            (Systemd, "/usr/local/bin/nri-unpack"),
            (Containerd, "/usr/local/bin/nri-unpack"),
            (Containerd, "/opt/x/nri-unpack-0.2.0"),
        ] {
            let install = Install {
                root: root.clone(),
                program: program.into(),
                config: None,
            };
            for step in install.plan(by).unwrap() {
                step.run().unwrap();
            }
            if by == Systemd {
                // As `systemctl enable` does.
                let enabled = root.at(ENABLED);
                fs::create_dir_all(enabled.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(UNIT, enabled).unwrap();
            }
            let steps = removal(&root, &Config::default()).unwrap();
            assert_eq!(launchers(&root, &steps), [by]);
            for step in &steps {
                step.run().unwrap();
            }
            assert!(removal(&root, &Config::default()).unwrap().is_empty());
        }
    }

    #[test]
    fn a_program_that_would_not_be_found_is_not_installed() {
        let directory = tempfile::tempdir().unwrap();
        let install = Install {
            root: Root(Some(directory.path().to_owned())),
            program: "/opt/x/unpacker".into(),
            config: None,
        };
        for by in [LaunchedBy::Systemd, LaunchedBy::Containerd] {
            let error = install.plan(by).unwrap_err();
            assert!(matches!(error, Error::ProgramName(_)), "{error}");
        }
    }
}
