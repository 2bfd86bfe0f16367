//! Tests of the configuration as a contract: an empty file means the defaults, and each invalid value has its
//! error message.

use std::collections::BTreeSet;

use super::*;

fn parse(text: &str) -> Config {
    Config::from_toml(text, "c.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn error_of(text: &str) -> String {
    match Config::from_toml(text, "c.toml") {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn empty_means_default() {
    let tables = "[nri]\n[containerd]\n[hooks]\n[unpack]\n[pull]\n[handlers]\n[kubernetes]\n[snapshotters.default]\n[metrics]\n[log]\n";
    for text in ["", "# nothing\n", tables] {
        assert_eq!(parse(text), Config::default(), "for {text:?}");
    }
}

#[test]
fn invalid_values_have_their_error() {
    #[rustfmt::skip]
    let cases = [
        // Not TOML: there is no key to name, so the error quotes the line.
        ("[nri\n", "1:5: unclosed table, expected `]` in `[nri`"),
        ("[log]\nlevel = \n", "2:9: string values must be quoted, expected literal string in `level =`"),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "3:1: duplicate key in `level = …`"),
        ("# ä\nä = \"ä\" ä\n", "2:9: unexpected key or value, expected newline, `#` in `ä = …`"),
        // Unknown keys, and values in the place of tables.
        ("nonsense = 1\n", "1:1: nonsense: unknown field `nonsense`, expected one of `nri`, `containerd`, `hooks`, `unpack`, `pull`, `handlers`, `kubernetes`, `snapshotters`, `metrics`, `log`"),
        ("[nri]\nsock = \"/x\"\n", "2:1: nri.sock: unknown field `sock`, expected one of `socket`, `name`, `index`"),
        ("[snapshotters.nydus]\nlabel = \"cri\"\n", "2:1: snapshotters.nydus.label: unknown field `label`, expected one of `profile`, `labels`, `image_labels`, `eager`, `include`, `exclude`, `unlabelled`, `extra_labels`"),
        ("nri = 3\n", "1:7: nri: invalid type: integer `3`, expected a table"),
        ("[snapshotters]\nnydus = \"cri\"\n", "2:9: snapshotters.nydus: invalid type: string \"cri\", expected a table"),
        // [nri]
        ("[nri]\nsocket = 3\n", "2:10: nri.socket: invalid type: integer `3`, expected a string"),
        ("[nri]\nsocket = \"unix:///x\"\n", "2:10: nri.socket: the path is not absolute: start it with `/`"),
        ("[nri]\nname = \"\"\n", "2:8: nri.name: a plugin name must not be empty"),
        ("[nri]\nname = \"a b\"\n", "2:8: nri.name: plugin name \"a b\" contains ' ': only letters, digits, '_', '.', '+' and '-' are allowed"),
        ("[nri]\nindex = 10\n", "2:9: nri.index: invalid type: integer `10`, expected a string"),
        ("[nri]\nindex = \"1\"\n", "2:9: nri.index: plugin index \"1\" must be two digits, 00 to 99"),
        ("[nri]\nindex = \"1x\"\n", "2:9: nri.index: plugin index \"1x\" must be two digits, 00 to 99"),
        // [containerd]
        ("[containerd]\nnamespace = \"k8s..io\"\n", "2:13: containerd.namespace: \"k8s..io\" is not a containerd namespace: use letters and digits, with a single `.`, `_` or `-` between them, 76 at most"),
        ("[containerd]\nconfig = \"config.toml\"\n", "2:10: containerd.config: the path is not absolute: start it with `/`"),
        // [hooks]
        ("[hooks]\nwait = 500\n", "2:8: hooks.wait: invalid type: integer `500`, expected a string"),
        ("[hooks]\nwait = \"500\"\n", "2:8: hooks.wait: \"500\" is not a duration: time unit needed, for example 500sec or 500ms; write it like \"500ms\" or \"2s\""),
        ("[hooks]\nwait = \"18446744073709551615s 1000ms\"\n", "2:8: hooks.wait: \"18446744073709551615s 1000ms\" is not a duration: it has a number of more than 10 digits; write it like \"500ms\" or \"2s\""),
        ("[hooks]\nwait = \"0s\"\n", "2:8: hooks.wait: \"0s\" is out of range: write a duration from \"1ms\" to \"60s\""),
        ("[hooks]\nwait = \"61s\"\n", "2:8: hooks.wait: \"61s\" is out of range: write a duration from \"1ms\" to \"60s\""),
        ("[hooks]\non_unready = \"fail\"\n", "2:14: hooks.on_unready: unknown variant `fail`, expected one of `profile`, `allow`, `reject`"),
        ("[hooks]\nswap = \"yes\"\n", "2:8: hooks.swap: invalid type: string \"yes\", expected a boolean"),
        ("[hooks]\nskip_namespaces = \"*\"\n", "2:19: hooks.skip_namespaces: invalid type: string \"*\", expected a sequence"),
        ("[hooks]\nskip_namespaces = [\"kube-*\"]\n", "2:19: hooks.skip_namespaces[0]: \"kube-*\" is not a namespace of pods: use lower case letters and digits, with `-` between them, 63 at most, or \"*\" for all"),
        // [unpack]
        ("[unpack]\nparallel_images = 0\n", "2:19: unpack.parallel_images: 0 is out of range: write 1 to 64"),
        ("[unpack]\nparallel_layers = 65\n", "2:19: unpack.parallel_layers: 65 is out of range: write 1 to 64"),
        ("[unpack]\nparallel_layers = -1\n", "2:19: unpack.parallel_layers: -1 is out of range: write 1 to 64"),
        ("[unpack]\nmin_free = 15\n", "2:12: unpack.min_free: invalid type: integer `15`, expected a string"),
        ("[unpack]\nmin_free = \"15\"\n", "2:12: unpack.min_free: \"15\" is not a share: write \"0%\" to \"99%\", in whole percent"),
        ("[unpack]\nmin_free = \"+5%\"\n", "2:12: unpack.min_free: \"+5%\" is not a share: write \"0%\" to \"99%\", in whole percent"),
        ("[unpack]\nmin_free = \"100%\"\n", "2:12: unpack.min_free: \"100%\" is not a share: write \"0%\" to \"99%\", in whole percent"),
        ("[unpack]\nmissing_content = \"rebuild\"\n", "2:19: unpack.missing_content: invalid type: string \"rebuild\", expected a sequence"),
        ("[unpack]\nmissing_content = [\"guess\"]\n", "2:20: unpack.missing_content[0]: unknown variant `guess`, expected `rebuild` or `pull`"),
        // [pull]
        ("[pull]\nhosts = \"certs.d\"\n", "2:9: pull.hosts: the path is not absolute: start it with `/`"),
        ("[pull]\npassword = \"x\"\n", "2:1: pull.password: unknown field `password`, expected `hosts` or `credentials`"),
        // [handlers]
        ("[handlers]\nkata = \"\"\n", "2:8: handlers.kata: \"\" is not a name: use letters, digits and punctuation other than `/`"),
        ("[handlers]\n\"\" = \"nydus\"\n", "2:1: handlers.: \"\" is not a name: use letters, digits and punctuation other than `/`"),
        // [kubernetes]
        ("[kubernetes]\nwatch = \"yes\"\n", "2:9: kubernetes.watch: unknown variant `yes`, expected one of `auto`, `on`, `off`"),
        ("[kubernetes]\nkubeconfig = \"~/.kube/config\"\n", "2:14: kubernetes.kubeconfig: the path is not absolute: start it with `/`"),
        ("[kubernetes]\nnode = \"Node_1\"\n", "2:8: kubernetes.node: \"Node_1\" is not the name of a node: use lower case letters and digits, with `.` and `-` between them, 253 at most"),
        ("[kubernetes]\nnode = \"a,b\"\n", "2:8: kubernetes.node: \"a,b\" is not the name of a node: use lower case letters and digits, with `.` and `-` between them, 253 at most"),
        ("[kubernetes]\ntoken = \"x\"\n", "2:1: kubernetes.token: unknown field `token`, expected one of `watch`, `kubeconfig`, `node`, `startup_taint`"),
        ("[kubernetes]\nstartup_taint = \"a/b:NoSchedule\"\n", "2:17: kubernetes.startup_taint: \"a/b:NoSchedule\" is not the key of a taint: write it without value and effect, such as `nri-unpack/starting`"),
        // [snapshotters.*]
        ("[snapshotters.\"a/b\"]\n", "1:15: snapshotters.a/b: \"a/b\" is not a name: use letters, digits and punctuation other than `/`"),
        ("[snapshotters.x]\nlabels = \"all\"\n", "2:10: snapshotters.x.labels: unknown variant `all`, expected `cri` or `none`"),
        ("[unpack]\nreconcile_every = \"59s\"\n", "2:19: unpack.reconcile_every: \"59s\" is out of range: write a duration from \"1m\" to \"7d\""),
        ("[unpack]\nreconcile_every = \"often\"\n", "2:19: unpack.reconcile_every: \"often\" is not a duration: expected number at 0; write it like \"30m\" or \"6h\""),
        ("[snapshotters.x]\neager = \"some\"\n", "2:9: snapshotters.x.eager: unknown variant `some`, expected one of `auto`, `all`, `pinned`, `none`"),
        ("[snapshotters.x]\nunlabelled = \"\"\n", "2:14: snapshotters.x.unlabelled: unknown variant ``, expected one of `profile`, `relabel`, `replace`, `ignore`"),
        ("[snapshotters.x]\ninclude = \"*\"\n", "2:11: snapshotters.x.include: invalid type: string \"*\", expected a sequence"),
        ("[snapshotters.x]\ninclude = [\n  \"a/*\",\n  \"b/[\",\n]\n", "4:3: snapshotters.x.include[1]: \"b/[\" is not a pattern: unclosed character class; missing ']'"),
        ("[snapshotters.x]\nexclude = [\"\"]\n", "2:12: snapshotters.x.exclude[0]: an empty pattern matches no image: write \"*\" for all of them"),
        ("[snapshotters.x]\nimage_labels = \"none\"\n", "2:16: snapshotters.x.image_labels: invalid type: string \"none\", expected a map"),
        ("[snapshotters.x]\nimage_labels = { \"*/pause:*\" = \"some\" }\n", "2:32: snapshotters.x.image_labels.*/pause:*: unknown variant `some`, expected `cri` or `none`"),
        ("[snapshotters.x.image_labels]\n\"a/*\" = \"none\"\n\"b/[\" = \"none\"\n", "3:1: snapshotters.x.image_labels.b/[: \"b/[\" is not a pattern: unclosed character class; missing ']'"),
        ("[snapshotters.x.image_labels]\n\"\" = \"none\"\n", "2:1: snapshotters.x.image_labels.: an empty pattern matches no image: write \"*\" for all of them"),
        ("[snapshotters.x.extra_labels]\na = \"1\"\n\"\" = \"2\"\n", "3:1: snapshotters.x.extra_labels.: \"\" is not a key for an extra label: write one that is not empty, and that the plugin does not set itself"),
        ("[snapshotters.x.extra_labels]\n\"containerd.io/snapshot.ref\" = \"1\"\n", "2:1: snapshotters.x.extra_labels.containerd.io/snapshot.ref: \"containerd.io/snapshot.ref\" is not a key for an extra label: write one that is not empty, and that the plugin does not set itself"),
        ("[snapshotters.x.extra_labels]\na = \"{chain-id}\"\nb = \"{chain_id}\"\n", "3:5: snapshotters.x.extra_labels.b: {chain_id} is not a variable: use one of {image-ref}, {manifest-digest}, {layer-digest}, {diff-id}, {chain-id}, and write {{ for a brace"),
        ("[snapshotters.x]\nextra_labels = { a = \"{\" }\n", "2:22: snapshotters.x.extra_labels.a: \"{\" has an unmatched brace: write a literal brace twice"),
        ("[snapshotters.x]\nextra_labels = { k = \"\" }\n", "2:16: snapshotters.x.extra_labels: the label \"k\" is empty, and containerd does not store empty labels: give it a value, or leave it out"),
        ("[snapshotters.x]\nprofile = \"soci\"\n", "2:11: snapshotters.x.profile: unknown variant `soci`, expected one of `auto`, `nydus`, `complete`"),
        // [metrics], [log]
        ("[metrics]\nlisten = \"localhost:9464\"\n", "2:10: metrics.listen: \"localhost:9464\" is not an address: write \"127.0.0.1:9464\" or \"unix:/path\""),
        ("[metrics]\nlisten = \"unix:x\"\n", "2:10: metrics.listen: the path is not absolute: start it with `/`"),
        ("[log]\nfile = \"\"\n", "2:8: log.file: the path is not absolute: start it with `/`"),
        ("[log]\nlevel = \"verbose\"\n", "2:9: log.level: unknown variant `verbose`, expected one of `error`, `warn`, `info`, `debug`, `trace`"),
    ];
    for (text, expected) in cases {
        assert_eq!(error_of(text), format!("c.toml:{expected}"), "for {text:?}");
    }
}

#[test]
fn lengths_are_bounded() {
    let socket =
        |length: usize| format!("[containerd]\nsocket = \"/{}\"\n", "x".repeat(length - 1));
    parse(&socket(107));
    assert!(error_of(&socket(108)).ends_with("is too long for a socket: use at most 107 bytes"));

    let label = |length: usize| {
        format!(
            "[snapshotters.x]\nextra_labels = {{ k = \"{}\" }}\n",
            "x".repeat(length - 1)
        )
    };
    parse(&label(4096));
    assert_eq!(
        error_of(&label(4097)),
        "c.toml:2:16: snapshotters.x.extra_labels: the label \"k\" is too long for containerd: \
         use at most 4096 bytes, key included"
    );

    let namespace =
        |length: usize| format!("[containerd]\nnamespace = \"{}\"\n", "x".repeat(length));
    parse(&namespace(76));
    assert!(error_of(&namespace(77)).contains("is not a containerd namespace"));

    let taint = |prefix: usize, name: usize| {
        let (prefix, name) = ("x".repeat(prefix), "x".repeat(name));
        format!("[kubernetes]\nstartup_taint = \"{prefix}/{name}\"\n")
    };
    parse(&taint(253, 63));
    for (prefix, name) in [(254, 63), (253, 64), (0, 1), (1, 0)] {
        assert!(error_of(&taint(prefix, name)).contains("is not the key of a taint"));
    }
}

#[test]
fn valid_values_are_read() {
    let config = parse(
        r#"
        nri = { index = "00", name = "a.b+c_d-e" }
        hooks = { wait = "1m", on_unready = "reject", swap = false, skip_namespaces = ["kube-system", "*"] }
        unpack = { parallel_images = 64, min_free = "0%", during_pull = "off" }
        handlers = { kata-qemu = "nydus", runc = "overlayfs" }
        metrics = { listen = "[::1]:9464" }
        kubernetes = { watch = "on", kubeconfig = "/k", node = "ip-10-0-0-1.eu.example", startup_taint = "nri-unpack/starting" }
        log = { file = "/var/log/x", level = "trace" }
        "#,
    );
    assert_eq!(
        (
            config.nri.index.to_string().as_str(),
            config.nri.name.as_str()
        ),
        ("00", "a.b+c_d-e")
    );
    assert_eq!(config.hooks.wait.as_duration().as_secs(), 60);
    assert_eq!(
        (config.hooks.on_unready, config.hooks.swap),
        (OnUnready::Reject, false)
    );
    let skips = config.hooks.skip_namespaces.unwrap_or_default();
    assert_eq!(
        skips.iter().map(PodNamespace::as_str).collect::<Vec<_>>(),
        ["kube-system", "*"]
    );
    assert_eq!(
        (
            config.unpack.parallel_images.count().get(),
            config.unpack.min_free.as_u8(),
            config.unpack.during_pull
        ),
        (64, 0, DuringPull::Off)
    );
    assert_eq!(
        config.unpack.parallel_layers,
        Config::default().unpack.parallel_layers
    );
    assert_eq!(
        config.handlers.get("kata-qemu").map(Name::as_str),
        Some("nydus")
    );
    assert_eq!(
        config
            .metrics
            .listen
            .map(|listen| listen.to_string())
            .as_deref(),
        Some("[::1]:9464")
    );
    assert_eq!(
        config.log.file.as_ref().map(AsRef::as_ref),
        Some(Path::new("/var/log/x"))
    );
    assert_eq!(config.log.level, Level::Trace);
    assert_eq!(
        (
            config.kubernetes.watch,
            config.kubernetes.node.as_ref().map(NodeName::as_str),
            config.kubernetes.startup_taint()
        ),
        (
            Watch::On,
            Some("ip-10-0-0-1.eu.example"),
            Some("nri-unpack/starting")
        )
    );
    for none in ["", "[kubernetes]\nstartup_taint = \"\"\n"] {
        assert_eq!(parse(none).kubernetes.startup_taint(), None, "{none}");
    }
}

#[test]
fn tables_of_snapshotters_inherit() {
    let config = parse(
        r#"
        [snapshotters.nydus]
        labels = "none"
        exclude = []
        [snapshotters.default]
        eager = "none"
        exclude = ["*/pause:*"]
        extra_labels = { "example.com/team" = "storage" }
        "#,
    );
    let default = SnapshotterPolicy::default();
    let (nydus, other) = (config.snapshotter("nydus"), config.snapshotter("overlayfs"));

    assert_eq!(
        (nydus.labels, other.labels),
        (Labels::None, default.labels),
        "set only in its own table"
    );
    assert_eq!(
        (nydus.eager, other.eager),
        (Eager::None, Eager::None),
        "set only in the default table"
    );
    assert_eq!(
        (nydus.exclude.len(), other.exclude.len()),
        (0, 1),
        "set in both: its own table takes precedence"
    );
    assert_eq!(
        (nydus.unlabelled, &nydus.include),
        (default.unlabelled, &default.include),
        "set nowhere"
    );
    let labels = nydus.extra_labels.iter();
    let labels: Vec<_> = labels
        .map(|(key, value)| (key, value.fill(|_| None)))
        .collect();
    assert_eq!(labels, [("example.com/team", Some("storage".to_owned()))]);
    assert_eq!(config.snapshotters.named().collect::<Vec<_>>(), ["nydus"]);
}

#[test]
fn patterns_match_whole_references() {
    const PAUSE: &str = "registry.example/k8s/pause:3.10";
    let cases = [
        (r#"["*"]"#, "[]", true),
        ("[]", "[]", false),
        (r#"["registry.example/*"]"#, "[]", true),
        (r#"["registry.example"]"#, "[]", false),
        (r#"["pause:3.10"]"#, "[]", false),
        (r#"["*/pause:*"]"#, "[]", true),
        (r#"["*/PAUSE:*"]"#, "[]", false),
        (r#"["{other,registry}.example/**"]"#, "[]", true),
        (r#"["other/*", "*:3.1?"]"#, "[]", true),
        (r#"["*"]"#, r#"["*/pause:*"]"#, false),
        (r#"["*/pause:*"]"#, r#"["*"]"#, false),
        (r#"["*"]"#, r#"["*/busybox:*"]"#, true),
    ];
    for (include, exclude, expected) in cases {
        let config = parse(&format!(
            "[snapshotters.x]\ninclude = {include}\nexclude = {exclude}\n"
        ));
        assert_eq!(
            config.snapshotter("x").admits(&[PAUSE]),
            expected,
            "include {include}, exclude {exclude}"
        );
    }
}

#[test]
fn all_names_of_an_image_decide_together() {
    let config = parse("[snapshotters.x]\ninclude = [\"a.example/*\"]\nexclude = [\"*:old\"]\n");
    for (names, expected) in [
        (&["a.example/app:1"][..], true),
        (&["b.example/app:1"], false),
        (&["b.example/app:1", "a.example/app:1"], true),
        (&["a.example/app:1", "b.example/app:old"], false),
        (&["sha256:00"], false),
        (&[], false),
    ] {
        assert_eq!(config.snapshotter("x").admits(names), expected, "{names:?}");
    }
}

#[test]
fn only_the_default_file_may_be_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");

    let error = Config::load(Some(&path))
        .expect_err("a named file must exist")
        .to_string();
    let expected = format!(
        "cannot read the configuration {}: No such file or directory",
        path.display()
    );
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(
        Config::read_if_there(&path).expect("the default file may be missing"),
        Config::default()
    );
    Config::read_if_there(folder.path()).expect_err("a directory is not a file");

    std::fs::write(&path, "[hooks]\nwait = \"0s\"\n").expect("written");
    let error = Config::load(Some(&path))
        .expect_err("out of range")
        .to_string();
    assert!(
        error.starts_with(&format!("{}:2:8: hooks.wait: ", path.display())),
        "{error}"
    );

    std::fs::write(&path, Config::default_toml()).expect("written");
    assert_eq!(
        Config::load(Some(&path)).expect("the shipped file"),
        Config::default()
    );
}

#[test]
fn shipped_file_is_the_default() {
    assert_eq!(parse(Config::default_toml()), Config::default());
}

/// Returns the lines of the default file with every key uncommented. A `#` without a space after it comments
/// out a key; a `#` with a space starts a comment.
fn uncommented() -> impl Iterator<Item = &'static str> {
    Config::default_toml()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.is_empty() && !key.starts_with(' ') => key,
            _ => line,
        })
}

#[test]
fn shipped_file_has_valid_examples() {
    let config = parse(&uncommented().collect::<Vec<_>>().join("\n"));
    assert!(
        !config.handlers.is_empty() && config.metrics.listen.is_some() && config.log.file.is_some()
    );
}

/// The shipped examples must be valid.
#[test]
fn examples_are_configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        let config = Config::load(Some(&path)).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(
            config,
            Config::default(),
            "{} changes nothing",
            path.display()
        );
        names.push(path.file_name().expect("a name").to_owned());
    }
    names.sort();
    assert_eq!(names, ["kata-nydus.toml", "soci.toml"]);
}

/// A later version takes the configuration of an earlier one.
#[test]
fn configurations_of_releases_are_valid() {
    let releases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/releases");
    let mut count = 0;
    for entry in std::fs::read_dir(releases).expect("a folder") {
        let file = entry.expect("a release").path().join("config.toml");
        Config::load(Some(&file)).unwrap_or_else(|error| panic!("{error}"));
        count += 1;
    }
    assert!(count > 0);
}

/// Returns the keys of a table, read from the error that the schema gives for an unknown key.
fn schema(table: &str) -> Vec<String> {
    let message = error_of(&format!("{table}\nno-such-key = 0\n"));
    let (_, expected) = message
        .split_once("unknown field `no-such-key`, expected ")
        .expect("a list of keys");
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn shipped_file_shows_every_key() {
    let mut shown = BTreeSet::new();
    let mut table = "";
    for line in uncommented() {
        match line.split_once(" = ") {
            _ if line.starts_with('[') => table = line,
            Some((key, _)) if !line.starts_with('#') => {
                _ = shown.insert((table.to_owned(), key.to_owned()))
            }
            _ => {}
        }
    }
    let mut expected = BTreeSet::new();
    for name in schema("") {
        let table = match name.as_str() {
            // A free-form table, with an example for its keys.
            "handlers" => {
                expected.insert(("[handlers]".to_owned(), "kata".to_owned()));
                continue;
            }
            "snapshotters" => "[snapshotters.default]".to_owned(),
            name => format!("[{name}]"),
        };
        expected.extend(schema(&table).into_iter().map(|key| (table.clone(), key)));
    }
    assert_eq!(shown, expected);
}
