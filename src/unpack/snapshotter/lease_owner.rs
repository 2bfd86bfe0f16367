//! The owner of a lease: the process that made it, recorded in a label. It decides whether another process may sweep
//! the lease.

use std::io::ErrorKind;

use rustix::io::Errno;

/// The value of a part of an owner that could not be read.
const UNKNOWN: &str = "unknown";

/// The kind of process that makes and sweeps leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The plugin. A node runs one, so the lease of another daemon belongs to one that no longer runs.
    Daemon,
    /// A command. Several may run beside the daemon.
    Command,
}

/// A process, described so that another process can check whether it still runs: a pid alone is reused after a
/// reboot and has no meaning in another pid namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Owner {
    role: Role,
    /// The kernel's `boot_id`.
    boot: String,
    /// The pid namespace, as the target of its link in `/proc`.
    namespace: String,
    pub(crate) pid: u32,
    /// The start time in clock ticks since boot, which differs between processes that reuse a pid.
    started: u64,
}

impl Owner {
    pub(crate) fn this_process(role: Role) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let boot = boot.map(|id| id.trim().to_owned());
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok();
        let namespace = namespace.map(|link| link.to_string_lossy().into_owned());
        let unknown = || UNKNOWN.to_owned();
        let pid = std::process::id();
        Self {
            role,
            boot: boot.unwrap_or_else(unknown),
            namespace: namespace.unwrap_or_else(unknown),
            pid,
            started: start_time(pid).ok().flatten().unwrap_or_default(),
        }
    }

    /// Whether this process may remove the leases of `other`. It may not if a part of either owner is unknown (a part
    /// of `/proc` is hidden).
    pub(crate) fn may_sweep(&self, other: &Owner) -> bool {
        if !self.is_known() || !other.is_known() {
            return false;
        }
        if other.boot != self.boot {
            return true;
        }
        if other.namespace == self.namespace {
            let is_self = other.pid == self.pid && other.started == self.started;
            let runs = |started| started == Some(other.started);
            return is_self || start_time(other.pid).is_ok_and(|started| !runs(started));
        }
        self.role == Role::Daemon && other.role == Role::Daemon
    }

    /// A process that ran before the last reboot.
    #[cfg(test)]
    pub(crate) fn before_reboot(&self) -> Self {
        Self {
            boot: "earlier".to_owned(),
            ..self.clone()
        }
    }

    fn is_known(&self) -> bool {
        self.boot != UNKNOWN && self.namespace != UNKNOWN && self.started > 0
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let owner = Self {
            role: match words.next()? {
                "daemon" => Role::Daemon,
                "command" => Role::Command,
                _ => return None,
            },
            boot: words.next()?.to_owned(),
            namespace: words.next()?.to_owned(),
            pid: words.next()?.parse().ok()?,
            started: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(owner)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = match self.role {
            Role::Daemon => "daemon",
            Role::Command => "command",
        };
        let Self {
            boot,
            namespace,
            pid,
            started,
            ..
        } = self;
        write!(f, "{role} {boot} {namespace} {pid} {started}")
    }
}

/// Returns the start time of a process; `None` if it does not run.
///
/// # Errors
/// If that cannot be told, for example since too many files are open.
fn start_time(pid: u32) -> std::io::Result<Option<u64>> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(started(&stat)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        // It has ended between the two calls.
        Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns field 22 of `/proc/<pid>/stat`, counted from the closing parenthesis of the command, which may itself contain
/// spaces and parentheses. A zombie has ended; only its parent has not asked for its status.
fn started(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    let mut fields = after_command.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(start_time(child.id()).unwrap().is_some());
        // It ends with its input, and is a zombie until its status is asked for.
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while start_time(child.id()).unwrap().is_some() {
            assert!(std::time::Instant::now() < deadline, "a zombie runs");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let stat = format!("/proc/{}/stat", child.id());
        assert!(std::path::Path::new(&stat).exists());
        child.wait().unwrap();
    }

    #[test]
    fn only_leases_of_dead_processes_are_swept() {
        let me = Owner::this_process(Role::Daemon);
        assert!(me.started > 0 && !me.boot.is_empty() && !me.namespace.is_empty());
        assert_eq!(Owner::parse(&me.to_string()), Some(me.clone()));
        let parent = std::os::unix::process::parent_id();
        let running = Owner {
            pid: parent,
            started: start_time(parent).unwrap().unwrap(),
            ..me.clone()
        };
        let of = |boot: &str, namespace: &str, role| Owner {
            boot: boot.to_owned(),
            namespace: namespace.to_owned(),
            role,
            ..running.clone()
        };
        for (other, swept) in [
            (running.clone(), false),
            (me.clone(), true),
            (
                Owner {
                    started: running.started + 1,
                    ..running.clone()
                },
                true,
            ),
            (of("earlier", &me.namespace, Role::Command), true),
            (of(&me.boot, "pid:[1]", Role::Command), false),
            (of(&me.boot, "pid:[1]", Role::Daemon), true),
            (of(UNKNOWN, &me.namespace, Role::Daemon), false),
            (of("earlier", UNKNOWN, Role::Daemon), false),
        ] {
            assert_eq!(me.may_sweep(&other), swept, "{other}");
        }
        let command = Owner {
            role: Role::Command,
            ..me
        };
        assert!(!command.may_sweep(&of(&command.boot, "pid:[1]", Role::Daemon)));
    }
}
