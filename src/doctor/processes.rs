//! Searches /proc for the processes of this program: NRI has no list of plugins.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::config::{Config, SocketPath};
use crate::install::is_program;
use crate::peer;

use super::process_files;

/// What started a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Containerd,
    /// The systemd unit.
    Unit,
    /// A pod, of a DaemonSet for example.
    Pod,
    /// A command, or what cannot be told.
    Another,
}

/// The search for what works with the store of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// Nothing does.
    None,
    /// The processes of plugins, and of those that may be one.
    Plugins(Vec<u32>),
    /// No plugin, but these processes of `ensure`.
    Commands(Vec<u32>),
    /// This process runs in another process namespace than containerd, and does not see the processes of the node.
    Blind,
}

/// Searches for a plugin that serves the NRI of this configuration, and for an `ensure` in its containerd. What cannot be
/// ruled out is found.
pub async fn search(config: &Config) -> Search {
    let containerd = peer::pid(config.containerd.socket.as_ref()).await;
    if containerd == Some(0) {
        return Search::Blind;
    }
    let (mut plugins, mut commands) = (Vec::new(), Vec::new());
    for process in processes() {
        match process.serves(config, containerd) {
            Ok(None) if process.ensures(config) => commands.push(process.pid),
            Ok(None) => {}
            Ok(Some(_)) | Err(Unknown) => plugins.push(process.pid),
        }
    }
    match (plugins.is_empty(), commands.is_empty()) {
        (false, _) => Search::Plugins(plugins),
        (true, false) => Search::Commands(commands),
        (true, true) => Search::None,
    }
}

/// Returns the processes of this program that serve the same NRI. Processes that this user cannot read are left
/// out.
pub(super) fn running(config: &Config, containerd: Option<u32>) -> Vec<(u32, By)> {
    let serves = |it: Process| Some((it.pid, it.serves(config, containerd).ok()??));
    processes().filter_map(serves).collect()
}

/// Returns the other processes of this program, by their ids. A process that this user cannot read is known by its command.
fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = pids.filter(|pid| *pid != std::process::id()).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(Process::read)
}

/// What cannot be read of a process decides.
#[derive(Debug, PartialEq)]
struct Unknown;

/// A process of this program.
struct Process {
    pid: u32,
    proc: PathBuf,
    /// The words of its command line.
    command: Vec<String>,
    parent: Option<u32>,
    /// Whether it was launched by an NRI runtime.
    is_launched: Result<bool, Unknown>,
}

impl Process {
    /// Reads a process; `None` if it has ended or is no process of this program.
    fn read(pid: u32) -> Option<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let command = fs::read(proc.join("cmdline")).ok()?;
        let program = command.split(|&b| b == 0).next().unwrap_or_default();
        let program = Path::new(OsStr::from_bytes(program));
        // A link that containerd launches may have the name, and its target another one.
        let file = unless_ended(fs::read_link(proc.join("exe")))?;
        if !is_ours(program) && !file.is_ok_and(|file| is_ours(&file)) {
            return None;
        }
        let words = command.split(|&b| b == 0);
        let is_launched = |environment: Vec<u8>| {
            let mut variables = environment.split(|&b| b == 0);
            variables.any(|variable| variable.starts_with(b"NRI_PLUGIN_SOCKET="))
        };
        Some(Self {
            pid,
            command: words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
            parent: parent(&proc),
            is_launched: unless_ended(fs::read(proc.join("environ")))?.map(is_launched),
            proc,
        })
    }

    fn has(&self, word: &str) -> bool {
        self.command.iter().any(|it| it == word)
    }

    /// Returns what started it, if it is a plugin that serves the NRI of this configuration.
    fn serves(&self, config: &Config, containerd: Option<u32>) -> Result<Option<By>, Unknown> {
        let is_child = match containerd {
            Some(_) => Ok(self.parent == containerd),
            None => Err(Unknown),
        };
        match self.is_launched {
            Ok(true) => Ok(is_child?.then_some(By::Containerd)),
            Ok(false) if !self.has("run") => Ok(None),
            Ok(false) => {
                let socket = self.socket(
                    "--nri-socket",
                    ["nri", "socket"],
                    &Config::default().nri.socket,
                )?;
                let is_same = self.is_same_socket(&socket, config.nri.socket.as_ref());
                Ok(is_same.then(|| self.started_by()))
            }
            Err(Unknown) if self.has("run") || is_child == Ok(true) => Err(Unknown),
            Err(Unknown) => Ok(None),
        }
    }

    /// Returns what started a plugin that containerd did not launch.
    fn started_by(&self) -> By {
        let cgroups = fs::read_to_string(self.proc.join("cgroup"));
        cgroups.map_or(By::Another, |cgroups| of_cgroups(&cgroups))
    }

    /// Whether it makes images ready in the containerd of this configuration, or may do so.
    fn ensures(&self, config: &Config) -> bool {
        let key = ["containerd", "socket"];
        let default = &Config::default().containerd.socket;
        let is_same =
            |socket: PathBuf| self.is_same_socket(&socket, config.containerd.socket.as_ref());
        self.has("ensure")
            && self
                .socket("--containerd-socket", key, default)
                .map_or(true, is_same)
    }

    /// Whether its socket is our own. Its path alone does not tell: a pod has a root of its own. The paths decide only
    /// where its root cannot be looked at, or our own socket does not exist.
    fn is_same_socket(&self, its: &Path, own: &Path) -> bool {
        let Ok(file) = fs::metadata(own) else {
            return same(its, own);
        };
        match process_files::inode(&self.proc, its) {
            Ok(its) => its == (file.dev(), file.ino()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => false,
            Err(_) => same(its, own),
        }
    }

    /// Returns a socket that it uses, by its option or its configuration file. The file may have another error than in this
    /// key: it may have changed since the process started.
    fn socket(&self, name: &str, key: [&str; 2], default: &SocketPath) -> Result<PathBuf, Unknown> {
        if let Some(socket) = option(&self.command, name) {
            return Ok(socket.into());
        }
        let file =
            option(&self.command, "--config").unwrap_or_else(|| Config::DEFAULT_PATH.to_owned());
        let text = process_files::read(&self.proc, Path::new(&file)).map_err(|_| Unknown)?;
        let text = text.unwrap_or_default();
        let table: toml::Table = text.parse().map_err(|_| Unknown)?;
        match table.get(key[0]).map(|table| table.get(key[1])) {
            Some(Some(toml::Value::String(socket))) => Ok(socket.into()),
            Some(Some(_)) => Err(Unknown),
            _ => Ok(default.as_ref().to_owned()),
        }
    }
}

