//! Whether NRI is on, where it listens, and how much time it gives a hook.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, Nri};
use crate::containerd;
use crate::handlers::{NRI_TABLE as TABLE, Settings};
use crate::hooks::MARGIN;

use super::cri;
use super::finding::{Finding, Severity};
use super::instances::Instances;
use super::inventory::Inventory;
use super::required;

/// What fits into one message of ttrpc.
const MAX_STATE: usize = 4 << 20;

/// What NRI gives a plugin for an answer if nothing else is said.
const USUAL_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn check(inventory: &Inventory, instances: &Instances) -> Vec<Finding> {
    let settings = inventory.files.settings();
    let file: &Path = inventory.config().containerd.config.as_ref();
    let plugins = inventory.seen().map_or(&[][..], |seen| &seen.plugins);
    if cri::is_down(plugins) {
        return vec![];
    }
    let off = disabled(inventory, settings, file).or_else(|| off(inventory, settings, file));
    let mut findings: Vec<_> = off.into_iter().collect();
    // Where containerd has launched the plugin, it brought the connection along.
    if findings.is_empty() && !instances.is_launched() {
        let socket: &Path = inventory.config().nri.socket.as_ref();
        findings.extend(connections_off(settings).or_else(|| elsewhere(settings, socket)));
        if findings.is_empty() {
            findings.extend(silent(
                socket,
                inventory.config().containerd.socket.as_ref(),
            ));
        }
    }
    findings.extend(too_large(inventory));
    findings.extend(old(inventory, instances));
    findings.extend(required::check(inventory, instances));
    findings.extend(timeout(
        settings,
        file,
        inventory.config().hooks.wait.as_duration(),
    ));
    findings
}

/// A plugin in `disabled_plugins` is not loaded; one that is loaded may be switched off.
fn disabled(inventory: &Inventory, settings: &Settings, file: &Path) -> Option<Finding> {
    let plugins = &inventory.seen()?.plugins;
    let uri = TABLE;
    let listed = settings.find(&["disabled_plugins"]);
    let names_it = |value: &toml::Value| {
        let names = value.as_array().into_iter().flatten();
        names
            .filter_map(toml::Value::as_str)
            .any(|name| name == uri)
    };
    let by = listed
        .filter(|(value, _)| names_it(value))
        .map(|(_, path)| path);
    let is_loaded = plugins.is_empty() || plugins.iter().any(|plugin| plugin.uri == uri);
    if by.is_none() && is_loaded {
        return None;
    }
    let found = match by {
        Some(path) => format!("NRI is among disabled_plugins in {}", path.display()),
        None => "NRI is not among the plugins that containerd has loaded".to_owned(),
    };
    Some(
        Finding::new("nri-off", Severity::Error, found, "containerd calls no plugin: no image is made ready for a pod")
            .advise(format!("take {uri} out of disabled_plugins in {}, and restart containerd; a containerd that was built without NRI has to be replaced", by.unwrap_or(file).display()))
            .run("systemctl restart containerd"),
    )
}

/// 1.7 has NRI off unless it is switched on, 2.0 and later the other way round.
fn off(inventory: &Inventory, settings: &Settings, file: &Path) -> Option<Finding> {
    let by_default = matches!(inventory.version(), Some((1, _)));
    let (off, path) = match settings.switch(&["plugins", TABLE, "disable"]) {
        Some((off, path)) => (off, path),
        // A file that cannot be read may say so all the same.
        None => (by_default && file.exists(), file),
    };
    off.then(|| {
        Finding::new(
            "nri-off",
            Severity::Error,
            format!("NRI is off in {}", path.display()),
            "containerd calls no plugin: no image is made ready for a pod",
        )
        .advise("switch it on, and restart containerd; running pods go on")
        .lines(path, &table("disable = false"))
        .run("systemctl restart containerd")
    })
}

/// NRI before 0.8 (containerd 1.7 up to 1.7.25) tells a plugin of all pods and containers in one message.
fn too_large(inventory: &Inventory) -> Option<Finding> {
    let seen = inventory.seen()?;
    let bytes = seen.state_bytes;
    (tells_in_one_message(&seen.version) && bytes > MAX_STATE).then(|| {
        Finding::new(
            "nri-state-too-large",
            Severity::Error,
            format!("annotations and labels of the pods and containers on this node have {bytes} bytes"),
            "NRI of containerd 1.7.25 and earlier tells a plugin of all of them in one message of 4 MiB at most: the plugin is not synchronized, and no image is made ready for a pod",
        )
        .advise("take large annotations off the pods of this node, or use containerd 1.7.26 or later")
    })
}

