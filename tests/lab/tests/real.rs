//! The lab on the real thing: what all other tests take for granted, and the claims that the plugin is built on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{
    Cri, Flaw, Image, Kind, Lab, Launched, Options, Packages, Pod, Registry, Version, images,
};

/// An image that is present for overlayfs only, run on another handler, leaves snapshots without a label there: the
/// reason for the plugin. Everything else that a test does with a containerd happens here as well.
async fn a_fallback_unpack_leaves_no_labels(version: Version, handler: &str) {
    let lab = Lab::start(version).await.unwrap();
    let registry = Registry::start().await.unwrap();
    lab.use_registry(&registry).unwrap();
    let app = images::app("registry.test/lab/app:1").unwrap();
    registry.push(&app).await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();

    let id = cri.pull_image(app.name()).await.unwrap();
    assert_eq!(id, app.config.digest);
    let (first, _) = run_app(&mut cri, "", &app).await;
    assert_eq!(
        store.chain("overlayfs", &app).await.unwrap().len(),
        app.layers.len()
    );
    assert_eq!(store.chain(handler, &app).await.unwrap(), []);

    let (pod, container) = run_app(&mut cri, handler, &app).await;
    assert_eq!(cri.pod_status(&pod).await.unwrap().runtime_handler, handler);
    let chain = store.chain(handler, &app).await.unwrap();
    let keys: Vec<&String> = chain.iter().map(|snapshot| &snapshot.key).collect();
    assert_eq!(keys, app.chain_ids().iter().collect::<Vec<_>>());
    for (n, snapshot) in chain.iter().enumerate() {
        assert_eq!(snapshot.parent, if n == 0 { "" } else { keys[n - 1] });
        assert!(snapshot.labels.is_empty(), "{:?}", snapshot.labels);
    }
    let snapshots = store.snapshots(handler).await.unwrap();
    let own = snapshots.iter().find(|s| s.key == container).unwrap();
    assert_eq!((own.kind, own.parent.as_str()), (Kind::Active, app.top()));

    lab.kill();
    assert!(
        lab.cri().await.is_err(),
        "a killed containerd answers nobody"
    );
    lab.restart().await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    cri.remove_pod(&first).await.unwrap();

    let traces = Traces::of(&lab, &pod);
    drop(lab);
    traces.assert_gone();
}

/// Runs the app in a pod of its own and looks at its files.
async fn run_app(cri: &mut Cri, handler: &str, app: &Image) -> (Pod, String) {
    let pod = cri.run_pod(handler, &[]).await.unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    cri.start_container(&container).await.unwrap();
    assert_eq!(cri.cat(&container, "/data/two").await.unwrap(), "two\n");
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    cri.cat(&container, "/data/one")
        .await
        .expect_err("a layer above hides it");
    (pod, container)
}

#[tokio::test]
async fn a_fallback_unpack_leaves_no_labels_on_1_7() {
    a_fallback_unpack_leaves_no_labels(Version::V1_7, "native").await;
}

#[tokio::test]
async fn a_fallback_unpack_leaves_no_labels_on_2_1() {
    a_fallback_unpack_leaves_no_labels(Version::V2_1, "erofs").await;
}

/// containerd's own labelled pull for a handler: the labels that the plugin's have to equal.
#[tokio::test]
async fn a_pull_for_a_handler_labels_its_snapshots() {
    for version in Version::ALL {
        let options = Options {
            snapshot_annotations: true,
            pull_by_handler: true,
            ..Options::new(version)
        };
        let lab = Lab::start_with(version, options).await.unwrap();
        let registry = Registry::start().await.unwrap();
        lab.use_registry(&registry).unwrap();
        let app = images::app("registry.test/lab/app:1").unwrap();
        registry.push(&app).await.unwrap();
        lab.cri()
            .await
            .unwrap()
            .pull_image_for(app.name(), "native")
            .await
            .unwrap();

        let store = lab.store().await.unwrap();
        assert_eq!(
            store.chain("overlayfs", &app).await.unwrap(),
            [],
            "{version:?}"
        );
        let chain = store.chain("native", &app).await.unwrap();
        assert_eq!(chain.len(), app.layers.len(), "{version:?}");
        for (snapshot, layer) in chain.iter().zip(&app.layers) {
            let label =
                |name: &str| snapshot.labels[&format!("containerd.io/snapshot{name}")].as_str();
            assert_eq!(label(".ref"), layer.chain_id);
            assert_eq!(label("/cri.image-ref"), app.name());
            assert_eq!(label("/cri.manifest-digest"), app.manifest.digest);
            assert_eq!(label("/cri.layer-digest"), layer.digest);
        }
        let anchors = store.content_labels(&app.config.digest).await.unwrap();
        assert_eq!(
            anchors["containerd.io/gc.ref.snapshot.native"],
            app.top(),
            "{version:?}"
        );
    }
}

