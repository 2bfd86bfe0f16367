//! Lines of a watch, and requests that are not answered.

mod silences;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::objects::RuntimeClass;
use super::*;

/// Returns a server whose page `n` names this next page.
fn paging(next: impl Fn(usize) -> String + Clone + Send + 'static) -> (Client, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        let next = next(counted.fetch_add(1, Ordering::Relaxed));
        let page = serde_json::json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": []});
        std::future::ready(hyper::Response::builder().body(page.to_string()))
    });
    (Client::new(service, "default"), requests)
}

/// A list that does not end would be read for ever, without a pause.
#[tokio::test]
async fn a_list_has_an_end() {
    let even = |n: usize| (n % 2).to_string();
    let long = |_| "x".repeat(LONGEST_QUERY);
    for ((client, requests), most) in [(paging(even), MOST_PAGES), (paging(long), 1)] {
        let resource = Resource {
            client,
            path: "/api/v1/pods",
            fields: None,
        };
        let listed = resource.list(|_: Vec<RuntimeClass>| ()).await;
        assert!(matches!(listed, Err(Error::Malformed(_))), "{listed:?}");
        assert_eq!(requests.load(Ordering::Relaxed), most);
    }
}

fn read_line(line: &str) -> Result<Option<(Change<String>, String)>, Error> {
    let name = |class: RuntimeClass| class.metadata.name;
    let read = change::<RuntimeClass>(line.as_bytes())?;
    Ok(read.map(|(change, version)| {
        let change = match change {
            Change::Applied(class) => Change::Applied(name(class)),
            Change::Deleted(class) => Change::Deleted(name(class)),
            Change::Bookmark => Change::Bookmark,
        };
        (change, version)
    }))
}

#[test]
fn lines_become_changes_or_errors() {
    let object = r#"{"metadata":{"name":"kata","resourceVersion":"7"},"handler":"k"}"#;
    let of = |kind: &str| format!(r#"{{"type":"{kind}","object":{object}}}"#);
    let kata = || "kata".to_owned();
    for (line, expected) in [
        (of("ADDED"), Some(Change::Applied(kata()))),
        (of("MODIFIED"), Some(Change::Applied(kata()))),
        (of("DELETED"), Some(Change::Deleted(kata()))),
        (of("BOOKMARK"), Some(Change::Bookmark)),
        (of("NEWS"), None),
        (String::new(), None),
    ] {
        let expected = expected.map(|change| (change, "7".to_owned()));
        assert_eq!(read_line(&line), Ok(expected), "{line}");
    }
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
    assert_eq!(read_line(gone), Err(Error::Expired("too old".to_owned())));
    for line in [
        "\u{1}",
        "{}",
        "[]",
        r#"{"type":"ADDED","object":3}"#,
        r#"{"type":"ADDED","object":{"metadata":{"name":"x"}}}"#,
    ] {
        assert!(
            matches!(read_line(line), Err(Error::Malformed(_))),
            "{line}"
        );
    }
}
