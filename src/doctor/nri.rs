//! Checks NRI: that it is on, that its socket is the configured one, and that its request timeout is long enough.

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

/// The maximum size of a message of ttrpc.
const MAX_STATE: usize = 4 << 20;

/// NRI's default request timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn check(inventory: &Inventory, instances: &Instances) -> Vec<Finding> {
    let settings = inventory.files.settings();
    let file: &Path = inventory.config().containerd.config.as_ref();
    let plugins = inventory.seen().map_or(&[][..], |seen| &seen.plugins);
    if cri::is_down(plugins) {
        return vec![];
    }
    let off = disabled(inventory, settings, file).or_else(|| off(inventory, settings, file));
    let mut findings: Vec<_> = off.into_iter().collect();
    // A plugin that containerd has launched has its connection from containerd.
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

/// Checks that containerd has loaded NRI. A plugin in `disabled_plugins` is not loaded.
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
            .advise(format!("remove {uri} from disabled_plugins in {}, and restart containerd; a containerd that was built without NRI has to be replaced", by.unwrap_or(file).display()))
            .run("systemctl restart containerd"),
    )
}

/// Checks that NRI is on. By default it is off in containerd 1.7, and on in 2.0 and later.
fn off(inventory: &Inventory, settings: &Settings, file: &Path) -> Option<Finding> {
    let by_default = matches!(inventory.version(), Some((1, _)));
    let (off, path) = match settings.switch(&["plugins", TABLE, "disable"]) {
        Some((off, path)) => (off, path),
        // If this process does not see the file, containerd may have one that switches NRI on.
        None => (by_default && file.exists(), file),
    };
    off.then(|| {
        Finding::new(
            "nri-off",
            Severity::Error,
            format!("NRI is off in {}", path.display()),
            "containerd calls no plugin: no image is made ready for a pod",
        )
        .advise("switch it on, and restart containerd; running pods continue")
        .lines(path, &table("disable = false"))
        .run("systemctl restart containerd")
    })
}

/// Checks the size of the state of pods and containers. NRI before 0.8 (containerd 1.7 up to 1.7.25) sends all of it
/// to a plugin in one message.
fn too_large(inventory: &Inventory) -> Option<Finding> {
    let seen = inventory.seen()?;
    let bytes = seen.state_bytes;
    (sends_in_one_message(&seen.version) && bytes > MAX_STATE).then(|| {
        Finding::new(
            "nri-state-too-large",
            Severity::Error,
            format!("annotations and labels of the pods and containers on this node have {bytes} bytes"),
            "NRI of containerd 1.7.25 and earlier sends all of them to a plugin in one message of 4 MiB at most: the plugin is not synchronized, and no image is made ready for a pod",
        )
        .advise("remove large annotations from the pods of this node, or use containerd 1.7.26 or later")
    })
}

/// Returns the finding for an NRI before 0.8, if information that it does not send is needed on this node.
fn old(inventory: &Inventory, instances: &Instances) -> Option<Finding> {
    let version = &inventory.seen()?.version;
    let lack = lack(version, inventory.files.is_whole(), instances.is_launched())?;
    let found = format!("containerd has version {version}, with an NRI before 0.8");
    let (severity, means, advice) = match lack {
        Lack::Timeout => (
            Severity::Warning,
            "it does not send its request timeout to a plugin, and the file with the timeout cannot be read: 2 s are assumed; with a shorter timeout containerd closes the plugin during a hook, and creates the container without it",
            "set containerd.config in the configuration of nri-unpack to the file that containerd was started with; or use containerd 1.7.26 or later",
        ),
        Lack::Synchronization => (
            Severity::Note,
            "it does not send the existing containers to a plugin that it launches: the plugin reads them from CRI instead",
            "nothing has to be done; containerd 1.7.26 or later sends them, and so does this one if systemd starts the plugin",
        ),
        Lack::Trial => (
            Severity::Note,
            "the plugin was tested with containerd 1.7.24 and later versions of 1.7",
            "use containerd 1.7.26 or later, or test a pod of each handler",
        ),
    };
    Some(Finding::new("nri-old", severity, found, means).advise(advice))
}

/// Information that an old NRI does not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// The request timeout.
    Timeout,
    /// The existing pods and containers.
    Synchronization,
    /// The plugin was not tested with it.
    Trial,
}

