//! The main purpose of the plugin on real containerd and real snapshotters, in two acts: `make demo`.
//!
//! Each act shows a pod without the plugin, and the same pod with it: on `erofs`, a local snapshotter, and on
//! `nydus` in proxy mode, where the guest of a confidential pod must pull the image itself. containerd and the
//! plugin use their default settings. Everything runs in a directory below `target/lab`, and is removed at the
//! end.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::nydus::GUEST_PULL;
use lab::{Cri, Image, Lab, Options, Plugin, Pod, Registry, Remote, Store, Version, images};

const APP: &str = "registry.test/demo/app:1";
const SECRET: &str = "registry.test/demo/secret:1";

/// The timeout of each wait, for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    tokio::select! {
        done = run_demo() => done,
        _ = lab::interrupted() => {
            // The demo has been dropped here, with all that it started.
            bail!("interrupted; everything that was started has been removed")
        }
    }
}

async fn run_demo() -> Result<()> {
    heading("Act 1: a local snapshotter");
    print_text(
        "containerd 2.1 with its default settings. The default snapshotter is overlayfs; the runtime handler\n\
         `erofs` uses the snapshotter erofs.",
    );
    let app = images::app(APP)?;
    let mut demo = Demo::start(&[], &app).await?;
    demo.show_local_snapshotter(&app).await?;
    drop(demo);

    heading(
        "Act 2: a guest that pulls the image itself (confidential containers, nydus in proxy mode)",
    );
    print_text(
        "Another containerd 2.1 with its default settings. The runtime handler `nydus` uses\n\
         nydus-snapshotter, which leaves an image to the pod's guest.",
    );
    let secret = images::app(SECRET)?;
    let mut demo = Demo::start(&[Remote::Nydus], &secret).await?;
    demo.show_guest_pull(&secret).await?;
    drop(demo);

    heading("Done; nothing is left running. What to try next");
    print_text(
        "make test                      the tests, on containerd 1.7 and 2.1\n\
         target/debug/lab run 2.1       a containerd like this one, for manual use\n\
         README.md, «Install»           the plugin on your node\n\
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
        print_text(&format!(
            "containerd has unpacked the image ({layers} layers) for overlayfs only."
        ));
        let store = lab.store().await?;
        let demo = Self { cri, store, lab };
        demo.command(&["handlers"])?;
        Ok(demo)
    }

    /// containerd unpacks the image without labels; the plugin adds them.
    async fn show_local_snapshotter(&mut self, app: &Image) -> Result<()> {
        heading("Act 1, without the plugin");
        print_text("A pod of the handler `erofs` gets a container of the image.");
        let pod = self.cri.run_pod("erofs", &[]).await?;
        self.create_container(&pod, APP).await?;
        self.cri.remove_pod(&pod).await?;
        self.command(&["check", APP, "--handler", "erofs"])?;
        print_text(
            "containerd has unpacked the image during the container's creation, which takes minutes\n\
             for a large image, and has set no labels on its snapshots.",
        );

        heading("Act 1, with the plugin");
        let plugin = self.start_plugin().await?;
        let pod = self.cri.run_pod("erofs", &[]).await?;
        let container = self.create_container(&pod, APP).await?;
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
        ensure!(file == "three\n", "the file does not contain its name");
        print_text("The plugin has labelled each layer before the container was created.");
        Ok(self.cri.remove_pod(&pod).await?)
    }

    /// containerd unpacks the image on the host; with the plugin the guest pulls it.
    async fn show_guest_pull(&mut self, image: &Image) -> Result<()> {
        heading("Act 2, without the plugin");
        print_text("A pod of the handler `nydus` gets a container of the image.");
        let pod = self.cri.run_pod("nydus", &[]).await?;
        let container = self.create_container(&pod, SECRET).await?;
        ensure!(
            !self.is_guest_pull(&container).await?,
            "containerd has left the image to the guest by itself"
        );
        self.cri.remove_pod(&pod).await?;
        self.command(&["check", SECRET, "--handler", "nydus"])?;
        print_text(
            "The container runs from layers that the host has unpacked: a guest that must not trust\n\
             its host runs files of the host, and no error reports it.",
        );

        heading("Act 2, with the plugin");
        let plugin = self.start_plugin().await?;
        let made = plugin.log().wait_for(SECRET, PATIENCE).await?;
        println!("{made}");
        let pod = self.cri.run_pod("nydus", &[]).await?;
        let container = self.create_container(&pod, SECRET).await?;
        ensure!(
            self.is_guest_pull(&container).await?,
            "the container is not left to its guest"
        );
        self.command(&["check", SECRET, "--handler", "nydus"])?;
        self.lab.give_to_guest(image)?;
        self.cri.start_container(&container).await?;
        print_text(
            "The plugin has replaced the chain that the host had unpacked, and the guest pulls the\n\
             image. (The demo has no guest: runc takes its place.)",
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

    /// Creates a container, and prints how long that took.
    async fn create_container(&mut self, pod: &Pod, image: &str) -> Result<String> {
        let begun = std::time::Instant::now();
        let container = self.cri.create_container(pod, image, &[], &[]).await?;
        let took = begun.elapsed().as_millis();
        println!("container {} was created in {took} ms", &container[..12]);
        Ok(container)
    }

    /// Prints the mount of the container's root file system; returns whether the guest pulls the image.
    async fn is_guest_pull(&self, container: &str) -> Result<bool> {
        let mounts = self.store.mounts("nydus", container).await?;
        let mount = mounts.first().context("a container without a mount")?;
        let volume = mount.kata_volume()?;
        let kind = &mount.kind;
        match &volume {
            None => {
                println!("its root is a mount of type {kind}, from directories of the host")
            }
            Some(volume) => println!(
                "its root is a mount of type {kind}, with a volume of type {} for the guest",
                volume.volume_type
            ),
        }
        Ok(volume.is_some_and(|volume| volume.volume_type == GUEST_PULL))
    }

    /// Returns a configuration with the lab's sockets; everything else has its default.
    fn config(&self) -> String {
        let Self { lab, .. } = self;
        format!(
            "[nri]\nsocket = {:?}\n[containerd]\nsocket = {:?}\nconfig = {:?}\n",
            lab.nri_socket(),
            lab.socket(),
            lab.config(),
        )
    }

    /// Shows a command and its output. `check` exits with 1 if an image is not ready.
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

fn heading(what: &str) {
    println!("\n== {what}");
}

fn print_text(what: &str) {
    println!("{what}");
}

/// The plugin's program: `make demo` builds it next to the examples.
fn program() -> Result<PathBuf> {
    let examples = std::env::current_exe()?;
    let built = examples.parent().and_then(|dir| dir.parent());
    let program = built
        .context("the demo is not in a build directory")?
        .join("nri-unpack");
    ensure!(
        program.exists(),
        "{} is missing: run `make demo`, which builds it",
        program.display()
    );
    Ok(program)
}
