//! Pods wait for their RuntimeClass, and go with what they want.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

/// Records what is wanted.
#[derive(Default)]
struct Wanted(Mutex<HashMap<String, (String, Vec<String>)>>);

impl Demand for Arc<Wanted> {
    fn pod_bound(&self, uid: &str, handler: &str, images: &[String]) {
        let wants = (handler.to_owned(), images.to_vec());
        self.0.lock().insert(uid.to_owned(), wants);
    }

    fn pod_gone(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    fn retain_pods(&self, is_there: &dyn Fn(&str) -> bool) {
        self.0.lock().retain(|uid, _| is_there(uid));
    }
}

struct Bench {
    wanted: Arc<Wanted>,
    known: Known,
}

impl Bench {
    fn new() -> Self {
        let wanted = Arc::new(Wanted::default());
        Self {
            known: Known::new("n", wanted.clone(), Box::new(|_| true)),
            wanted,
        }
    }

    fn pods(&self) -> Pods<'_> {
        Pods(&self.known)
    }

    fn classes(&self) -> Classes<'_> {
        Classes(&self.known)
    }

    /// Returns each pod that wants images, with its handler.
    fn wanted(&self) -> Vec<(String, String)> {
        let wanted = self.wanted.0.lock();
        let wanted = wanted.iter().map(|(uid, (handler, images))| {
            assert_eq!(images, &["r.example/app:1"]);
            (uid.clone(), handler.clone())
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort();
        wanted
    }
}

fn pod_on(node: &str, uid: &str, class: Option<&str>, phase: &str) -> Pod {
    let value = json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": uid},
        "spec": {
            "nodeName": node,
            "runtimeClassName": class,
            "containers": [{"name": "c", "image": "r.example/app:1"}],
        },
        "status": {"phase": phase},
    });
    serde_json::from_value(value).unwrap()
}

fn pod(uid: &str, class: Option<&str>) -> Pod {
    pod_on("n", uid, class, "Pending")
}

fn class(name: &str, handler: &str) -> RuntimeClass {
    let value: Value = json!({"metadata": {"name": name}, "handler": handler});
    serde_json::from_value(value).unwrap()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[test]
fn a_pod_waits_for_its_class_whose_handler_has_another_name() {
    let bench = Bench::new();
    bench.pods().applied(pod("1", Some("kata")));
    bench.pods().applied(pod("2", None));
    bench.pods().applied(pod("3", Some("other")));
    assert_eq!(bench.wanted(), owned(&[("2", "")]));
    bench.classes().applied(class("kata", "kata-qemu"));
    assert_eq!(bench.wanted(), owned(&[("1", "kata-qemu"), ("2", "")]));
    // It goes before its class is known.
    bench.pods().deleted(pod("3", Some("other")));
    bench.classes().applied(class("other", "x"));
    bench.pods().applied(pod("4", Some("kata")));
    assert_eq!(
        bench.wanted(),
        owned(&[("1", "kata-qemu"), ("2", ""), ("4", "kata-qemu")])
    );
    bench.classes().deleted(class("kata", "kata-qemu"));
    bench.pods().applied(pod("5", Some("kata")));
    assert_eq!(bench.wanted().len(), 3);
}

#[test]
fn a_pod_goes_with_its_wants() {
    let bench = Bench::new();
    for uid in ["1", "2", "3"] {
        bench.pods().applied(pod(uid, None));
    }
    bench.pods().applied(pod_on("n", "1", None, "Running"));
    bench.pods().deleted(pod("2", None));
    assert_eq!(bench.wanted(), owned(&[("3", "")]));
    bench
        .pods()
        .applied(pod_on("another", "3", None, "Pending"));
    assert_eq!(bench.wanted(), []);
}

#[test]
fn a_new_list_forgets_what_it_does_not_have() {
    let bench = Bench::new();
    bench.classes().applied(class("old", "x"));
    bench.classes().list_begins();
    bench.classes().listed(vec![class("kata", "k")]);
    bench.classes().list_ends();
    for uid in ["1", "2"] {
        bench.pods().applied(pod(uid, None));
    }
    bench.pods().applied(pod("3", Some("unknown")));
    bench.pods().list_begins();
    bench.pods().listed(vec![pod("2", None)]);
    bench.pods().listed(vec![pod("4", Some("kata"))]);
    bench.pods().list_ends();
    assert_eq!(bench.wanted(), owned(&[("2", ""), ("4", "k")]));
    // It was waiting, and is gone as well.
    bench.classes().applied(class("unknown", "x"));
    bench.pods().applied(pod("5", Some("old")));
    assert_eq!(bench.wanted().len(), 2);
}

#[test]
fn pods_that_wait_for_a_class_are_bounded() {
    let bench = Bench::new();
    for n in 0..2 * MAX_WAITING {
        bench.pods().applied(pod(&n.to_string(), Some("kata")));
    }
    assert_eq!(bench.known.inner.lock().waiting.len(), MAX_WAITING);
    for n in 0..2 * MAX_CLASSES {
        bench.classes().applied(class(&n.to_string(), "x"));
    }
    assert_eq!(bench.known.inner.lock().classes.len(), MAX_CLASSES);
}
