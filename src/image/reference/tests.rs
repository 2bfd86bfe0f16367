use proptest::prelude::*;

use super::*;
use crate::containerd::fake::Fake;

const ID: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn digest() -> String {
    format!("127.0.0.1:5000/lab/app@{ID}")
}

#[test]
fn short_names_are_spelled_out() {
    let both = digest().replace('@', ":1@");
    for (asked, last) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("a/b", "docker.io/a/b:latest"),
        ("index.docker.io/a/b:1", "docker.io/a/b:1"),
        ("localhost/a", "localhost/a:latest"),
        ("127.0.0.1:5000/lab/app:1", "127.0.0.1:5000/lab/app:1"),
        (ID, ID),
        (&ID[7..], ID),
        (&digest(), &digest()),
        (&both, &digest()),
        ("a b", "a b"),
    ] {
        let spellings = spellings(asked);
        assert_eq!(spellings[0], asked);
        assert_eq!(spellings.last().unwrap(), last);
    }
}

#[test]
fn an_id_and_a_made_up_name_cannot_be_pulled() {
    for (name, expected) in [
        ("docker.io/library/busybox:1", true),
        ("localhost/a:1", true),
        ("[fd00::1]:5000/lab/a:1", true),
        ("[fd00::1]/lab/a:1", true),
        ("[fd00::1]:5000/lab/a", false),
        ("[registry]:5000/lab/a:1", false),
        (&digest(), true),
        (&digest().replace('@', ":1@"), true),
        (ID, false),
        ("busybox:1", false),
        (&format!("import-2024-01-31@{ID}"), false),
        ("docker.io/library/busybox", false),
        ("a b", false),
        ("", false),
    ] {
        assert_eq!(is_pullable(name), expected, "{name}");
    }
}

#[test]
fn labels_carry_a_name_that_can_be_pulled() {
    let both = digest().replace('@', ":1@");
    let names = [
        ID.to_owned(),
        digest(),
        format!("import-2024-01-31@{ID}"),
        "127.0.0.1:5000/lab/b:1".to_owned(),
        "127.0.0.1:5000/lab/a:1".to_owned(),
    ];
    for (asked, expected) in [
        (Some("127.0.0.1:5000/lab/b:1"), "127.0.0.1:5000/lab/b:1"),
        (Some(digest().as_str()), digest().as_str()),
        (Some(both.as_str()), digest().as_str()),
        (Some(ID), "127.0.0.1:5000/lab/a:1"),
        (Some(&ID[7..]), "127.0.0.1:5000/lab/a:1"),
        (Some(&ID[7..20]), "127.0.0.1:5000/lab/a:1"),
        (Some("other:1"), "127.0.0.1:5000/lab/a:1"),
        (None, "127.0.0.1:5000/lab/a:1"),
    ] {
        let name = name_for_labels(asked, &names);
        assert_eq!(name.as_deref(), Some(expected), "{asked:?}");
    }
    assert_eq!(name_for_labels(None, &names[..3]).unwrap(), digest());
    assert_eq!(name_for_labels(Some(ID), &names[..1]), None);
}

#[test]
fn a_repository_is_the_part_before_tag_and_digest() {
    for (name, expected) in [
        ("r.example/app:1", Some("r.example/app")),
        (&digest(), Some("127.0.0.1:5000/lab/app")),
        ("[fd00::1]:5000/lab/a:1", Some("[fd00::1]:5000/lab/a")),
        ("busybox:1", None),
    ] {
        assert_eq!(repository(name).as_deref(), expected, "{name}");
    }
}

#[test]
fn a_host_is_the_part_before_the_port() {
    for (registry, expected) in [
        ("docker.io", "docker.io"),
        ("r.example:5000", "r.example"),
        ("127.0.0.1:5000", "127.0.0.1"),
        ("[fd00::1]:5000", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
    ] {
        assert_eq!(hostname(registry), expected, "{registry}");
    }
}

#[test]
fn an_image_has_the_names_of_all_records_of_its_target() {
    let fake = Fake::default();
    let image = fake.image("r.example/a:1", 1);
    let all = [
        fake.image("r.example/other:1", 2),
        fake.tag("r.example/a:2", image.target.clone()),
    ];
    // With the image's own record in the list and without it.
    for images in [&all[..], &[&all[..], std::slice::from_ref(&image)].concat()] {
        assert_eq!(names_of(&image, images), ["r.example/a:1", "r.example/a:2"]);
    }
}

proptest! {
    /// For any given name and any order of the store's records.
    #[test]
    fn the_name_is_the_best_of_the_images_names(
        mut names in proptest::collection::vec(
            prop_oneof![
                "sha256:[0-9a-f]{64}",
                "r\\.example/[ab]:[12]",
                "r\\.example/[ab]@sha256:[0-9a-f]{64}",
                "[a-z]{1,5}",
            ],
            0..6,
        ),
        asked in proptest::option::of(prop_oneof!["r\\.example/[ab]:[12]", "[a-f0-9]{7,64}", ".*"]),
    ) {
        let name = name_for_labels(asked.as_deref(), &names);
        names.reverse();
        prop_assert_eq!(&name, &name_for_labels(asked.as_deref(), &names));
        match &name {
            None => prop_assert!(!names.iter().any(|name| is_pullable(name))),
            Some(name) => {
                prop_assert!(names.contains(name) && is_pullable(name));
                if name.contains('@') && asked.as_ref() != Some(name) {
                    prop_assert!(!names.iter().any(|n| is_pullable(n) && !n.contains('@')));
                }
            }
        }
    }
}

#[tokio::test]
async fn images_are_found_by_short_names_and_ids() {
    let fake = Fake::default();
    let target = fake.image("docker.io/library/busybox:latest", 1).target;
    let id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    fake.tag(id, target);
    for asked in [
        "busybox",
        "docker.io/library/busybox:latest",
        id,
        &id[7..],
        &id[7..19],
    ] {
        assert!(find(&fake, asked).await.is_ok(), "{asked}");
    }
    for asked in ["busybox:2", "0123456", "UPPER", "", "a b"] {
        let found = find(&fake, asked).await;
        assert_eq!(found.is_ok(), asked == "0123456", "{asked}");
    }
    let twin = format!("{}{}", &id[..20], "0".repeat(51));
    fake.tag(&twin, fake.image("r.example/twin:1", 2).target);
    let message = find(&fake, &id[7..20]).await.unwrap_err().to_string();
    assert!(message.contains("more than one image id"), "{message}");
    let message = find(&fake, "nope:1").await.unwrap_err().to_string();
    assert!(message.contains("crictl pull nope:1"), "{message}");
}
