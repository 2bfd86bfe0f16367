//! Generates the reference docs/configuration.md from the commented file that the program contains. A
//! test compares the two; `UPDATE_DOCS=1 cargo test --lib reference` writes the page.

use std::fmt::Write as _;
use std::path::Path;

use super::Config;

const INTRO: &str = "# Configuration\n\n\
    The file is `/etc/nri-unpack/config.toml`, in TOML. A plugin that containerd launches uses `10-nri-unpack.conf`,\n\
    or else `nri-unpack.conf`, in NRI's directory `/etc/nri/conf.d`; if that file is missing or empty, it also uses\n\
    `/etc/nri-unpack/config.toml`. `nri-unpack config --default` prints the default file,\n\
    `nri-unpack config --check FILE` names the errors of a file. The glossary in [How it works](how-it-works.md)\n\
    explains the terms.\n\n\
    This page is generated from `conf/nri-unpack.toml`: do not edit it.\n";

/// Returns the page: the heading and comment of each table, then each key with its default and comment. A
/// key without a default is shown with an example.
fn reference(toml: &str) -> String {
    let mut text = INTRO.to_owned();
    let mut remark = Vec::new();
    // `INTRO` replaces the text before the first table.
    let tables = toml.find("\n\n[").map_or(toml, |at| &toml[at..]);
    for line in tables.lines() {
        if let Some(table) = line.strip_prefix('[') {
            writeln!(text, "\n## `[{table}`").unwrap();
            write_comment(&mut text, &mut remark);
        } else if let Some(words) = line.strip_prefix("# ") {
            remark.push(words);
        } else if let Some((key, value)) = line.split_once(" = ") {
            let (key, what) = match key.strip_prefix('#') {
                Some(key) => (key, "no default; for example"),
                None => (key, "default"),
            };
            writeln!(text, "\n**`{key}`** ({what} `{value}`)").unwrap();
            write_comment(&mut text, &mut remark);
        }
    }
    text
}

fn write_comment(text: &mut String, remark: &mut Vec<&str>) {
    for line in remark.drain(..) {
        writeln!(text, "{line}").unwrap();
    }
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let reference = reference(Config::default_toml());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &reference).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, reference, "write the page anew with UPDATE_DOCS=1");
}