/// Returns what was read of a process; `None` if it has ended.
fn unless_ended<T>(read: io::Result<T>) -> Option<Result<T, Unknown>> {
    const NO_SUCH_PROCESS: i32 = 3;
    match read {
        Ok(read) => Some(Ok(read)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) if e.raw_os_error() == Some(NO_SUCH_PROCESS) => None,
        Err(_) => Some(Err(Unknown)),
    }
}

/// Whether a path is this program, by its name. The file may have been renamed or replaced since the process started.
pub(super) fn is_ours(program: &Path) -> bool {
    let name = program.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    is_program(name)
}

/// Returns what started a process with these control groups. From another namespace of them, the first parts of a
/// pod's path are not visible.
fn of_cgroups(cgroups: &str) -> By {
    // A pod's group is called after its uid.
    let is_uid = |uid: &str| uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let is_of_pod = |part: &str| {
        let mut starts = ["kubepods", "cri-containerd-"].iter();
        starts.any(|start| part.starts_with(start)) || part.strip_prefix("pod").is_some_and(is_uid)
    };
    let mut parts = cgroups.lines().flat_map(|line| line.split('/'));
    match parts.find(|part| *part == "nri-unpack.service" || is_of_pod(part)) {
        Some("nri-unpack.service") => By::Unit,
        Some(_) => By::Pod,
        None => By::Another,
    }
}

