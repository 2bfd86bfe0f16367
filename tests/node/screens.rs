//! What `check`, `ensure` and `doctor` look like on a terminal, on a real node: docs/screens.md, which
//! `UPDATE_DOCS=1 cargo test --test node screens` makes anew.
//!
//! The terminal is one of tmux, in a mount namespace where this test's containerd is at the usual
//! places, so that what is shown has no path of the machine that it was taken on; and in a pid namespace,
//! so that no plugin of another test is seen.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, Options, Remote, Version, images};

use crate::support::{Node, PATIENCE, PROGRAM};

const PAGE: &str = "docs/screens.md";

/// More than any screen has lines.
const LINES: usize = 60;

/// An unpack may be over before it is seen.
const TRIES: usize = 10;

const PROMPT: &str = "# ";

/// Run in a mount namespace of its own; then the usual places are those of `$LAB`.
const AT_THE_USUAL_PLACES: &str = r##"set -e
mount --make-rprivate /
mkdir -p "$LAB/etc-upper/containerd" "$LAB/etc-work" "$LAB/bin"
sed "s|$NRI|/run/nri/nri.sock|" "$CONFIG" >"$LAB/etc-upper/containerd/config.toml"
mount -t overlay -o "lowerdir=/etc,upperdir=$LAB/etc-upper,workdir=$LAB/etc-work" overlay /etc
ln -s "$PROGRAM" "$LAB/bin/nri-unpack"
NRI_DIRECTORY=$(mktemp -d "$LAB/nri-XXXXXX")
touch "$NRI_DIRECTORY/nri.sock" "$NRI_DIRECTORY/containerd.sock"
mount --bind "$NRI" "$NRI_DIRECTORY/nri.sock"
mount --bind "$SOCKET" "$NRI_DIRECTORY/containerd.sock"
mount -t tmpfs tmpfs /run
mkdir -p /run/containerd /run/nri
touch /run/containerd/containerd.sock /run/nri/nri.sock
mount --bind "$NRI_DIRECTORY/containerd.sock" /run/containerd/containerd.sock
mount --bind "$NRI_DIRECTORY/nri.sock" /run/nri/nri.sock
export PATH="$LAB/bin:$PATH" PS1='# ' TERM=xterm-256color LC_ALL=C.UTF-8
tmux -S "$TMUX_SOCKET" -f /dev/null new-session -d -x "$COLUMNS_WANTED" -y "$LINES_WANTED" \
    'env -i PATH="$PATH" PS1="# " TERM=xterm-256color LC_ALL=C.UTF-8 HOME=/ sh'
exec sleep infinity
"##;

/// A terminal of so many columns, on this node.
struct Terminal {
    socket: PathBuf,
    /// The first process of the pid namespace lives as long as this does.
    unshare: Child,
}

