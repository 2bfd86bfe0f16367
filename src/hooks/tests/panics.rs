//! A panic while a hook looks at a pod is the plugin's own fault. It is no reason to reject the pod, unless a container that
//! is not ready would be rejected, too.

use super::*;

/// So many of the first calls of a name panic, and so many of the last ones.
const FEW: usize = 2;

/// Starts a pod and a container whose image is unpacked without labels, and returns the hook's answer for the container, and
/// the calls so far. Afterwards another container starts.
async fn created(
    config: &str,
    handler: &str,
    panics_in: Option<(&'static str, usize)>,
) -> (HandlerResult, BTreeMap<&'static str, usize>) {
    let snapshotter = match handler {
        "guest" => "nydus",
        _ => "erofs",
    };
    let bench = Bench::new(config).await;
    // The work at the start has ended.
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench.commit_without_labels(snapshotter);
    bench.fake.calls();
    if let Some((call, after)) = panics_in {
        bench.fake.panic(call, after);
    }
    let context = format!("{config} {handler} {panics_in:?}");
    let sandbox = bench.hooks.run_pod_sandbox(pod(handler)).await;
    sandbox.expect(&context);
    let container = bench.create(handler, snapshotter, "c1").await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let calls = bench.fake.count_calls();
    assert!(bench.fake.has_panicked(), "{context}");
    let next = bench.create(handler, snapshotter, "c2").await;
    next.expect(&context);
    (container, calls)
}

#[tokio::test(start_paused = true)]
async fn a_panic_rejects_only_what_is_rejected_while_it_is_not_ready() {
    for (config, handler, may_reject) in [
        ("", "local", false),
        ("", "guest", true),
        ("[hooks]\non_unready = \"reject\"\n", "local", true),
        ("[hooks]\non_unready = \"allow\"\n", "local", false),
    ] {
        let (_, calls) = created(config, handler, None).await;
        for (call, count) in calls {
            for after in (0..count).filter(|n| *n < FEW || n + FEW >= count) {
                let (container, _) = created(config, handler, Some((call, after))).await;
                let context = format!("{config} {handler} {call} {after}");
                let Err(why) = container.map_err(|e| e.to_string()) else {
                    continue;
                };
                assert!(may_reject, "{context}: {why}");
                assert!(
                    why.ends_with("; the kubelet will try again"),
                    "{context}: {why}"
                );
            }
        }
    }
}
