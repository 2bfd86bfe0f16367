//! Nothing remains of a lab that is dropped, or whose owner is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lab::{Lab, Options, Packages, Pod, Remote, Version};

/// What a killed owner leaves is removed: here by `lab clean`, otherwise by the next start. The lab has a
/// directory of its own; otherwise the start of another test would remove it first.
#[test]
fn leftovers_of_a_killed_owner_are_removed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    symlink(
        Packages::fetch().unwrap().root(),
        dir.path().join("packages"),
    )
    .unwrap();
    let mut owner = LabRun::start(dir.path());
    let (socket, log) = (owner.printed_path("socket"), owner.printed_path("log"));
    owner.child.kill().unwrap();
    owner.child.wait().unwrap();
    assert!(socket.exists() && log.exists());
    assert!(
        processes_with(&log.with_file_name("config.toml")),
        "containerd runs on without its owner"
    );

    let cleaned = lab_in(dir.path()).arg("clean").status().unwrap();
    assert!(cleaned.success());
    assert!(!socket.exists() && !log.exists());
    assert!(!processes_with(&log.with_file_name("config.toml")));
}

/// On Ctrl-C, `kill` or a closed terminal the owner removes everything that it has started.
#[test]
fn a_terminated_owner_leaves_nothing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    symlink(
        Packages::fetch().unwrap().root(),
        dir.path().join("packages"),
    )
    .unwrap();
    for signal in ["INT", "TERM", "HUP"] {
        let mut owner = LabRun::start(dir.path());
        let (socket, log) = (owner.printed_path("socket"), owner.printed_path("log"));
        let pid = owner.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
        let ended = owner.child.wait().unwrap();
        assert!(ended.success(), "{signal}: {ended}");
        assert!(!socket.exists() && !log.exists(), "{signal}");
        assert!(
            !processes_with(&log.with_file_name("config.toml")),
            "{signal}"
        );
    }
}

/// A panicking test leaves nothing, with every daemon that a lab can have beside containerd.
#[tokio::test]
async fn a_panicking_test_leaves_nothing() {
    let options = Options {
        remotes: vec![Remote::Nydus, Remote::Soci],
        ..Options::new(Version::V2_1)
    };
    let lab = Lab::start_with(Version::V2_1, options).await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    cri.run_pod("soci", &[]).await.unwrap();
    let pod = cri.run_pod("nydus", &[]).await.unwrap();
    let daemons = [lab.path("nydus.toml"), lab.path("soci/config.toml")];
    assert!(daemons.iter().all(|config| processes_with(config)));
    let traces = Traces::of(&lab, &pod);

    let test = std::thread::spawn(move || {
        let _lab = lab;
        panic!("on purpose");
    });
    test.join().expect_err("it panics");
    traces.assert_gone();
    assert!(!daemons.iter().any(|config| processes_with(config)));
}

/// Returns the `lab` command with a directory of its own.
fn lab_in(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.env("NRI_UNPACK_LAB", dir);
    command
}

/// A running `lab run`.
struct LabRun {
    child: Child,
    output: Vec<String>,
}

impl LabRun {
    fn start(dir: &Path) -> Self {
        let mut child = lab_in(dir)
            .args(["run", "2.1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut output = Vec::new();
        for line in lines {
            output.push(line);
            if output.last().is_some_and(|l| l.starts_with("ctr")) {
                break;
            }
        }
        Self { child, output }
    }

    fn printed_path(&self, word: &str) -> PathBuf {
        let line = self.output.iter().find(|l| l.starts_with(word)).unwrap();
        PathBuf::from(line.split_whitespace().last().unwrap())
    }
}

/// The traces of a lab with a running pod on this machine, recorded before its removal.
pub(crate) struct Traces {
    dir: PathBuf,
    socket: PathBuf,
    shim_socket: PathBuf,
    cgroup: String,
}

impl Traces {
    pub(crate) fn of(lab: &Lab, pod: &Pod) -> Self {
        let bundle = lab
            .path("state/io.containerd.runtime.v2.task/k8s.io")
            .join(&pod.id);
        let address = fs::read_to_string(bundle.join("address"))
            .or_else(|_| fs::read_to_string(bundle.join("bootstrap.json")))
            .unwrap();
        let start = address.find("/run/containerd/s/").unwrap();
        let length = "/run/containerd/s/".len() + 64; // a sha256 in hexadecimal
        let traces = Self {
            dir: lab.path(""),
            socket: lab.socket().to_owned(),
            shim_socket: PathBuf::from(&address[start..start + length]),
            cgroup: pod.config.linux.as_ref().unwrap().cgroup_parent.clone(),
        };
        assert!(traces.dir.exists() && traces.socket.exists() && traces.shim_socket.exists());
        assert!(traces.is_mounted() && traces.has_cgroup());
        assert!(processes_with(&traces.socket));
        traces
    }

    pub(crate) fn assert_gone(&self) {
        assert!(!processes_with(&self.socket), "containerd or a shim");
        assert!(!self.is_mounted(), "a mount");
        assert!(!self.has_cgroup(), "a cgroup, and what is in it");
        for path in [&self.dir, &self.socket, &self.shim_socket] {
            assert!(!path.exists(), "{}", path.display());
        }
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(&self.dir.display().to_string())
    }

    fn has_cgroup(&self) -> bool {
        let mut hierarchies: Vec<PathBuf> = fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .collect();
        hierarchies.push(PathBuf::from("/sys/fs/cgroup"));
        hierarchies
            .iter()
            .any(|h| h.join(self.cgroup.trim_start_matches('/')).exists())
    }
}

/// Whether a running process has this path among its arguments.
fn processes_with(path: &Path) -> bool {
    let text = path.display().to_string();
    let has = |process: &Path| {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&text)
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .any(|entry| has(&entry.path()))
}
