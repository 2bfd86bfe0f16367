//! The process that made a lease, as a label of the lease says it, and whether another process may sweep that
//! lease.

/// What stands for a part of an owner that could not be read.
const UNKNOWN: &str = "unknown";

/// Whose leases a process makes, and may take for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The plugin: one on a node. Another daemon's lease is a dead one's.
    Daemon,
    /// A command: many may run beside the daemon.
    Command,
}

/// A process, so that another one can tell whether it still lives: pids come again after a reboot
/// and mean nothing in another pid namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Owner {
    role: Role,
    /// `boot_id` of the kernel.
    boot: String,
    /// The pid namespace, as the link in `/proc` names it.
    namespace: String,
    pub(crate) pid: u32,
    /// In clock ticks since boot: tells a process from a later one of the same pid.
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
            started: start_time(pid).unwrap_or_default(),
        }
    }

    /// Whether what `other` left may be taken away by this process. Where either could not tell who it
    /// is (a part of `/proc` is hidden), nobody is taken for dead.
    pub(crate) fn may_sweep(&self, other: &Owner) -> bool {
        if !self.is_known() || !other.is_known() {
            return false;
        }
        if other.boot != self.boot {
            return true;
        }
        if other.namespace == self.namespace {
            let is_me = other.pid == self.pid && other.started == self.started;
            return is_me || start_time(other.pid) != Some(other.started);
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
        let is_told = |word: &str| word != UNKNOWN;
        is_told(&self.boot) && is_told(&self.namespace) && self.started > 0
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

/// Field 22 of `/proc/<pid>/stat`, counted after the command's closing parenthesis: the command
/// itself may contain anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_are_swept() {
        let me = Owner::this_process(Role::Daemon);
        assert!(me.started > 0 && !me.boot.is_empty() && !me.namespace.is_empty());
        assert_eq!(Owner::parse(&me.to_string()), Some(me.clone()));
        let parent = std::os::unix::process::parent_id();
        let living = Owner {
            pid: parent,
            started: start_time(parent).unwrap(),
            ..me.clone()
        };
        let of = |boot: &str, namespace: &str, role| Owner {
            boot: boot.to_owned(),
            namespace: namespace.to_owned(),
            role,
            ..living.clone()
        };
        for (other, swept) in [
            (living.clone(), false),
            (me.clone(), true),
            (
                Owner {
                    started: living.started + 1,
                    ..living.clone()
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
