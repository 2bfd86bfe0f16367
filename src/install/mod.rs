//! Installs the files by which a node starts the plugin: a link in NRI's plugin directory or a systemd unit, and
//! a configuration.
//!
//! All checks run before the first write. A file that `install` did not write is never overwritten. This module
//! only reads and writes files; it calls neither containerd nor systemd.

mod error;
mod launched;
mod paths;
mod remove;
mod steps;
mod unit;

use std::fs;
use std::path::{Path, PathBuf};

use nri::Identity;

use crate::config::{Config, ConfigError};

pub use error::Error;
pub(crate) use launched::is_launched;
pub use launched::{Launched, launched, misnamed};
pub(crate) use paths::{ENABLED, PACKAGED, PLUGINS, UNIT, is_program};
pub use paths::{Root, is_named};
pub use remove::{launchers, removal};
pub use steps::Step;

use paths::CONFIG;

/// Directories that the unit hides. A program in them cannot be started by the unit.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// What starts the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchedBy {
    /// containerd, from NRI's plugin directory. The plugin ends with containerd.
    Containerd,
    /// systemd, by a unit. The plugin continues across restarts of containerd.
    Systemd,
}

/// The parameters of an installation.
#[derive(Debug)]
pub struct Install<'a> {
    /// The directory below which all files are written.
    pub root: Root,
    /// The path of the program on the node.
    pub program: PathBuf,
    /// The configuration to install. `None` means the node's existing one, or else the default.
    pub config: Option<&'a Path>,
}

impl Install<'_> {
    /// Returns the steps in their order. The last one installs what starts the plugin.
    pub fn plan(&self, by: LaunchedBy) -> Result<Vec<Step>, Error> {
        if !is_program(&paths::file_name(&self.program)) {
            return Err(Error::ProgramName(self.program.clone()));
        }
        let steps = match by {
            LaunchedBy::Containerd => self.for_containerd()?,
            LaunchedBy::Systemd => self.for_systemd()?,
        };
        for step in &steps {
            self.root.check_holds(step.path())?;
        }
        Ok(steps)
    }

    fn for_containerd(&self) -> Result<Vec<Step>, Error> {
        let (text, config) = self.configuration()?;
        let identity = Identity {
            name: config.nri.name.clone(),
            index: config.nri.index,
        };
        for unit in [UNIT, ENABLED].map(|path| self.root.at(path)) {
            if fs::symlink_metadata(&unit).is_ok() {
                return Err(Error::in_the_way(
                    unit,
                    "systemd starts the plugin, and two would serve this node",
                    "run `systemctl disable --now nri-unpack` and `nri-unpack uninstall` first",
                ));
            }
        }
        let nri = self.root.nri(&config);
        let link = nri.plugins.join(identity.to_string());
        let others = paths::entries(&nri.plugins)?;
        for other in others.iter().filter(|other| **other != link) {
            check_neighbour(other)?;
        }
        let file = nri.config.join(format!("{identity}.conf"));
        Ok(vec![
            self.write_config(file, text)?,
            Step::link(link, &self.program)?,
        ])
    }

    fn for_systemd(&self) -> Result<Vec<Step>, Error> {
        let (text, config) = self.configuration()?;
        if let Some(hidden) = HIDDEN.iter().find(|it| self.program.starts_with(it)) {
            return Err(Error::Program {
                path: self.program.clone(),
                why: "the unit hides that directory from the program".to_owned(),
                remedy: format!("install it outside of {hidden}, in /usr/local/bin for example"),
            });
        }
        let links = paths::entries(&self.root.nri(&config).plugins)?;
        if let Some(link) = links.iter().find(|path| paths::is_ours(path)) {
            return Err(Error::in_the_way(
                link.clone(),
                "containerd starts the plugin, and two would serve this node",
                "run `nri-unpack uninstall` and `systemctl restart containerd` first",
            ));
        }
        Ok(vec![
            self.write_config(self.root.at(CONFIG), text)?,
            self.write_unit()?,
        ])
    }

    fn write_unit(&self) -> Result<Step, Error> {
        let text = unit::text(&self.program)?;
        let packaged = PACKAGED.map(|path| self.root.at(path));
        match packaged.into_iter().find(|path| path.exists()) {
            None => Step::unit(self.root.at(UNIT), text),
            Some(path) if unit::starts(&path, &self.program)? => Ok(Step::Keep(path)),
            Some(path) => Err(Error::in_the_way(
                path,
                "it comes with a package, and starts another program",
                "run the package's own `nri-unpack install`, or remove the package",
            )),
        }
    }

    /// Returns the text for the configuration file, and the parsed configuration.
    fn configuration(&self) -> Result<(String, Config), Error> {
        let existing = self.root.at(CONFIG);
        let path = match self.config {
            Some(path) => path,
            None if existing.exists() => &existing,
            None => return Ok((Config::default_toml().to_owned(), Config::default())),
        };
        let text = fs::read_to_string(path).map_err(|reason| ConfigError::Unreadable {
            path: path.to_owned(),
            reason,
        })?;
        let config = Config::from_toml(&text, &path.display().to_string())?;
        Ok((text, config))
    }

    /// Returns the step for the configuration file. An existing file is kept if it is valid, and if --config names no
    /// different text.
    fn write_config(&self, path: PathBuf, text: String) -> Result<Step, Error> {
        if fs::symlink_metadata(&path).is_err() {
            return Ok(Step::Write { path, text });
        }
        let existing = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        if self.config.is_some() && existing != text {
            return Err(Error::in_the_way(
                path,
                "it differs from the file that --config names",
                "edit it, or remove it first",
            ));
        }
        Config::from_toml(&existing, &path.display().to_string())?;
        Ok(Step::Keep(path))
    }
}

/// Checks another entry of the plugin directory: it must not start this plugin a second time, and its name must not
/// keep containerd from starting.
fn check_neighbour(path: &Path) -> Result<(), Error> {
    if paths::is_ours(path) {
        return Err(Error::in_the_way(
            path.to_owned(),
            "it starts the plugin as well, and two would serve this node",
            "run `nri-unpack uninstall` first, or remove it",
        ));
    }
    if launched::is_misnamed(path) {
        return Err(Error::in_the_way(
            path.to_owned(),
            "its name is not NN-name: containerd does not start while it is there",
            "rename it or remove it",
        ));
    }
    Ok(())
}
