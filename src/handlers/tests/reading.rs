//! Tests of containerd's files: versions, imports and problems.

use super::*;

/// A file's name and its text.
type File<'a> = (&'a str, &'a str);

const VERSION_2: &str = r#"
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example/pause:3.8"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
snapshotter = ""
options = { BinaryName = "crun" }
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
snapshotter = "nydus"
"#;

#[test]
fn all_versions_of_a_file_have_the_same_result() {
    for text in [
        VERSION_2.to_owned(),
        VERSION_3.to_owned(),
        VERSION_3.replace("version = 3", "version = 4"),
    ] {
        let files = Files::new(&[("config.toml", &text)]);
        let handlers = files.resolve();
        let expected = "crun=native*@config.toml kata=nydus@config.toml runc=native*@config.toml";
        assert_eq!(files.summary(&handlers), expected, "for {text}");
        assert_eq!(handlers.default_runtime().value, "crun");
        assert_eq!(handlers.default_name(), Some("native"));
        let pause = Found::new(
            "registry.example/pause:3.8",
            Origin::File(files.path("config.toml")),
        );
        assert_eq!(handlers.sandbox_image(), Some(&pause));
        assert_eq!(handlers.snapshotters(), BTreeSet::from(["native", "nydus"]));
        assert_eq!(problems(&handlers), [""; 0]);
    }
}

#[test]
fn imports_are_read_as_containerd_reads_them() {
    const KATA: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\n";
    let cases: [(&str, &[File], &str); 6] = [
        (
            "globs, sorted, and without a version of their own",
            &[
                (
                    "config.toml",
                    &format!("version = 3\nimports = ['conf.d/*.toml']\n{KATA}snapshotter = 'a'\n"),
                ),
                ("conf.d/2.toml", &format!("{KATA}snapshotter = 'c'\n")),
                ("conf.d/1.toml", &format!("{KATA}snapshotter = 'b'\n")),
                ("conf.d/3.conf", &format!("{KATA}snapshotter = 'd'\n")),
            ],
            "kata=c@conf.d/2.toml runc=overlayfs*@default",
        ),
        (
            "a later file changes only its own values",
            &[
                (
                    "config.toml",
                    &format!("version = 3\nimports = ['more.toml']\n{KATA}snapshotter = 'a'\n"),
                ),
                (
                    "more.toml",
                    &format!(
                        "{KATA}runtime_type = 'x'\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'b'\n"
                    ),
                ),
            ],
            "kata=a@config.toml runc=b*@more.toml",
        ),
        (
            "all imports of a file, then their imports",
            &[
                (
                    "config.toml",
                    "version = 3\nimports = ['1/a.toml', '2/a.toml']\n",
                ),
                ("1/a.toml", "imports = ['b.toml']\n"),
                ("1/b.toml", &format!("{KATA}snapshotter = 'deeper'\n")),
                ("2/a.toml", &format!("{KATA}snapshotter = 'shallower'\n")),
            ],
            "kata=deeper@1/b.toml runc=overlayfs*@default",
        ),
        (
            "a circle of imports, under other names",
            &[
                (
                    "config.toml",
                    "version = 3\nimports = ['x/../x/./a.toml']\n",
                ),
                (
                    "x/a.toml",
                    &format!(
                        "imports = ['../config.toml', '../x/a.toml']\n{KATA}snapshotter = 'a'\n"
                    ),
                ),
            ],
            "kata=a@x/a.toml runc=overlayfs*@default",
        ),
        (
            "the old table has no effect in a later version",
            &[(
                "config.toml",
                &VERSION_2.replace("version = 2", "version = 3"),
            )],
            "runc=overlayfs*@default",
        ),
        (
            "a folder without matches",
            &[("config.toml", "version = 3\nimports = ['none/*.toml']\n")],
            "runc=overlayfs*@default",
        ),
    ];
    for (name, files, expected) in cases {
        let files = Files::new(files);
        let handlers = files.resolve();
        assert_eq!(files.summary(&handlers), expected, "{name}");
        assert_eq!(problems(&handlers), [""; 0], "{name}");
    }
}

#[test]
fn a_file_of_version_2_may_have_both_tables() {
    let files = Files::new(&[(
        "config.toml",
        &format!(
            "{VERSION_2}\n{}",
            VERSION_3
                .replace("version = 3", "")
                .replace("native", "new")
                .replace("nydus", "new")
        ),
    )]);
    let expected = "crun=native*@config.toml kata=new@config.toml runc=native*@config.toml";
    assert_eq!(files.summary(&files.resolve()), expected);
}

#[test]
fn files_that_cannot_be_read_are_problems() {
    let cases: [(&str, &[File], &str); 4] = [
        (
            "imports a file that is missing",
            &[("config.toml", "version = 3\nimports = ['gone.toml']\n")],
            "cannot read containerd's configuration {}/gone.toml: No such file or directory (os error 2)",
        ),
        (
            "is a folder",
            &[("config.toml/x", "")],
            "cannot read containerd's configuration {}/config.toml: Is a directory (os error 21)",
        ),
        (
            "is not TOML",
            &[("config.toml", "version = 3\n[plugins\n")],
            "cannot parse containerd's configuration {}/config.toml:2: unclosed table, expected `]`",
        ),
        (
            "has a malformed import",
            &[("config.toml", "version = 3\nimports = ['[*.toml']\n")],
            "containerd's configuration {}/config.toml imports \"[*.toml\", which is not a valid pattern: correct it",
        ),
    ];
    for (name, files, expected) in cases {
        let files = Files::new(files);
        let handlers = files.resolve();
        assert_eq!(files.summary(&handlers), "", "{name}");
        let expected = expected.replace("{}", &files.0.path().display().to_string());
        let mut problems = problems(&handlers);
        problems.retain(|problem| !is_of_default(problem));
        assert_eq!(problems.join("\n"), expected, "{name}");
    }
}

#[test]
fn the_other_files_are_used_when_one_is_broken() {
    let files = Files::new(&[
        (
            "config.toml",
            "version = 3\nimports = ['1.toml', '2.toml']\n",
        ),
        ("1.toml", "="),
        (
            "2.toml",
            "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n",
        ),
    ]);
    let handlers = files.resolve();
    assert_eq!(files.summary(&handlers), "runc=native*@2.toml");
    assert_eq!(handlers.problems().len(), 1);
}

#[test]
fn the_number_of_imports_is_limited() {
    let imports: Vec<String> = (0..256).map(|number| format!("'{number}.toml'")).collect();
    let mut many = vec![(
        "config.toml".to_owned(),
        format!("version = 3\nimports = [{}]\n", imports.join(", ")),
    )];
    many.extend((0..256).map(|number| (format!("{number}.toml"), String::new())));
    let many: Vec<_> = many
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let files = Files::new(&many);
    let expected = format!(
        "containerd's configuration imports more than 256 files; {} and later ones are ignored",
        files.path("255.toml").display()
    );
    assert_eq!(problems(&files.resolve())[0], expected);
}
