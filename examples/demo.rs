//! The main job on real containerd and real snapshotters, in two acts: `make demo`.
//!
//! Each act shows a pod without the plugin, and the same pod with it: on `erofs`, a local snapshotter, and on `nydus`
//! in proxy mode, where the guest of a confidential pod has to pull the image itself. containerd and the plugin have
//! their default settings. Everything runs in a directory below `target/lab` and is taken down at the end.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::nydus::GUEST_PULL;
use lab::{Cri, Image, Lab, Options, Plugin, Pod, Registry, Remote, Store, Version, images};

const APP: &str = "registry.test/demo/app:1";
const SECRET: &str = "registry.test/demo/secret:1";

/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    tokio::select! {
        told = tell() => told,
        _ = lab::interrupted() => {
            // The story is dropped by now, and with it all that it started.
            bail!("interrupted; everything that was started is taken down")
        }
    }
}

async fn tell() -> Result<()> {
    say("Act 1: a local snapshotter");
    explain(
        "containerd 2.1 with its default settings. The default snapshotter is overlayfs; the runtime handler\n\
         `erofs` uses the snapshotter erofs.",
    );
    let app = images::app(APP)?;
    let mut demo = Demo::start(&[], &app).await?;
    demo.local(&app).await?;
    drop(demo);

    say(
        "Act 2: a guest that pulls the image itself (confidential containers, nydus in proxy mode)",
    );
    explain(
        "Another containerd 2.1 with its default settings. The runtime handler `nydus` uses\n\
         nydus-snapshotter, which leaves an image to the pod's guest.",
    );
    let secret = images::app(SECRET)?;
    let mut demo = Demo::start(&[Remote::Nydus], &secret).await?;
    demo.guest_pull(&secret).await?;
    drop(demo);

    say("Done; nothing is left running. What to try next");
    explain(
        "make test                      the tests, on containerd 1.7 and 2.1\n\
         target/debug/lab run 2.1       a containerd like this one, to look around in\n\
         README.md, «Install»           the plugin on a node of yours\n\
         docs/recipes.md                Kata, nydus, soci, stargz, devmapper",
    );
    Ok(())
}

struct Demo {
    cri: Cri,
    store: Store,
    lab: Lab,
}

impl Demo {
    /// Starts a containerd, and has it pull the image as the kubelet does.
    async fn start(remotes: &[Remote], image: &Image) -> Result<Self> {
        let mut options = Options::new(Version::V2_1);
        options.remotes = remotes.to_vec();
        let registry = Registry::start().await?;
        registry.push(image).await?;
        let lab = Lab::start_with(Version::V2_1, options).await?;
        lab.use_registry(&registry)?;
        let mut cri = lab.cri().await?;
        let (name, layers) = (image.name(), image.layers.len());
        println!("\n$ crictl pull {name}");
        cri.pull_image(name).await?;
        explain(&format!(
            "containerd has unpacked the image ({layers} layers) for overlayfs only."
        ));
        let store = lab.store().await?;
        let demo = Self { cri, store, lab };
        demo.command(&["handlers"])?;
        Ok(demo)
    }

    /// containerd unpacks the image without labels; the plugin adds them.
    async fn local(&mut self, app: &Image) -> Result<()> {
        say("Act 1, without the plugin");
        explain("A pod of the handler `erofs` gets a container of the image.");
        let pod = self.cri.run_pod("erofs", &[]).await?;
        self.container(&pod, APP).await?;
        self.cri.remove_pod(&pod).await?;
        self.command(&["check", APP, "--handler", "erofs"])?;
        explain(
            "containerd has unpacked the image inside of the container's creation, which takes\n\
             minutes for a large one, and has put no labels on its snapshots.",
        );

        say("Act 1, with the plugin");
        let plugin = self.start_plugin().await?;
        let pod = self.cri.run_pod("erofs", &[]).await?;
        let container = self.container(&pod, APP).await?;
        for line in plugin.log().lines_with(APP) {
            println!("{line}");
        }
        self.command(&["check", APP, "--handler", "erofs"])?;
        let info = ["snapshots", "--snapshotter", "erofs", "info", app.top()];
        println!("\n$ ctr {}", info.join(" "));
        print!("{}", self.lab.ctr(&info).await?);
        self.cri.start_container(&container).await?;
        let file = self.cri.cat(&container, "/data/three").await?;
        print!(
            "\n$ crictl exec {} cat /data/three\n{file}",
            &container[..12]
        );
        ensure!(file == "three\n", "the file should hold its name");
        explain("The plugin has labelled each layer before the container was created.");
        Ok(self.cri.remove_pod(&pod).await?)
    }

