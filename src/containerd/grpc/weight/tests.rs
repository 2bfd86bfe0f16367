//! What containerd answers is not refused, also on a large node; what is small on the wire and large in memory is, before
//! it takes that memory.

use std::collections::HashMap;

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::peak;

const IMAGES_LIST: &str = "/containerd.services.images.v1.Images/List";
const PODS_LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const PLUGINS_LIST: &str = "/containerd.services.introspection.v1.Introspection/Plugins";

/// The limit of a message's bytes.
const MAX_MESSAGE: usize = super::super::MAX_MESSAGE;

/// The pages of the test program, and what it allocates besides: some ten MiB.
const PROGRAM_MIB: u64 = 32;

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// Weighs a message in pieces of this size.
fn weigh(path: &str, message: &[u8], piece: usize) -> Result<usize, Refused> {
    let mut scale = Scale::of(path);
    for piece in framed(message).chunks(piece) {
        scale.follow(piece)?;
    }
    assert!(scale.open.is_empty() && scale.at == scale.length);
    Ok(scale.weight)
}

fn labels(count: usize, prefix: &str) -> HashMap<String, String> {
    let label = |i| (format!("{prefix}.example.com/label-{i}"), "v".repeat(24));
    (0..count).map(label).collect()
}

fn image(n: usize, labels: HashMap<String, String>) -> api::Image {
    let target = kinds::Descriptor {
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        digest: format!("sha256:{n:064}"),
        size: 4096,
        ..Default::default()
    };
    api::Image {
        name: format!("registry.example/team/application-{n}:v1.2.3"),
        labels,
        target: Some(target),
        created_at: Some(Default::default()),
        updated_at: Some(Default::default()),
    }
}

#[test]
fn a_node_with_10000_images_of_20_labels_is_not_refused() {
    let images = (0..10_000).map(|n| image(n, labels(20, "l")));
    let list = api::ListImagesResponse {
        images: images.collect(),
    };
    let message = list.encode_to_vec();
    let weight = weigh(IMAGES_LIST, &message, 16 << 10).unwrap();
    println!("{} bytes, {weight} besides", message.len());
    assert!(message.len() < MAX_MESSAGE);
    assert!(weight > 10_000 * 20 * ENTRY);
}

/// A node has some 110 pods; the kubelet adds ten labels and annotations to each, and a user up to 256 KiB.
#[test]
fn a_node_with_1000_pods_and_3000_containers_is_not_refused() {
    let pod = |n: usize| cri::PodSandbox {
        id: format!("{n:064}"),
        metadata: Some(Default::default()),
        labels: labels(10, "l"),
        annotations: labels(40, "a"),
        ..Default::default()
    };
    let pods = cri::ListPodSandboxResponse {
        items: (0..1000).map(pod).collect(),
    };
    weigh(PODS_LIST, &pods.encode_to_vec(), 16 << 10).unwrap();
    let container = |n: usize| cri::Container {
        id: format!("{n:064}"),
        labels: labels(10, "l"),
        annotations: labels(10, "a"),
        image: Some(Default::default()),
        ..Default::default()
    };
    let containers = cri::ListContainersResponse {
        containers: (0..3000).map(container).collect(),
    };
    let path = "/runtime.v1.RuntimeService/ListContainers";
    weigh(path, &containers.encode_to_vec(), 16 << 10).unwrap();
}