/// Returns the parent process. In `stat` it is the second field after the command's name, which may contain any
/// characters.
fn parent(proc: &Path) -> Option<u32> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};

    use tokio::net::UnixListener;

    use super::*;

    /// A node: a containerd, which is this process, and processes of this program.
    struct Node {
        directory: tempfile::TempDir,
        config: Config,
        _containerd: UnixListener,
    }

    impl Node {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("containerd.sock");
            let text =
                format!("[containerd]\nsocket = {socket:?}\n[nri]\nsocket = \"/a/nri.sock\"\n");
            let file = directory.path().join("config.toml");
            fs::write(&file, text).unwrap();
            // Another process writes the program: a test that forks meanwhile would keep the open file.
            let copied = Command::new("cp")
                .arg("/bin/sh")
                .arg(directory.path().join("nri-unpack"))
                .status();
            assert!(copied.unwrap().success());
            Self {
                config: Config::load(Some(&file)).unwrap(),
                _containerd: UnixListener::bind(socket).unwrap(),
                directory,
            }
        }

        /// Starts a process of this name, which says that it runs, and waits for the end of its input.
        fn start(&self, arguments: &[&str]) -> Child {
            let mut command = Command::new(self.directory.path().join("nri-unpack"));
            let command = command.args(["-c", "echo; read line"]).args(arguments);
            let command = command.current_dir(&self.directory);
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut process = command.spawn().unwrap();
            let output = process.stdout.as_mut().unwrap();
            output.read_exact(&mut [0]).unwrap();
            process
        }
    }

    #[tokio::test]
    async fn what_works_with_the_store_is_found() {
        let node = Node::new();
        let file = |text: &str| fs::write(node.directory.path().join("its.toml"), text).unwrap();
        let socket = format!(
            "[containerd]\nsocket = {:?}",
            node.config.containerd.socket.as_ref()
        );
        let run = ["run", "--config", "its.toml"];
        let ensure = ["ensure", "--config", "its.toml"];
        for (text, arguments, expected) in [
            ("[nri]\nsocket = \"/a/nri.sock\"", run, "plugin"),
            ("[nri]\nsocket = \"/b/nri.sock\"", run, "none"),
            (
                "[nri]\nsocket = \"/a/nri.sock\"\nunknown = 1",
                run,
                "plugin",
            ),
            ("[nri\n", run, "plugin"),
            (&socket, ensure, "command"),
            (
                "[containerd]\nsocket = \"/b/containerd.sock\"",
                ensure,
                "none",
            ),
            (&socket, ["check", "--config", "its.toml"], "none"),
        ] {
            file(text);
            let mut process = node.start(&arguments);
            let pid = process.id();
            let found = match search(&node.config).await {
                Search::Plugins(pids) if pids.contains(&pid) => "plugin",
                Search::Commands(pids) if pids.contains(&pid) => "command",
                _ => "none",
            };
            drop(process.stdin.take());
            process.wait().unwrap();
            assert_eq!(found, expected, "{text:?} {arguments:?}");
        }
    }

    /// It has other capabilities than this process.
    #[test]
    fn a_plugin_that_cannot_be_read_runs() {
        let config = Config::default();
        for (word, parent, expected) in [
            ("run", 1, Err(Unknown)),
            ("check", 1, Ok(None)),
            ("", 7, Err(Unknown)),
        ] {
            let process = Process {
                pid: 8,
                proc: PathBuf::from("/proc/8"),
                command: vec!["nri-unpack".to_owned(), word.to_owned()],
                parent: Some(parent),
                is_launched: Err(Unknown),
            };
            assert_eq!(process.serves(&config, Some(7)), expected, "{word}");
        }
    }

    /// Another node on this machine, such as one of kind, has its own socket at the same path.
    #[test]
    fn a_socket_is_that_of_the_root_of_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("nri.sock");
        let of_pod = Path::new("/run/nri.sock");
        let process = Process {
            pid: 8,
            proc: directory.path().join("8"),
            command: vec![],
            parent: None,
            is_launched: Ok(false),
        };
        assert!(process.is_same_socket(&own, &own), "neither exists");
        fs::write(&own, "").unwrap();
        fs::create_dir_all(process.proc.join("root/run")).unwrap();
        assert!(!process.is_same_socket(&own, &own), "another root");
        fs::write(process.proc.join("root/run/nri.sock"), "").unwrap();
        assert!(!process.is_same_socket(of_pod, &own), "another file");
        fs::remove_file(process.proc.join("root/run/nri.sock")).unwrap();
        fs::hard_link(&own, process.proc.join("root/run/nri.sock")).unwrap();
        assert!(process.is_same_socket(of_pod, &own), "a mount");
    }

    #[test]
    fn the_program_is_known_by_its_name() {
        for (path, ours) in [
            ("/usr/local/bin/nri-unpack", true),
            ("/usr/local/bin/nri-unpack (deleted)", true),
            ("/usr/local/bin/nri-unpack.old", true),
            ("/usr/local/bin/nri-unpack.old (deleted)", true),
            ("/opt/x/nri-unpack-0.2.0", true),
            ("/opt/nri/plugins/10-nri-unpack", true),
            ("/usr/bin/nri-unpacker", false),
            ("/usr/bin/containerd", false),
            ("/usr/bin/not-nri-unpack", false),
        ] {
            assert_eq!(is_ours(Path::new(path)), ours, "{path}");
        }
    }

    #[test]
    fn the_control_group_tells_what_started_a_plugin() {
        for (cgroups, by) in [
            ("0::/system.slice/nri-unpack.service\n", By::Unit),
            (
                "2:cpu:/\n1:name=systemd:/system.slice/nri-unpack.service\n",
                By::Unit,
            ),
            ("0::/../../../system.slice/nri-unpack.service\n", By::Unit),
            ("0::/kubepods/besteffort/pod1/2\n", By::Pod),
            ("0::/../../pod1/2\n", By::Pod),
            (
                "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope\n",
                By::Pod,
            ),
            ("0::/user.slice/user-0.slice/session-1.scope\n", By::Another),
            ("0::/system.slice/podman.service\n", By::Another),
            ("", By::Another),
        ] {
            assert_eq!(of_cgroups(cgroups), by, "{cgroups}");
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
}
