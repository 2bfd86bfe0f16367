//! The unit on a real systemd, with its sandbox, beside a real containerd: it is installed with one command,
//! used, monitored, and uninstalled.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Options, Systemd, Version};
use tokio::time::sleep;

use crate::capabilities::{check_privileges, of_status};
use crate::rebuild;
use crate::support::{Node, PATIENCE, PROGRAM};

/// The path of the program on a node.
const PLACE: &str = "/usr/local/bin/nri-unpack";

/// An operator's configuration. Everything else has its default, above all the sockets.
const CONFIG: &str = "[hooks]\nwait = \"8s\"\n[unpack]\nmin_free = \"0%\"\n\
    [snapshotters.default]\neager = \"all\"\n[metrics]\nlisten = \"unix:/run/nri-unpack/metrics.sock\"\n[log]\nlevel = \"debug\"\n";

/// A short watchdog timeout.
const WATCHDOG: &str = "[Service]\nWatchdogSec=3\n";

/// Returns the next command, from the output of a command.
fn next_command(printed: &str) -> Result<&str> {
    let next = printed.lines().find_map(|line| line.strip_prefix("next: "));
    next.with_context(|| format!("no next command: {printed}"))
}

struct Service(Systemd);

impl Service {
    async fn boot(node: &Node) -> Result<Self> {
        let systemd = Systemd::boot(&node.lab).await?;
        std::fs::copy(PROGRAM, systemd.path(PLACE))?;
        Ok(Self(systemd))
    }

    fn show(&self, property: &str) -> Result<String> {
        let shown = self.0.ok(
            "systemctl",
            &["show", "nri-unpack", "--value", "-p", property],
        )?;
        Ok(shown.trim().to_owned())
    }

    fn journal(&self) -> Result<String> {
        self.0.ok(
            "journalctl",
            &["--no-pager", "-o", "cat", "-t", "nri-unpack"],
        )
    }

