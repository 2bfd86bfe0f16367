//! Each path at the API server, and each function that sends a request, has a kind: a new one fails here until it has one,
//! and [`super::every_request`] and [`super::in_doctor`] fail if a kind is never sent.

use std::collections::BTreeSet;

use super::{DOCTOR, Kind, PLUGIN};

/// The program's part for Kubernetes.
const SOURCES: [&str; 4] = [
    include_str!("../../../../src/kubernetes/pods.rs"),
    include_str!("../../../../src/kubernetes/taint.rs"),
    include_str!("../../../../src/kubernetes/trial.rs"),
    include_str!("../../../../src/kubernetes/reflector.rs"),
];

/// The file whose functions send requests.
const API: &str = include_str!("../../../../src/kubernetes/api.rs");

/// The requests, as far as the program's text has them: the beginning of the path, the function, and the kind.
const TABLE: [(&str, &str, Kind); 9] = [
    ("/api/v1/pods", "list", Kind::Pods),
    ("/api/v1/pods", "any", Kind::Pods),
    ("/api/v1/pods", "watch", Kind::WatchOfPods),
    ("/apis/node.k8s.io/v1/runtimeclasses", "list", Kind::Classes),
    ("/apis/node.k8s.io/v1/runtimeclasses", "any", Kind::Classes),
    (
        "/apis/node.k8s.io/v1/runtimeclasses",
        "watch",
        Kind::WatchOfClasses,
    ),
    ("/api/v1/nodes/{}", "object", Kind::Node),
    ("/api/v1/nodes/{}", "patch", Kind::Patch),
    ("/api/v1/nodes/{}", "patch", Kind::TriedPatch),
];

/// It reads a watch that has begun.
const NO_REQUEST: &str = "next";

/// Returns the paths in the program's text.
fn paths() -> BTreeSet<&'static str> {
    let code = SOURCES.map(|source| source.split("#[cfg(test)]").next().unwrap_or_default());
    let texts = code
        .into_iter()
        .flat_map(|code| code.split('"').skip(1).step_by(2));
    texts.filter(|text| text.starts_with("/api")).collect()
}

/// Returns the names of the functions that send a request.
fn functions() -> BTreeSet<&'static str> {
    let functions = API.split("pub(super) async fn ").skip(1);
    let names = functions.filter_map(|rest| rest.split(['<', '(']).next());
    names.filter(|name| *name != NO_REQUEST).collect()
}

#[test]
fn each_request_has_a_kind() {
    let (paths, functions) = (paths(), functions());
    assert_eq!(paths, TABLE.map(|(path, ..)| path).into_iter().collect());
    assert_eq!(
        functions,
        TABLE.map(|(_, name, _)| name).into_iter().collect()
    );
    let kinds: BTreeSet<_> = TABLE.map(|(.., kind)| kind).into_iter().collect();
    assert_eq!(kinds, PLUGIN.into_iter().chain(DOCTOR).collect());
}