    /// containerd unpacks the image on the host; with the plugin the guest pulls it.
    async fn guest_pull(&mut self, image: &Image) -> Result<()> {
        say("Act 2, without the plugin");
        explain("A pod of the handler `nydus` gets a container of the image.");
        let pod = self.cri.run_pod("nydus", &[]).await?;
        let container = self.container(&pod, SECRET).await?;
        ensure!(
            !self.guest_pulls(&container).await?,
            "containerd has left the image to the guest by itself"
        );
        self.cri.remove_pod(&pod).await?;
        self.command(&["check", SECRET, "--handler", "nydus"])?;
        explain(
            "The container runs from layers that the host has unpacked: a guest that must not trust\n\
             its host has been given the host's files, and no error tells of it.",
        );

        say("Act 2, with the plugin");
        let plugin = self.start_plugin().await?;
        let made = plugin.log().wait_for(SECRET, PATIENCE).await?;
        println!("{made}");
        let pod = self.cri.run_pod("nydus", &[]).await?;
        let container = self.container(&pod, SECRET).await?;
        ensure!(
            self.guest_pulls(&container).await?,
            "the container is not left to its guest"
        );
        self.command(&["check", SECRET, "--handler", "nydus"])?;
        self.lab.give_to_guest(image)?;
        self.cri.start_container(&container).await?;
        explain(
            "The plugin has replaced what the host had unpacked, and the guest pulls the image.\n\
             (Here runc stands in for the guest.)",
        );
        Ok(self.cri.remove_pod(&pod).await?)
    }

    async fn start_plugin(&self) -> Result<Plugin> {
        let config = self.lab.path("demo.toml");
        println!("\n$ nri-unpack run --config {}", config.display());
        let plugin = Plugin::start(&self.lab, program()?, &self.config())?;
        plugin.log().wait_for("handler resolved", PATIENCE).await?;
        Ok(plugin)
    }

    /// Creates a container, and says how long that took.
    async fn container(&mut self, pod: &Pod, image: &str) -> Result<String> {
        let begun = std::time::Instant::now();
        let container = self.cri.create_container(pod, image, &[], &[]).await?;
        let took = begun.elapsed().as_millis();
        println!("container {} was created in {took} ms", &container[..12]);
        Ok(container)
    }

    /// Shows what the container's root file system is mounted from.
    async fn guest_pulls(&self, container: &str) -> Result<bool> {
        let mounts = self.store.mounts("nydus", container).await?;
        let mount = mounts.first().context("a container without a mount")?;
        let volume = mount.kata_volume()?;
        let kind = &mount.kind;
        match &volume {
            None => {
                println!("its root is a mount of the type {kind}, from directories of the host")
            }
            Some(volume) => println!(
                "its root is a mount of the type {kind}, with a volume of the type {} for the guest",
                volume.volume_type
            ),
        }
        Ok(volume.is_some_and(|volume| volume.volume_type == GUEST_PULL))
    }

    /// Where the lab has its sockets; everything else is as it is by default.
    fn config(&self) -> String {
        let Self { lab, .. } = self;
        format!(
            "[nri]\nsocket = {:?}\n[containerd]\nsocket = {:?}\nconfig = {:?}\n",
            lab.nri_socket(),
            lab.socket(),
            lab.config(),
        )
    }

    /// Shows a command and what it prints. `check` exits with 1 where something is not ready.
    fn command(&self, arguments: &[&str]) -> Result<()> {
        let config = self.lab.path("demo.toml");
        std::fs::write(&config, self.config())?;
        println!("\n$ nri-unpack {}", arguments.join(" "));
        let status = Command::new(program()?)
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .status()?;
        ensure!(matches!(status.code(), Some(0 | 1)), "{status}");
        Ok(())
    }
}

fn say(what: &str) {
    println!("\n== {what}");
}

fn explain(what: &str) {
    println!("{what}");
}

/// The plugin's program: `make demo` builds it next to the examples.
fn program() -> Result<PathBuf> {
    let examples = std::env::current_exe()?;
    let built = examples.parent().and_then(|dir| dir.parent());
    let program = built.context("where was this built?")?.join("nri-unpack");
    ensure!(
        program.exists(),
        "{} is missing: run `make demo`, which builds it",
        program.display()
    );
    Ok(program)
}