    async fn wait_for(&self, words: &str, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let journal = self.journal()?;
            if journal.matches(words).count() >= count {
                return Ok(());
            }
            if Instant::now() > deadline {
                let all = self.0.ok("journalctl", &["--no-pager"])?;
                anyhow::bail!("no {count} lines with «{words}»: {all}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn wait_property(&self, property: &str, value: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.show(property)? != value {
            ensure!(
                Instant::now() < deadline,
                "{property} is {:?}, not {value:?}",
                self.show(property)?
            );
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Checks what the plugin's process may do, and who may read its directories.
    fn check_privileges(&self) -> Result<()> {
        let pid = self.show("MainPID")?;
        let status = self.0.ok("cat", &[&format!("/proc/{pid}/status")])?;
        check_privileges(&status)?;
        // 2: with a filter.
        ensure!(of_status(&status, "Seccomp")? == 2, "{status}");
        for (path, mode) in [
            ("/run/nri-unpack", 0o700),
            ("/run/nri-unpack/metrics.sock", 0o600),
            ("/var/log/nri-unpack", 0o700),
        ] {
            let metadata = std::fs::metadata(self.0.path(path))?;
            let found = metadata.permissions().mode() & 0o7777;
            ensure!(found == mode, "{path}: {found:o}");
        }
        Ok(())
    }

    /// Installs the service as an operator does, who runs the printed command.
    async fn install(&self) -> Result<()> {
        let config = "/usr/local/etc/nri-unpack.toml";
        std::fs::create_dir_all(self.0.path("/usr/local/etc"))?;
        std::fs::write(self.0.path(config), CONFIG)?;
        let install = ["install", "--launched-by", "systemd", "--config", config];
        let printed = self.0.ok(PLACE, &install)?;
        self.0.ok("sh", &["-c", next_command(&printed)?])?;
        self.wait_property("ActiveState", "active").await?;
        self.wait_for("handler resolved", 1).await
    }
}

/// Layers are rebuilt from directories that only root may read, with attributes that only an administrator
/// sees, so that the test needs each permission of the sandbox. containerd's root is below a directory that the
/// sandbox hides, as in a checkout there.
async fn the_plugin_works_in_the_sandbox(below: &str) -> Result<()> {
    let mut options = Options::new(Version::V2_1);
    options.root_below = Some(below.into());
    options.root_seen_by_services = true;
    let mut node = rebuild::discarded_with(Version::V2_1, "erofs", options).await?;
    let service = Service::boot(&node).await?;
    service.install().await?;
    let verified = service
        .0
        .run("systemd-analyze", &["verify", "nri-unpack.service"])?;
    ensure!(
        verified.status.success() && verified.stderr.is_empty(),
        "{verified:?}"
    );
    ensure!(
        service.0.path("/run/nri-unpack/metrics.sock").exists(),
        "no metrics"
    );

    service.check_privileges()?;
    node.wait_labelled("erofs").await?;
    let name = node.image.name().to_owned();
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    service.wait_for("image is ready pod=", 1).await?;
    for snapshot in node.store.chain("erofs", &node.image).await? {
        let rebuilt = snapshot.labels.contains_key("nri-unpack/rebuilt-from");
        ensure!(rebuilt, "{snapshot:#?}");
    }
    service.0.ok("systemctl", &["reload", "nri-unpack"])?;
    service
        .wait_for("the configuration was read again", 1)
        .await?;
    let journal = service.journal()?;
    ensure!(!journal.contains("Operation not permitted"), "{journal}");

    let printed = service.0.ok(PLACE, &["uninstall"])?;
    ensure!(
        printed.contains("left /etc/nri-unpack/config.toml"),
        "{printed}"
    );
    service.0.ok("sh", &["-c", next_command(&printed)?])?;
    service.wait_property("LoadState", "not-found").await?;
    for path in [
        "nri-unpack.service",
        "multi-user.target.wants/nri-unpack.service",
    ] {
        let path = service.0.path("/etc/systemd/system").join(path);
        ensure!(
            path.symlink_metadata().is_err(),
            "{} is left",
            path.display()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_works_in_the_sandbox_below_tmp() -> Result<()> {
    the_plugin_works_in_the_sandbox("/tmp").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_works_in_the_sandbox_below_root() -> Result<()> {
    the_plugin_works_in_the_sandbox("/root").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_works_in_the_sandbox_below_home() -> Result<()> {
    the_plugin_works_in_the_sandbox("/home").await
}

/// Without the capability to read `trusted.*` attributes, an opaque directory would look like an ordinary one.
#[tokio::test(flavor = "multi_thread")]
async fn layers_are_not_rebuilt_without_the_capability() -> Result<()> {
    let node = rebuild::discarded(Version::V2_1, "erofs").await?;
    let config = node.lab.path("blind.toml");
    std::fs::write(&config, node.config(""))?;
    let output = std::process::Command::new("setpriv")
        .args([
            "--bounding-set",
            "-sys_admin",
            "--inh-caps",
            "-sys_admin",
            PROGRAM,
        ])
        .args([
            "ensure",
            node.image.name(),
            "--handler",
            "erofs",
            "--config",
        ])
        .arg(config)
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    let named = stderr.contains("CAP_SYS_ADMIN") || printed.contains("CAP_SYS_ADMIN");
    ensure!(output.status.code() == Some(1) && named, "{output:?}");
    node.assert_nothing_left("erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_ends_only_a_hanging_plugin() -> Result<()> {
    let node = Node::start_with(Version::V2_1, Options::new(Version::V2_1)).await?;
    let service = Service::boot(&node).await?;
    let directory = service.0.path("/etc/systemd/system/nri-unpack.service.d");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("watchdog.conf"), WATCHDOG)?;
    service.install().await?;
    ensure!(service.show("WatchdogUSec")? == "3s");

    node.lab.kill();
    sleep(Duration::from_secs(7)).await;
    ensure!(
        service.show("NRestarts")? == "0",
        "the watchdog ended the plugin though only containerd was down"
    );

    let pid = service.show("MainPID")?;
    service.0.ok("kill", &["-STOP", &pid])?;
    service.wait_property("NRestarts", "1").await?;
    service.wait_property("ActiveState", "active").await?;
    node.lab.restart().await?;
    service.wait_for("handler resolved", 2).await
}

/// The drop-in for `[kubernetes]` opens the unit for one address, and the unit without it for none but this node's.
#[tokio::test(flavor = "multi_thread")]
async fn the_drop_in_opens_the_unit_for_the_api_server_alone() -> Result<()> {
    let node = Node::start_with(Version::V2_1, Options::new(Version::V2_1)).await?;
    let service = Service::boot(&node).await?;
    service.install().await?;
    let allowed = || -> Result<_> {
        ensure!(service.show("IPAddressDeny")?.contains("0.0.0.0/0"));
        let allowed = service.show("IPAddressAllow")?;
        let mut allowed: Vec<_> = allowed.split(' ').map(str::to_owned).collect();
        allowed.sort();
        Ok(allowed)
    };
    let before = allowed()?;
    ensure!(before == ["127.0.0.0/8", "::1/128"], "{before:?}");
    let directory = service.0.path("/etc/systemd/system/nri-unpack.service.d");
    std::fs::create_dir_all(&directory)?;
    let example = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/systemd/kubernetes.conf"
    );
    std::fs::copy(example, directory.join("kubernetes.conf"))?;
    service.0.ok("systemctl", &["daemon-reload"])?;
    let after = allowed()?;
    ensure!(
        after == ["127.0.0.0/8", "192.0.2.10/32", "::1/128"],
        "{after:?}"
    );
    Ok(())
}

/// The exposure level that the documentation states.
#[test]
fn the_exposure_of_the_unit_is_as_documented() -> Result<()> {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/nri-unpack.service");
    let output = std::process::Command::new("systemd-analyze")
        .args([
            "security",
            "--offline=true",
            "--threshold=20",
            "--no-pager",
            unit,
        ])
        .output()
        .context("systemd-analyze is in Debian's package systemd: `make deps`")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && printed.contains("Overall exposure level"),
        "{printed}"
    );
    Ok(())
}
