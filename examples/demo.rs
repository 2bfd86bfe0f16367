//! The main job on real containerd, in about a minute: `make demo`.
//!
//! Starts containerd 2.1 and the plugin in a directory of their own, has an image unpacked for
//! overlayfs, runs a pod on a handler that uses `erofs`, and takes everything down again.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Plugin, Version, images};

const IMAGE: &str = "registry.test/demo/app:1";

/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    say("Starting containerd 2.1; its runtime handler `erofs` uses the snapshotter `erofs`");
    let lab = Lab::start(Version::V2_1).await?;
    let image = images::app(IMAGE)?;
    let mut cri = lab.cri().await?;

    say("Importing an image of five layers: containerd unpacks it for overlayfs, its default");
    lab.import(&image).await?;
    let demo = Demo { lab };
    demo.command(&["handlers"])?;
    demo.command(&["check", IMAGE, "--snapshotter", "overlayfs"])?;
    demo.command(&["check", IMAGE, "--handler", "erofs"])?;

    say("Starting the plugin");
    let plugin = Plugin::start(&demo.lab, program()?, &demo.config())?;
    plugin.log().wait_for("handler resolved", PATIENCE).await?;

    say("Running a pod on `erofs`, and creating a container of the image");
    let pod = cri.run_pod("erofs", &[]).await?;
    let container = cri.create_container(&pod, IMAGE, &[], &[]).await?;
    for line in plugin.log().lines_with(IMAGE) {
        println!("{line}");
    }
    demo.command(&["check", IMAGE, "--handler", "erofs"])?;

    say("The labels of the top layer's snapshot, as ctr prints them");
    print!(
        "{}",
        demo.lab
            .ctr(&["snapshots", "--snapshotter", "erofs", "info", image.top()])
            .await?
    );

    say("Starting the container, and printing a file from it");
    cri.start_container(&container).await?;
    let file = cri.cat(&container, "/data/three").await?;
    print!("$ cat /data/three\n{file}");
    ensure!(file == "three\n", "the file should hold its name");

    say("Taking everything down");
    cri.remove_pod(&pod).await?;
    Ok(())
}

fn say(what: &str) {
    println!("\n== {what}");
}

/// The plugin's program: cargo builds it next to the examples.
fn program() -> Result<PathBuf> {
    let examples = std::env::current_exe()?;
    let built = examples.parent().and_then(|dir| dir.parent());
    let program = built.context("where was this built?")?.join("nri-unpack");
    ensure!(
        program.exists(),
        "{} is missing: run `make demo`",
        program.display()
    );
    Ok(program)
}

struct Demo {
    lab: Lab,
}

impl Demo {
    fn config(&self) -> String {
        let Self { lab } = self;
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