/// What the lab calls broken, containerd calls broken, and for the reason meant.
#[tokio::test]
async fn flawed_images_fail_where_they_are_flawed() {
    let cases = [
        (Flaw::WrongDiffId(3), "wrong diff id"),
        (
            Flaw::DiffIdMissing,
            "mismatched image rootfs and manifest layers",
        ),
        (
            Flaw::LayerMissing(2),
            "failed to get reader from content store",
        ),
    ];
    for version in Version::ALL {
        let lab = Lab::start(version).await.unwrap();
        let mut cri = lab.cri().await.unwrap();
        let store = lab.store().await.unwrap();
        let pod = cri.run_pod("", &[]).await.unwrap();
        for (n, (flaw, message)) in cases.into_iter().enumerate() {
            let layers = (0..4).map(|i| lab::Layer::new().file("n", 0o644, format!("{n} {i}")));
            let builder = Image::builder(format!("registry.test/lab/flawed:{n}")).command(&["/n"]);
            let image = layers
                .fold(builder, |image, layer| image.layer(layer))
                .flaw(flaw)
                .build();
            store.put_image(&image).await.unwrap();
            cri_knows(&mut cri, image.name()).await;
            let error = cri
                .create_container(&pod, image.name(), &[], &[])
                .await
                .unwrap_err();
            assert!(
                error.message().contains(message),
                "{version:?}, {flaw:?}: {}",
                error.message()
            );
        }
        let truncated = Image::builder("registry.test/lab/truncated:1")
            .flaw(Flaw::ManifestTruncated)
            .build();
        store.put_image(&truncated).await.unwrap();
        let images = store.images().await.unwrap();
        assert_eq!(
            images[truncated.name()],
            truncated.manifest.digest,
            "{version:?}"
        );
    }
}

async fn cri_knows(cri: &mut Cri, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while cri.image_status(name).await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "CRI does not know {name}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An index that lists a foreign platform first is pulled, imported, and put in alike.
#[tokio::test]
async fn an_index_leads_to_this_machines_manifest() {
    let lab = Lab::start(Version::V2_1).await.unwrap();
    let registry = Registry::start().await.unwrap();
    lab.use_registry(&registry).unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();
    for way in ["pull", "import", "put"] {
        let name = format!("registry.test/lab/indexed:{way}");
        let layer = lab::Layer::new().file("way", 0o644, way);
        let image = Image::builder(name.as_str())
            .layer(layer)
            .command(&["/way"])
            .indexed()
            .build();
        assert_ne!(image.target, image.manifest);
        match way {
            "pull" => {
                registry.push(&image).await.unwrap();
                cri.pull_image(&name).await.unwrap();
            }
            "import" => lab.import(&image).await.unwrap(),
            _ => {
                store.put_image(&image).await.unwrap();
                cri_knows(&mut cri, &name).await;
            }
        }
        assert_eq!(
            store.images().await.unwrap()[&name],
            image.target.digest,
            "{way}"
        );
        let known = cri.image_status(&name).await.unwrap().unwrap();
        assert_eq!(known.id, image.config.digest, "{way}");
    }
}

/// containerd launches what it finds in its plugin directory. One that ends without registering is only missed on 2.1;
/// 1.7 ends with it.
#[tokio::test]
async fn a_plugin_in_the_plugin_directory_is_launched() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("plugin");
    let script =
        "#!/bin/sh\necho $NRI_PLUGIN_IDX $NRI_PLUGIN_NAME >>$(dirname $(readlink $0))/said\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for version in Version::ALL {
        let launched = vec![Launched {
            program: program.clone(),
            name: "10-quick".into(),
            config: String::new(),
        }];
        let lab = Lab::start_with(
            version,
            Options {
                launched,
                ..Options::new(version)
            },
        )
        .await;
        match version {
            Version::V1_7 => {
                let error = lab.expect_err("1.7 does not start without it").to_string();
                assert!(
                    error.contains("failed to register plugin, connection closed"),
                    "{error}"
                );
            }
            Version::V2_1 => {
                let missed = lab
                    .unwrap()
                    .log()
                    .lines_with("failed to start pre-installed NRI plugin");
                assert_eq!(missed.len(), 1, "{missed:?}");
            }
        }
    }
    assert_eq!(
        fs::read_to_string(dir.path().join("said")).unwrap(),
        "10 quick\n".repeat(2)
    );
}

/// What an owner that is killed leaves behind is swept: here by `lab clean`, otherwise by the next start. The lab has
/// a directory of its own, or the other tests' starts would be first.
#[test]
fn what_a_killed_owner_leaves_is_swept() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    symlink(
        Packages::fetch().unwrap().root(),
        dir.path().join("packages"),
    )
    .unwrap();
    let mut owner = LabRun::start(dir.path());
    let (socket, log) = (owner.says("socket"), owner.says("log"));
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

/// The `lab` command with a directory of its own.
fn lab_in(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.env("NRI_UNPACK_LAB", dir);
    command
}

/// `lab run` as a process.
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

    fn says(&self, word: &str) -> PathBuf {
        let line = self.output.iter().find(|l| l.starts_with(word)).unwrap();
        PathBuf::from(line.split_whitespace().last().unwrap())
    }
}

/// Where a lab with a running pod shows on this machine, noted before it is taken down.
struct Traces {
    dir: PathBuf,
    socket: PathBuf,
    shim_socket: PathBuf,
    cgroup: String,
}

impl Traces {
    fn of(lab: &Lab, pod: &Pod) -> Self {
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

    fn assert_gone(&self) {
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

/// True if a running process has this among its arguments.
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