/// What an NRI before 0.8 does not tell, where that is missed on this node.
fn old(inventory: &Inventory, instances: &Instances) -> Option<Finding> {
    let version = &inventory.seen()?.version;
    let lack = lack(version, inventory.files.is_whole(), instances.is_launched())?;
    let found = format!("containerd is of version {version}, with an NRI before 0.8");
    let (severity, means, advice) = match lack {
        Lack::Timeout => (
            Severity::Warning,
            "it does not tell a plugin how long it waits for an answer, and the file that says so cannot be read: 2 s are assumed; a containerd that waits less closes the plugin in the middle of a hook, and creates the container without it",
            "set containerd.config in the configuration of nri-unpack to the file that containerd was started with; or use containerd 1.7.26 or later",
        ),
        Lack::Synchronization => (
            Severity::Note,
            "it does not tell a plugin that it launches what runs already: the containers that exist are looked up in CRI instead",
            "nothing has to be done; containerd 1.7.26 or later tells it, and so does this one where systemd starts the plugin",
        ),
        Lack::Trial => (
            Severity::Note,
            "the plugin was tried on containerd 1.7.24 and later ones of 1.7",
            "use containerd 1.7.26 or later, or try a pod of each handler",
        ),
    };
    Some(Finding::new("nri-old", severity, found, means).advise(advice))
}

/// What is missed of an old NRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// How long it waits for an answer.
    Timeout,
    /// What runs already.
    Synchronization,
    /// It was not tried.
    Trial,
}

/// The most important one.
fn lack(containerd: &str, tells_timeout: bool, is_launched: bool) -> Option<Lack> {
    /// The first of 1.7 that the plugin was tried on.
    const TRIED: u64 = 24;
    let is_old = tells_in_one_message(containerd);
    if !is_old {
        return None;
    }
    if !tells_timeout {
        return Some(Lack::Timeout);
    }
    if patch(containerd).is_some_and(|patch| patch < TRIED) {
        return Some(Lack::Trial);
    }
    is_launched.then_some(Lack::Synchronization)
}

fn tells_in_one_message(containerd: &str) -> bool {
    /// The first with NRI 0.8.
    const IN_PARTS: u64 = 26;
    let is_early = patch(containerd).is_some_and(|patch| patch < IN_PARTS);
    containerd::numbers(containerd) == Some((1, 7)) && is_early
}

/// The third number of a version.
fn patch(version: &str) -> Option<u64> {
    let patch = version.split('.').nth(2).unwrap_or_default();
    let digits: String = patch.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn connections_off(settings: &Settings) -> Option<Finding> {
    let (off, path) = settings.switch(&["plugins", TABLE, "disable_connections"])?;
    off.then(|| {
        Finding::new(
            "nri-connections-off",
            Severity::Error,
            format!("NRI takes no connections by {}", path.display()),
            "only plugins that containerd launches itself are called; one that systemd starts never registers",
        )
        .advise("let NRI take connections, or have containerd launch the plugin from its plugin directory")
        .lines(path, &table("disable_connections = false"))
        .run("systemctl restart containerd")
    })
}

fn elsewhere(settings: &Settings, ours: &Path) -> Option<Finding> {
    let (said, path) = settings.find(&["plugins", TABLE, "socket_path"])?;
    let theirs = Path::new(said.as_str().unwrap_or(Nri::DEFAULT_SOCKET));
    (real(theirs) != real(ours)).then(|| {
        Finding::new(
            "nri-socket-elsewhere",
            Severity::Error,
            format!(
                "NRI listens on {} by {}, and the plugin looks for it at {}",
                theirs.display(),
                path.display(),
                ours.display()
            ),
            "the plugin never registers, and no image is made ready for a pod",
        )
        .advise("say where the socket is, and restart the plugin")
        .lines(
            Path::new(Config::DEFAULT_PATH),
            &format!("[nri]\nsocket = {:?}", theirs.display().to_string()),
        )
        .run("systemctl restart nri-unpack")
    })
}

fn silent(socket: &Path, containerd: &Path) -> Option<Finding> {
    let finding = |id, found: String| {
        Finding::new(
            id,
            Severity::Error,
            found,
            "the plugin cannot register, and no image is made ready for a pod",
        )
        .advise("restart containerd, if NRI was switched on only now; else say where NRI's socket is, by nri.socket in the configuration or --nri-socket")
        .run("systemctl restart containerd")
    };
    let at = socket.display();
    match fs::metadata(socket) {
        Err(e) => Some(finding(
            "nri-socket-missing",
            format!("NRI's socket {at}: {e}"),
        )),
        Ok(file) if !file.file_type().is_socket() => Some(finding(
            "nri-socket-missing",
            format!("NRI's socket {at} is no socket"),
        )),
        Ok(_) => {
            let listening = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            // Another network namespace shows neither of the two, and says nothing.
            let is_dead = is_listening(&listening, containerd) && !is_listening(&listening, socket);
            is_dead.then(|| {
                finding(
                    "nri-socket-dead",
                    format!("no process listens on NRI's socket {at}"),
                )
            })
        }
    }
}

/// Whether the kernel's list of unix sockets has one there that takes connections. To connect would
/// be taken for a plugin that fails.
fn is_listening(list: &str, socket: &Path) -> bool {
    /// `__SO_ACCEPTCON`.
    const ACCEPTS: &str = "00010000";
    let socket = real(socket);
    list.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, _, _, ACCEPTS, _, _, _, path] if real(Path::new(path)) == socket)
    })
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let whole = fs::canonicalize(path);
    whole.unwrap_or_else(
        |_| match (path.parent().map(fs::canonicalize), path.file_name()) {
            (Some(Ok(parent)), Some(name)) => parent.join(name),
            _ => path.to_owned(),
        },
    )
}