impl Terminal {
    fn open(node: &Node, columns: usize) -> Result<Self> {
        let directory = node.lab.path(&format!("terminal-{columns}"));
        std::fs::create_dir_all(&directory)?;
        let socket = node.lab.socket_path(&format!("tmux-{columns}.sock"))?;
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .args(["sh", "-c", AT_THE_USUAL_PLACES])
            .env("LAB", &directory)
            .env("CONFIG", node.lab.config())
            .env("PROGRAM", PROGRAM)
            .env("NRI", node.lab.nri_socket())
            .env("SOCKET", node.lab.socket())
            .env("TMUX_SOCKET", &socket)
            .env("COLUMNS_WANTED", columns.to_string())
            .env("LINES_WANTED", LINES.to_string())
            .spawn()
            .context("running unshare")?;
        let began = Instant::now();
        while !socket.exists() {
            let ended = unshare.try_wait()?;
            ensure!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "no terminal: {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let terminal = Self { socket, unshare };
        terminal.wait(|screen| screen.trim_end() == PROMPT.trim_end())?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(&self.socket)
            .args(arguments)
            .output()
            .context("running tmux: `make deps` installs it")?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What is on the screen, as soon as it is what is waited for.
    fn wait(&self, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let began = Instant::now();
        loop {
            let screen = self.tmux(&["capture-pane", "-p"])?;
            if is_it(&screen) {
                return Ok(screen.trim_end().to_owned());
            }
            ensure!(began.elapsed() < PATIENCE, "the screen stays: {screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types a command on an empty screen.
    fn type_in(&self, command: &str) -> Result<()> {
        self.tmux(&["send-keys", "-R", "clear", "Enter"])?;
        self.wait(|screen| screen.trim_end() == PROMPT.trim_end())?;
        self.tmux(&["send-keys", command, "Enter"])?;
        Ok(())
    }

    /// The command and what it has printed, when it is done.
    fn run(&self, command: &str) -> Result<String> {
        self.type_in(command)?;
        let is_done = |screen: &str| {
            let typed = screen.starts_with(&format!("{PROMPT}{command}"));
            typed && screen.trim_end().ends_with("\n#")
        };
        let screen = self.wait(is_done)?;
        Ok(screen.trim_end_matches('#').trim_end().to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // With it goes everything in its namespace.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Images in several states: ready, missing, unlabelled, unavailable.
async fn furnished() -> Result<Node> {
    let mut options = Options::new(Version::V2_1);
    options.handlers.retain(|handler| handler.name == "erofs");
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(Version::V2_1, options).await?;
    let app = node.image.name().to_owned();
    node.cri.remove_image(&app).await?;
    let image = |name: &str, layers: usize| {
        let layer = |n: usize| Layer::new().file("f", 0o644, format!("{n} of {name}\n"));
        let image = Image::builder(format!("registry.example/{name}")).command(&["/none"]);
        (0..layers)
            .map(layer)
            .fold(image, lab::images::Builder::layer)
            .build()
    };
    let [cart, catalog, search] = [
        image("shop/cart:1.4", 3),
        image("shop/catalog:2.0", 5),
        image("search:9", 4),
    ];
    for image in [&cart, &catalog, &search] {
        node.lab.import(image).await?;
    }
    node.ensure_ready(&cart, "nydus")?;
    node.ensure_ready(&catalog, "nydus")?;
    node.ensure_ready(&cart, "erofs")?;
    // By containerd's own unpack for a container.
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri
        .create_container(&pod, catalog.name(), &[], &[])
        .await?;
    node.cri.remove_pod(&pod).await?;
    node.store.delete_content(&search.layers[1].digest).await?;
    Ok(node)
}

impl Node {
    /// What is on the terminal while an image is unpacked. Where that was done between two looks, again.
    async fn bar(&mut self, terminal: &Terminal, command: &str) -> Result<String> {
        for _ in 0..TRIES {
            terminal.type_in(command)?;
            let at_work = |screen: &str| screen.contains("MiB/s");
            let screen = terminal.wait(|screen| at_work(screen) || screen.contains(" ms)"))?;
            if at_work(&screen) {
                return Ok(screen);
            }
            self.cri.remove_image(self.image.name()).await?;
            self.store.collect_garbage().await?;
            self.store.put_image(&self.image).await?;
        }
        anyhow::bail!("{command}: no bar in {TRIES} tries")
    }
}

/// The same on any day: numbers as one digit each.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if masked.ends_with('0') => {}
            '0'..='9' => masked.push('0'),
            c => masked.push(c),
        }
    }
    masked
}

fn add(page: &mut String, title: &str, screen: &str) -> Result<()> {
    Ok(write!(page, "\n{title}\n\n```text\n{screen}\n```\n")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn are_as_documented() -> Result<()> {
    let mut node = furnished().await?;
    let mut page = "# Screens\n\nA test makes these screens on a node with containerd 2.1 on which two handlers use \
        snapshotters of their own, and holds this page against them.\n".to_owned();
    let terminals = [
        (80, Terminal::open(&node, 80)?),
        (200, Terminal::open(&node, 200)?),
    ];
    for (columns, terminal) in &terminals {
        for command in ["check", "doctor"] {
            let command = format!("nri-unpack {command}");
            let screen = terminal.run(&command)?;
            let fits = |line: &str| line.chars().count() <= *columns;
            ensure!(screen.lines().all(fits), "{screen}");
            add(
                &mut page,
                &format!("## `{command}`, {columns} columns"),
                &screen,
            )?;
        }
    }
    let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    if !update {
        let written = std::fs::read_to_string(&documented)?;
        ensure!(
            masked(&written).starts_with(&masked(&page)),
            "UPDATE_DOCS=1 makes it anew:\n{page}"
        );
    }

    // While it works, and when it is done.
    node.image = images::large("registry.example/analytics:7", 6, 64 << 20)?;
    node.store.put_image(&node.image).await?;
    for ((columns, terminal), handler) in terminals.iter().zip(["erofs", "runc"]) {
        let command = format!("nri-unpack ensure registry.example/analytics:7 --handler {handler}");
        let bar = node.bar(terminal, &command).await?;
        // A line that is too long would go on in a third.
        ensure!(bar.lines().count() == 2, "{bar}");
        let done = terminal.wait(|screen| screen.contains(" ms)"))?;
        let done = done.trim_end_matches('#').trim_end();
        add(
            &mut page,
            &format!("## `{command}`, {columns} columns: at work"),
            &bar,
        )?;
        add(&mut page, "Done:", done)?;
    }
    if update {
        std::fs::write(&documented, page)?;
    }
    Ok(())
}
