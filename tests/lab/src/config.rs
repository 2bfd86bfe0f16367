//! Renders containerd's configuration file in the formats of both versions, without I/O.
//!
//! Three settings need an explanation. `restrict_oom_score_adj` lets pods start without `CAP_SYS_RESOURCE`,
//! which virtual machines for tests may lack. NRI is off by default in 1.7. 2.1 needs `erofs` among the
//! differs; without it, the erofs snapshotter gets its layers file by file.

use std::path::Path;
use std::time::Duration;

use crate::options::{Handler, Options, Version};
use crate::scratch::Scratch;

/// The paths in a configuration besides those of the scratch.
pub(crate) struct Paths<'a> {
    pub(crate) scratch: &'a Scratch,
    pub(crate) root: &'a Path,
    pub(crate) state: &'a Path,
    pub(crate) socket: &'a Path,
    pub(crate) nri_socket: &'a Path,
    pub(crate) runc: &'a Path,
    /// The tables of the snapshotters that need one.
    pub(crate) snapshotters: String,
}

impl Paths<'_> {
    fn own(&self, name: &str) -> String {
        self.scratch.path(name).display().to_string()
    }
}

/// The name of the image of all sandboxes.
pub const PAUSE: &str = "registry.test/pause:1";

/// Returns the whole file.
pub(crate) fn render(version: Version, options: &Options, paths: &Paths<'_>) -> String {
    let format = match version {
        Version::V1_7 => 2,
        Version::V2_1 => 3,
    };
    let cri = match version {
        Version::V1_7 => cri_1_7(options, paths),
        Version::V2_1 => cri_2_1(options, paths),
    };
    let tables = [
        format!(
            r#"version = {format}
root = "{root}"
state = "{state}"
temp = "{temp}"
[grpc]
address = "{socket}"
[debug]
level = "info"
"#,
            root = paths.root.display(),
            state = paths.state.display(),
            temp = paths.own("tmp"),
            socket = paths.socket.display(),
        ),
        cri,
        nri(options, paths),
        paths.snapshotters.clone(),
        options.extra_config.clone(),
    ];
    tables.join("\n")
}

fn cri_1_7(options: &Options, paths: &Paths<'_>) -> String {
    let cri = r#"plugins."io.containerd.grpc.v1.cri""#;
    format!(
        r#"[{cri}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[{cri}.cni]
bin_dir = "{cni}"
conf_dir = "{cni}"
[{cri}.registry]
config_path = "{hosts}"
[{cri}.containerd]
default_runtime_name = "runc"
snapshotter = "overlayfs"
disable_snapshot_annotations = {unannotated}
discard_unpacked_layers = {discard}
{handlers}"#,
        cni = paths.own("cni"),
        hosts = paths.own("hosts"),
        unannotated = !options.snapshot_annotations,
        discard = options.discard_unpacked_layers,
        handlers = handlers(cri, options, paths),
    )
}

fn cri_2_1(options: &Options, paths: &Paths<'_>) -> String {
    let images = r#"plugins."io.containerd.cri.v1.images""#;
    let cri = r#"plugins."io.containerd.cri.v1.runtime""#;
    let mut text = format!(
        r#"[{images}]
snapshotter = "overlayfs"
disable_snapshot_annotations = {unannotated}
discard_unpacked_layers = {discard}
[{images}.pinned_images]
sandbox = "{PAUSE}"
[{images}.registry]
config_path = "{hosts}"
[{cri}]
restrict_oom_score_adj = true
[{cri}.cni]
bin_dirs = ["{cni}"]
conf_dir = "{cni}"
[{cri}.containerd]
default_runtime_name = "runc"
[plugins."io.containerd.service.v1.diff-service"]
default = ["erofs", "walking"]
{handlers}"#,
        unannotated = !options.snapshot_annotations,
        discard = options.discard_unpacked_layers,
        hosts = paths.own("hosts"),
        cni = paths.own("cni"),
        handlers = handlers(cri, options, paths),
    );
    if options.pull_by_handler {
        for Handler { name, snapshotter } in
            options.all_handlers().filter(|h| !h.snapshotter.is_empty())
        {
            text +=
                &format!("[{images}.runtime_platforms.{name}]\nsnapshotter = \"{snapshotter}\"\n");
        }
    }
    text
}

/// Returns the tables of all handlers. They use the same runc; only name and snapshotter differ.
fn handlers(cri: &str, options: &Options, paths: &Paths<'_>) -> String {
    std::iter::once(Handler::new("runc", ""))
        .chain(options.all_handlers())
        .map(|Handler { name, snapshotter }| {
            let snapshotter = if snapshotter.is_empty() {
                String::new()
            } else {
                format!("snapshotter = \"{snapshotter}\"\n")
            };
            format!(
                r#"[{cri}.containerd.runtimes.{name}]
runtime_type = "io.containerd.runc.v2"
{snapshotter}[{cri}.containerd.runtimes.{name}.options]
BinaryName = "{runc}"
Root = "{root}"
SystemdCgroup = false
"#,
                runc = paths.runc.display(),
                root = paths.own("runc"),
            )
        })
        .collect()
}

fn nri(options: &Options, paths: &Paths<'_>) -> String {
    format!(
        r#"[plugins."io.containerd.nri.v1.nri"]
disable = false
disable_connections = false
socket_path = "{socket}"
plugin_path = "{plugins}"
plugin_config_path = "{conf}"
plugin_request_timeout = "{request}"
plugin_registration_timeout = "{registration}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
"#,
        socket = paths.nri_socket.display(),
        plugins = paths.own("nri/plugins"),
        conf = paths.own("nri/conf.d"),
        request = milliseconds(options.request_timeout),
        registration = milliseconds(options.registration_timeout),
        opt = paths.own("opt"),
    )
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