/// Whether a hook may wait as long as it is configured to.
fn timeout(settings: &Settings, file: &Path, wait: Duration) -> Option<Finding> {
    let said = settings.request_timeout();
    let (timeout, path) = said.unwrap_or((USUAL_TIMEOUT, file));
    if wait + MARGIN <= timeout {
        return None;
    }
    let enough = humantime::format_duration(wait + wait.max(Duration::from_secs(1)));
    let lines = table(&format!("plugin_request_timeout = {:?}", compact(&enough)));
    Some(
        Finding::new(
            "request-timeout-short",
            Severity::Warning,
            format!(
                "hooks.wait is {}, and NRI waits {} for an answer",
                humantime::format_duration(wait),
                humantime::format_duration(timeout)
            ),
            "a hook leaves before the timeout; an NRI before 0.8 does not say what it is, and then closes a plugin that waits longer",
        )
        .advise(
            "give plugins more time, and restart containerd; or lower hooks.wait in the configuration of nri-unpack",
        )
        .lines(path, &lines)
        .run("systemctl restart containerd"),
    )
}

/// As Go reads it, without spaces.
fn compact(duration: &humantime::FormattedDuration) -> String {
    duration.to_string().replace(' ', "")
}

fn table(line: &str) -> String {
    format!("[plugins.{TABLE:?}]\n  {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_versions_tell_all_in_one_message() {
        for (version, expected) in [
            ("1.7.24~ds1", true),
            ("v1.7.25", true),
            ("1.7.26", false),
            ("1.7.34", false),
            ("2.1.9", false),
            ("main", false),
        ] {
            assert_eq!(tells_in_one_message(version), expected, "{version}");
        }
    }

    #[test]
    fn what_an_old_nri_does_not_tell_is_said_where_it_is_missed() {
        use Lack::{Synchronization, Timeout, Trial};
        for (version, tells_timeout, is_launched, expected) in [
            ("1.7.24~ds1", true, false, None),
            ("1.7.24~ds1", true, true, Some(Synchronization)),
            ("1.7.24~ds1", false, false, Some(Timeout)),
            ("1.7.25", false, true, Some(Timeout)),
            ("1.7.2", true, false, Some(Trial)),
            ("1.7.0", true, true, Some(Trial)),
            ("1.7.26", false, true, None),
            ("2.1.9", false, true, None),
            ("main", false, true, None),
        ] {
            let found = lack(version, tells_timeout, is_launched);
            assert_eq!(found, expected, "{version} {tells_timeout} {is_launched}");
        }
    }

    #[test]
    fn a_listening_socket_is_seen_without_connecting() {
        let dir = tempfile::tempdir().unwrap();
        let list = || fs::read_to_string("/proc/net/unix").unwrap();
        let path = dir.path().join("s");
        assert!(!is_listening(&list(), &path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(is_listening(&list(), &path));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(is_listening(&list(), &link.join("s")));
        drop(listener);
        assert!(!is_listening(&list(), &path));
    }
}