/// Each message and each list of the answers is known by its number.
#[test]
fn every_message_and_every_list_weighs_something() {
    let some = |n: usize| vec!["x".to_owned(); n];
    let descriptor = kinds::Descriptor {
        annotations: labels(3, "d"),
        ..Default::default()
    };
    let mut an_image = image(1, labels(5, "l"));
    an_image.target = Some(descriptor);
    let info = snap::Info {
        labels: labels(4, "l"),
        ..Default::default()
    };
    let blob = api::Info {
        labels: labels(4, "l"),
        ..Default::default()
    };
    let lease = api::Lease {
        labels: labels(4, "l"),
        ..Default::default()
    };
    let plugin = api::Plugin {
        requires: some(2),
        platforms: vec![Default::default(); 3],
        exports: labels(4, "l"),
        capabilities: some(5),
        ..Default::default()
    };
    let mount = kinds::Mount {
        options: some(7),
        ..Default::default()
    };
    let pod = cri::PodSandbox {
        labels: labels(2, "l"),
        annotations: labels(3, "a"),
        ..Default::default()
    };
    let of_container = cri::ImageSpec {
        annotations: labels(4, "i"),
        ..Default::default()
    };
    let container = cri::Container {
        image: Some(of_container),
        labels: labels(2, "l"),
        annotations: labels(3, "a"),
        ..Default::default()
    };
    let status = cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![Default::default(); 2],
        }),
        info: labels(3, "i"),
        runtime_handlers: vec![Default::default(); 4],
        ..Default::default()
    };
    let file_systems = cri::ImageFsInfoResponse {
        image_filesystems: vec![Default::default(); 2],
        container_filesystems: vec![Default::default(); 3],
    };
    let images = api::ListImagesResponse {
        images: vec![an_image; 2],
    };
    let snapshots = snap::ListSnapshotsResponse {
        info: vec![info; 2],
    };
    let blobs = api::ListContentResponse {
        info: vec![blob; 2],
    };
    let leases = api::ListResponse {
        leases: vec![lease; 2],
    };
    let resources = api::ListResourcesResponse {
        resources: vec![Default::default(); 2],
    };
    let plugins = api::PluginsResponse {
        plugins: vec![plugin; 2],
    };
    let mounts = snap::MountsResponse {
        mounts: vec![mount; 2],
    };
    let pods = cri::ListPodSandboxResponse {
        items: vec![pod; 2],
    };
    let containers = cri::ListContainersResponse {
        containers: vec![container; 2],
    };
    for (call, message, expected) in [
        (
            "containerd.services.images.v1.Images/List",
            images.encode_to_vec(),
            2 * (IMAGE.size + DESCRIPTOR.size + 8 * ENTRY),
        ),
        (
            "containerd.services.snapshots.v1.Snapshots/List",
            snapshots.encode_to_vec(),
            2 * (SNAPSHOT.size + 4 * ENTRY),
        ),
        (
            "containerd.services.content.v1.Content/List",
            blobs.encode_to_vec(),
            2 * (BLOB.size + 4 * ENTRY),
        ),
        (
            "containerd.services.leases.v1.Leases/List",
            leases.encode_to_vec(),
            2 * (LEASE.size + 4 * ENTRY),
        ),
        (
            "containerd.services.leases.v1.Leases/ListResources",
            resources.encode_to_vec(),
            2 * RESOURCE.size,
        ),
        (
            "containerd.services.introspection.v1.Introspection/Plugins",
            plugins.encode_to_vec(),
            2 * (PLUGIN.size + 7 * ELEMENT + 3 * PLATFORM.size + 4 * ENTRY),
        ),
        (
            "containerd.services.snapshots.v1.Snapshots/Prepare",
            mounts.encode_to_vec(),
            2 * (MOUNT.size + 7 * ELEMENT),
        ),
        (
            "runtime.v1.RuntimeService/ListPodSandbox",
            pods.encode_to_vec(),
            2 * (POD.size + 5 * ENTRY),
        ),
        (
            "runtime.v1.RuntimeService/ListContainers",
            containers.encode_to_vec(),
            2 * (CONTAINER.size + CRI_IMAGE.size + 9 * ENTRY),
        ),
        (
            "runtime.v1.RuntimeService/Status",
            status.encode_to_vec(),
            2 * CONDITION.size + 3 * ENTRY + 4 * HANDLER.size,
        ),
        (
            "runtime.v1.ImageService/ImageFsInfo",
            file_systems.encode_to_vec(),
            5 * FILE_SYSTEM.size,
        ),
    ] {
        let weight = weigh(&format!("/{call}"), &message, 100).unwrap();
        assert_eq!(weight, expected, "{call}");
    }
}

/// Returns a message of one image, which has so many labels with different keys, in seven bytes each.
fn distinct_labels(count: u32) -> Vec<u8> {
    let mut labels = Vec::new();
    for n in 0..count {
        let key = [0, 7, 14].map(|shift| (n >> shift) as u8 & 0x7f);
        labels.extend([0x12, 5, 0x0a, 3]);
        labels.extend(key);
    }
    let mut message = vec![0x0a];
    prost::encoding::encode_varint(labels.len() as u64, &mut message);
    [message, labels].concat()
}

