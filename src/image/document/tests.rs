//! Valid, unusual and broken documents of every kind.

use proptest::prelude::*;

use super::*;

fn index(text: &str) -> Result<Option<Described>, Refusal> {
    Index::parse(text.as_bytes(), &Platform::new("linux", "amd64", ""))
}

const BLOB: &str = r#"{"mediaType":"m","digest":"sha256:00","size":1}"#;

#[test]
fn absent_and_null_fields_are_empty() {
    for text in [r#"{}"#, r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
        assert!(index(text).unwrap().is_none());
    }
    for layers in ["", r#","layers":null"#, r#","layers":[]"#] {
        let text = format!(r#"{{"config":{BLOB}{layers}}}"#);
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.into_parts().unwrap().1, []);
    }
    for text in [
        r#"{}"#,
        r#"{"rootfs":null}"#,
        r#"{"rootfs":{}}"#,
        r#"{"rootfs":{"type":"layers","diff_ids":null}}"#,
    ] {
        let config = Config::parse(text.as_bytes()).unwrap();
        // Empty fields give this node's operating system and no processor.
        assert_eq!(config.platform(), Platform::new("linux", "", ""));
        assert!(config.into_diff_ids().is_empty());
    }
}

#[test]
fn a_document_must_match_the_media_type_of_its_descriptor() {
    let media_type = "application/vnd.oci.image.index.v1+json";
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let malformed = |reason: &str| Refusal::Malformed(reason.to_owned());
    for (text, expected) in [
        (
            format!(r#"{{"config":{BLOB},"manifests":[]}}"#),
            malformed("it is an index"),
        ),
        (
            format!(r#"{{"mediaType":"{media_type}","config":{BLOB}}}"#),
            malformed("it is an index"),
        ),
        (r#"{"fsLayers":[]}"#.to_owned(), Refusal::Schema1),
    ] {
        let refused = Manifest::parse(text.as_bytes()).unwrap_err();
        assert_eq!(refused, expected, "{text}");
    }
    for text in [
        r#"{"layers":[]}"#.to_owned(),
        format!(r#"{{"config":{BLOB},"manifests":[]}}"#),
        format!(r#"{{"mediaType":"{manifest}","manifests":[]}}"#),
    ] {
        let refused = index(&text).unwrap_err();
        assert_eq!(refused, malformed("it is a manifest"), "{text}");
    }
}

#[test]
fn digests_are_checked_against_their_grammar() {
    for digest in ["sha256:0a", "sha512:ff", "sha256+b64u:LCa0a2j_xo="] {
        assert!(super::digest(digest.to_owned()).is_ok(), "{digest}");
    }
    for digest in ["", "0a", ":0a", "sha256:", "SHA256:0a", "a:b,c:d", "a:b c"] {
        let text = format!(r#"{{"rootfs":{{"diff_ids":["{digest}"]}}}}"#);
        let Refusal::Malformed(reason) = Config::parse(text.as_bytes()).unwrap_err() else {
            panic!("{digest}");
        };
        assert!(reason.contains("is not a digest"), "{reason}");
    }
}

/// containerd 2.1.9 imported and unpacked each of these.
#[test]
fn fields_that_are_not_used_may_be_broken() {
    let rootfs = r#""rootfs":{"diff_ids":["sha256:00"]}"#;
    let nested = format!(r#"{{"x":{}{},{rootfs}}}"#, "[".repeat(200), "]".repeat(200));
    for config in [
        format!(r#"{{"author":"\ud83d",{rootfs}}}"#).into_bytes(),
        [b"{\"author\":\"caf\xe9\",", rootfs.as_bytes(), b"}"].concat(),
        nested.into_bytes(),
        br#"{"RootFS":{"Diff_IDs":["sha256:00"]}}"#.to_vec(),
    ] {
        let config = Config::parse(&config).unwrap();
        assert_eq!(config.into_diff_ids(), ["sha256:00"]);
    }
    let entry = |digest: &str, os: &str| {
        format!(r#"{{"digest":"{digest}","platform":{{"os":"{os}","architecture":"amd64"}}}}"#)
    };
    let (other, ours) = (entry("x", "windows"), entry("sha256:00", "linux"));
    let chosen = index(&format!(r#"{{"manifests":[{other},{ours}]}}"#)).unwrap();
    assert_eq!(chosen.unwrap().descriptor().unwrap().digest, "sha256:00");
    let chosen = index(&format!(r#"{{"manifests":[{}]}}"#, entry("x", "linux"))).unwrap();
    assert!(chosen.unwrap().descriptor().is_err());

    let layer = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:01"}"#;
    let text = format!(r#"{{"Config":{BLOB},"Layers":[{{"digest":"x"}},{layer}]}}"#);
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    let (_, layers) = manifest.into_parts().unwrap();
    assert_eq!(layers.len(), 1);
    assert_eq!(layers[0].digest, "sha256:01");
}

#[test]
fn only_annotations_that_are_used_are_kept_and_layers_are_limited() {
    let annotations =
        r#"{"containerd.io/snapshot/a":"1","org.opencontainers.image.enc.b":"2","c":"3"}"#;
    let text = BLOB.replace('}', &format!(r#","annotations":{annotations}}}"#));
    let blob: Described = json::read(text.as_bytes()).unwrap();
    let mut keys: Vec<_> = blob.annotations.into_keys().collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        ["containerd.io/snapshot/a", "org.opencontainers.image.enc.b"]
    );
    let many = vec![r#""sha256:00""#; MAX_LAYERS + 1].join(",");
    for (count, is_read) in [(MAX_LAYERS, true), (MAX_LAYERS + 1, false)] {
        let diff_ids = &many[..count * (r#""sha256:00","#.len()) - 1];
        let text = format!(r#"{{"rootfs":{{"diff_ids":[{diff_ids}]}}}}"#);
        assert_eq!(Config::parse(text.as_bytes()).is_ok(), is_read, "{count}");
    }
}

proptest! {
    /// A registry may send anything.
    #[test]
    fn parsing_any_bytes_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let here = Platform::new("linux", "amd64", "");
        let _ = (Index::parse(&bytes, &here), Manifest::parse(&bytes), Config::parse(&bytes));
    }

    #[test]
    fn parsing_any_json_does_not_panic(
        key in "(config|layers|manifests|fsLayers|mediaType|rootfs|platform)",
        value in r#"(null|1|"x"|\[\]|\{\}|\[\{"digest":("a:b"|null|1)\}\]|\{"diff_ids":[1\[\]nul]{0,4}\})"#,
    ) {
        let bytes = format!(r#"{{"{key}":{value}}}"#).into_bytes();
        let here = Platform::new("linux", "amd64", "");
        let _ = (Index::parse(&bytes, &here), Manifest::parse(&bytes), Config::parse(&bytes));
    }
}
