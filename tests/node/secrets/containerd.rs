//! Secrets in containerd's configuration, in our own, and in the annotations and variables of pods and images.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Options, Version, images};
use serde_json::{Value, json};

use super::{LEVELS, Level, check_output};
use crate::support::{Node, PATIENCE, RESOLVED, handler};

const CRI: &str = "password-in-containerds-configuration";
const DROP_IN: &str = "password-in-a-broken-drop-in";
const OWN: &str = "password-in-our-configuration";
const POD: &str = "secret-in-an-annotation-of-a-pod";
const OF_CONTAINER: &str = "secret-in-an-annotation-of-a-container";
const VARIABLE: &str = "secret-in-a-variable-of-an-image";
const IMAGE: &str = "secret-in-an-annotation-of-an-image";

const SECRETS: [&str; 7] = [CRI, DROP_IN, OWN, POD, OF_CONTAINER, VARIABLE, IMAGE];

/// An image with secrets in all of its documents; the config of a broken one is no config.
fn image(name: &str, is_broken: bool) -> Image {
    let layer = Layer::new().file("f", 0o644, format!("{name}\n"));
    let image = Image::builder(name)
        .command(&["/none"])
        .layer(layer)
        .build();
    image.edited(|media_type, text| {
        let mut document: Value = serde_json::from_str(&text).expect("written by us");
        if media_type == images::CONFIG {
            document["config"]["Env"] = json!([format!("PASSWORD={VARIABLE}")]);
            if is_broken {
                document["rootfs"] = json!(VARIABLE);
            }
        } else {
            document["annotations"] = json!({"example.com/password": IMAGE});
            document["layers"][0]["annotations"] = json!({"example.com/password": IMAGE});
        }
        document.to_string().into_bytes()
    })
}

fn options(version: Version) -> Options {
    let mut options = Options::new(version);
    let registry = match version {
        Version::V1_7 => r#"plugins."io.containerd.grpc.v1.cri".registry"#,
        Version::V2_1 => r#"plugins."io.containerd.cri.v1.images".registry"#,
    };
    options.extra_config = format!(
        "[{registry}.configs.\"registry.example\".auth]\nusername = \"u\"\npassword = \"{CRI}\"\n\
         [{registry}.headers]\nx-password = [\"{CRI}\"]\n"
    );
    options.request_timeout = std::time::Duration::from_secs(10);
    options
}

async fn configurations_and_annotations_are_not_shown(
    version: Version,
    level: Level,
) -> Result<()> {
    let mut node = Node::start_with(version, options(version)).await?;
    node.log_at(level)?;
    let handler = handler(version);
    let sound = image("registry.test/secrets/app:1", false);
    let broken = image("registry.test/secrets/broken:1", true);
    for image in [&sound, &broken] {
        node.store.put_image(image).await?;
    }
    node.image = sound.clone();

    let config = node.config("[snapshotters.default]\neager = \"all\"\n");
    let metrics = node.start_traced(&config)?;
    node.log.wait_for(RESOLVED, PATIENCE).await?;
    let annotations = [
        ("example.com/token", POD),
        ("nri-unpack/images", broken.name()),
    ];
    let pod = node.cri.run_pod(handler, &annotations).await?;
    let own = [("example.com/token", OF_CONTAINER)];
    node.cri
        .create_container(&pod, sound.name(), &own, &[])
        .await?;
    let refused = node
        .cri
        .create_container(&pod, broken.name(), &own, &[])
        .await;
    ensure!(refused.is_err());
    let path = node.lab.path("commands.toml");
    std::fs::write(&path, &config)?;
    node.check_commands("running", &path, &SECRETS)?;
    let ensured = node.command(&["ensure", broken.name(), "--snapshotter", handler, "-vv"])?;
    ensure!(!ensured.status.success());
    check_output("ensure of a broken image", &ensured, &SECRETS)?;
    node.check_plugin(&format!("{version:?}, {level:?}"), &metrics, &SECRETS)
        .await?;

    // A file that is not the running containerd's: the line of the password is malformed.
    let other = node.lab.path("broken.toml");
    let whole = std::fs::read_to_string(node.lab.config())?;
    let broken = format!("{whole}\n[a.auth]\npassword = \"{DROP_IN}\" {DROP_IN}\n");
    std::fs::write(&other, broken)?;
    let of_containerd = node.lab.config().display().to_string();
    let config = config.replacen(&of_containerd, &other.display().to_string(), 1);
    std::fs::write(&path, &config)?;
    node.check_commands("a broken file", &path, &SECRETS)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_and_annotations_are_not_shown_on_2_1() -> Result<()> {
    configurations_and_annotations_are_not_shown(Version::V2_1, LEVELS[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_and_annotations_are_not_shown_by_any_crate_on_2_1() -> Result<()> {
    configurations_and_annotations_are_not_shown(Version::V2_1, LEVELS[1]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_and_annotations_are_not_shown_on_1_7() -> Result<()> {
    configurations_and_annotations_are_not_shown(Version::V1_7, LEVELS[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_and_annotations_are_not_shown_by_any_crate_on_1_7() -> Result<()> {
    configurations_and_annotations_are_not_shown(Version::V1_7, LEVELS[1]).await
}

/// A file that was named by mistake, such as one with credentials, and a value in the place of a path.
#[test]
fn a_configuration_with_errors_is_not_shown() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("config.toml");
    for text in [
        format!("{{\"auths\": {{\"a.example\": {{\"auth\": \"{OWN}\"}}}}}}"),
        format!("[pull]\ncredentials = \"{OWN}\"\n"),
        format!("[pull]\ncredentials = \"{OWN}\" {OWN}\n"),
        format!("[kubernetes]\nkubeconfig = \"https://u:{OWN}@192.0.2.1\"\n"),
        format!("[kubernetes]\ntoken = \"{OWN}\"\n"),
        format!("token: {OWN}\n"),
        format!("{OWN}\n"),
        format!("[kubernetes]\nnode = [\"{OWN}\"]\n"),
    ] {
        std::fs::write(&path, &text)?;
        for arguments in [
            &["config", "--check"][..],
            &["run", "--config"],
            &["check", "--config"],
        ] {
            let mut command = std::process::Command::new(crate::support::PROGRAM);
            let output = command.args(arguments).arg(&path).output()?;
            ensure!(output.status.code() == Some(2), "{text}: {output:?}");
            check_output(&text, &output, &[OWN])?;
        }
    }
    Ok(())
}