#[test]
fn what_is_small_on_the_wire_and_large_in_memory_is_refused() {
    let empty = [0x0a, 0].repeat(MAX_MESSAGE / 2);
    let list = "/containerd.services.snapshots.v1.Snapshots/List";
    for path in [IMAGES_LIST, PODS_LIST, PLUGINS_LIST, list] {
        assert_eq!(weigh(path, &empty, 16 << 10), Err(Refused::Heavy), "{path}");
    }
    let labels = distinct_labels(2 << 20);
    assert!(labels.len() < MAX_MESSAGE);
    assert_eq!(weigh(IMAGES_LIST, &labels, 16 << 10), Err(Refused::Heavy));
    // A descriptor of 3 bytes in an image of 5, whose labels do not end with either.
    let entries = [0x2a, 0].repeat(1 << 20);
    let mut overrun = vec![0x0a, 5, 0x1a];
    prost::encoding::encode_varint(entries.len() as u64, &mut overrun);
    overrun.extend(entries);
    assert_eq!(weigh(IMAGES_LIST, &overrun, 16 << 10), Err(Refused::Heavy));
    assert!(api::ListImagesResponse::decode(&overrun[..]).is_err());
    let unknown = "/containerd.services.new.v1.New/List";
    assert_eq!(
        weigh(unknown, &empty, 16 << 10),
        Err(Refused::Long(empty.len()))
    );
    // The length decides, before the message arrives.
    let prefix = &framed(&empty)[..PREFIX_LEN];
    let refused = Scale::of(unknown).follow(prefix);
    assert_eq!(refused, Err(Refused::Long(empty.len())));
}

/// What is cut short ends with its message, and the next one is weighed as ever.
#[test]
fn a_message_that_is_cut_short_hides_nothing_of_the_next_one() {
    let empty = [0x0a, 0].repeat(MAX_MESSAGE / 2);
    // A number of eight bytes, one of four, a varint, a length, an element, each without its end.
    for cut in [
        &[9, 0][..],
        &[13, 0],
        &[8, 0x80],
        &[10, 0x80],
        &[10, 5, 0x0a],
    ] {
        let mut both = framed(cut);
        both.extend(framed(&empty));
        for piece in [1 << 10, both.len()] {
            let mut scale = Scale::of(IMAGES_LIST);
            let followed = both.chunks(piece).try_for_each(|bytes| scale.follow(bytes));
            assert!(followed.is_err(), "{cut:?} in pieces of {piece}");
        }
        let mut twice = framed(cut);
        twice.extend(framed(&[0x0a, 0]));
        let followed = Scale::of(IMAGES_LIST).follow(&twice);
        assert!(
            matches!(followed, Ok(()) | Err(Refused::Malformed)),
            "{cut:?}"
        );
    }
}

/// The peak of the memory in which a list of so many of these elements is decoded and kept, in MiB.
fn peak_of(test: &str, path: &str, message: &[u8], decode: impl FnOnce(&[u8])) -> u64 {
    let peak = peak::of(module_path!(), test, || {
        weigh(path, message, 16 << 10).expect("within the limit");
        decode(message);
    });
    println!("{} bytes: {peak} MiB", message.len());
    peak
}

/// The heaviest answers that are accepted take little more than the limit besides their bytes.
#[test]
fn what_is_accepted_takes_little_more_than_the_limit() {
    let limit = (MAX_WEIGHT >> 20) as u64 + PROGRAM_MIB;
    let labels = distinct_labels((MAX_WEIGHT / ENTRY - 100) as u32);
    let test = "what_is_accepted_takes_little_more_than_the_limit";
    let peak = peak_of(test, IMAGES_LIST, &labels, |message| {
        let mut list = api::ListImagesResponse::decode(message).unwrap();
        let labels = std::mem::take(&mut list.images[0].labels);
        assert!(labels.into_iter().collect::<ours::Labels>().len() > 10_000);
    });
    assert!(peak < limit, "{peak} MiB");
}

#[test]
fn lists_of_empty_elements_take_less_than_the_limit() {
    let limit = (MAX_WEIGHT >> 20) as u64 + PROGRAM_MIB;
    let test = "lists_of_empty_elements_take_less_than_the_limit";
    // Each has an annotation.
    let pods = [0x0a, 2, 0x32, 0].repeat(MAX_WEIGHT / (POD.size + ENTRY) - 1);
    let peak = peak_of(test, PODS_LIST, &pods, |message| {
        let list = cri::ListPodSandboxResponse::decode(message).unwrap();
        let pods = list.items.into_iter().map(|pod| (pod.id.clone(), pod));
        assert!(pods.collect::<Vec<_>>().len() > 1000);
    });
    assert!(peak < limit, "{peak} MiB");
}

proptest! {
    /// What the decoder takes is not malformed here, and the size of the pieces does not matter.
    #[test]
    fn what_can_be_decoded_can_be_weighed(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        piece in 1_usize..64,
    ) {
        let whole = weigh(IMAGES_LIST, &bytes, usize::MAX);
        prop_assert_eq!(whole, weigh(IMAGES_LIST, &bytes, piece));
        let has_group = bytes.iter().any(|b| matches!(b & 7, 3 | 4));
        if api::ListImagesResponse::decode(&bytes[..]).is_ok() && !has_group {
            prop_assert!(whole.is_ok(), "{:?}", bytes);
        }
    }
}