/// Returns the most important lack.
fn lack(containerd: &str, knows_timeout: bool, is_launched: bool) -> Option<Lack> {
    /// The first patch release of 1.7 that the plugin was tested with.
    const TRIED: u64 = 24;
    let is_old = sends_in_one_message(containerd);
    if !is_old {
        return None;
    }
    if !knows_timeout {
        return Some(Lack::Timeout);
    }
    if patch(containerd).is_some_and(|patch| patch < TRIED) {
        return Some(Lack::Trial);
    }
    is_launched.then_some(Lack::Synchronization)
}

fn sends_in_one_message(containerd: &str) -> bool {
    /// The first patch release of 1.7 with NRI 0.8.
    const IN_PARTS: u64 = 26;
    let is_early = patch(containerd).is_some_and(|patch| patch < IN_PARTS);
    containerd::numbers(containerd) == Some((1, 7)) && is_early
}

/// Returns the third number of a version.
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
            format!("NRI accepts no connections (disable_connections in {})", path.display()),
            "containerd calls only plugins that it launches itself; one that systemd starts cannot register",
        )
        .advise("let NRI accept connections, or let containerd launch the plugin from NRI's plugin directory")
        .lines(path, &table("disable_connections = false"))
        .run("systemctl restart containerd")
    })
}

fn elsewhere(settings: &Settings, ours: &Path) -> Option<Finding> {
    let (configured, path) = settings.find(&["plugins", TABLE, "socket_path"])?;
    let theirs = Path::new(configured.as_str().unwrap_or(Nri::DEFAULT_SOCKET));
    (real(theirs) != real(ours)).then(|| {
        Finding::new(
            "nri-socket-elsewhere",
            Severity::Error,
            format!(
                "NRI listens on {} (socket_path in {}), and the plugin connects to {}",
                theirs.display(),
                path.display(),
                ours.display()
            ),
            "the plugin cannot register, and no image is made ready for a pod",
        )
        .advise("set the socket in the configuration of nri-unpack, and restart the plugin")
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
        .advise("if NRI was switched on after containerd started, restart containerd; else name NRI's socket with nri.socket in the configuration or --nri-socket")
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
            format!("NRI's socket {at} is not a socket"),
        )),
        Ok(_) => {
            let listening = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            // In another network namespace neither socket is listed, so only a listed socket of containerd is evidence.
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

/// Whether the kernel's list of unix sockets has this one and it accepts connections. A connection is not tried, since
/// NRI would treat it as a plugin that fails.
fn is_listening(list: &str, socket: &Path) -> bool {
    /// `__SO_ACCEPTCON`.
    const ACCEPTS: &str = "00010000";
    let socket = real(socket);
    list.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, _, _, ACCEPTS, _, _, _, path] if real(Path::new(path)) == socket)
    })
}

/// Returns the path with links resolved, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let whole = fs::canonicalize(path);
    whole.unwrap_or_else(
        |_| match (path.parent().map(fs::canonicalize), path.file_name()) {
            (Some(Ok(parent)), Some(name)) => parent.join(name),
            _ => path.to_owned(),
        },
    )
}

/// Checks that NRI's request timeout is long enough for `hooks.wait`.
fn timeout(settings: &Settings, file: &Path, wait: Duration) -> Option<Finding> {
    let configured = settings.request_timeout();
    let (timeout, path) = configured.unwrap_or((DEFAULT_TIMEOUT, file));
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
            "a hook returns before the timeout, so it waits less than configured; an NRI before 0.8 does not send the timeout, and closes a plugin that waits longer",
        )
        .advise(
            "give plugins more time, and restart containerd; or lower hooks.wait in the configuration of nri-unpack",
        )
        .lines(path, &lines)
        .run("systemctl restart containerd"),
    )
}

/// Returns a duration in the format of Go, without spaces.
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
    fn early_versions_send_the_state_in_one_message() {
        for (version, expected) in [
            ("1.7.24~ds1", true),
            ("v1.7.25", true),
            ("1.7.26", false),
            ("1.7.34", false),
            ("2.1.9", false),
            ("main", false),
        ] {
            assert_eq!(sends_in_one_message(version), expected, "{version}");
        }
    }

    #[test]
    fn missing_information_of_an_old_nri_is_found_where_it_is_needed() {
        use Lack::{Synchronization, Timeout, Trial};
        for (version, knows_timeout, is_launched, expected) in [
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
            let found = lack(version, knows_timeout, is_launched);
            assert_eq!(found, expected, "{version} {knows_timeout} {is_launched}");
        }
    }

    #[test]
    fn a_listening_socket_is_found_without_a_connection() {
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
