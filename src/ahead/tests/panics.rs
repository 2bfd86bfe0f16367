//! A panic in any call of the background work costs a try, and nothing else.

use std::collections::BTreeMap;

use super::*;

/// So many of the first calls of a name panic, and so many of the last ones.
const FEW: usize = 2;

/// When one call panics: a number of calls after the session begins, or after it has settled and an image arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Begin,
    Arrival,
}

/// Returns the calls since then, with their numbers.
async fn session(
    since: Since,
    panics_in: Option<(&'static str, usize)>,
) -> BTreeMap<&'static str, usize> {
    let fake = Fake::default();
    let first = fake.image(NAME, 2);
    let arm = |fake: &Fake| {
        if let Some((call, after)) = panics_in {
            fake.panic(call, after);
        }
    };
    if since == Since::Begin {
        arm(&fake);
    }
    let bench = Bench::on(fake, ALL).await;
    // The first event causes a reconcile, which would find what a panic has lost.
    bench.emit_created("r.example/none:1");
    settle().await;
    if since == Since::Arrival {
        bench.fake.calls();
        arm(&bench.fake);
    }
    let second = bench.fake.image("r.example/second:1", 2);
    bench.emit_created(&second.name);
    // Longer than the longest pause.
    tokio::time::sleep(Duration::from_secs(5 * 60)).await;
    let calls = bench.fake.count_calls();
    let context = format!("{since:?} {panics_in:?}");
    assert!(bench.fake.has_panicked(), "{context}");
    for image in [&first, &second] {
        let state = bench.state(image, "erofs").await;
        assert_eq!(state, State::Ready, "{context}: {}", image.name);
    }
    let left = bench.node.engine.leftovers().await.unwrap();
    assert_eq!(left, [""; 0], "{context}");
    let third = bench.fake.image("r.example/third:1", 3);
    bench.emit_created(&third.name);
    settle().await;
    let state = bench.state(&third, "erofs").await;
    assert_eq!(state, State::Ready, "{context}");
    calls
}

#[tokio::test(start_paused = true)]
async fn the_work_goes_on_after_a_panic_in_any_call() {
    for (since, least) in [(Since::Begin, 40), (Since::Arrival, 15)] {
        let calls = session(since, None).await;
        assert!(calls.values().sum::<usize>() > least, "{calls:?}");
        for (call, count) in calls {
            // Of many the first and the last ones.
            for after in (0..count).filter(|n| *n < FEW || n + FEW >= count) {
                session(since, Some((call, after))).await;
            }
        }
    }
}
