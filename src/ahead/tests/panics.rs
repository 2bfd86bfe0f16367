//! A panic in any call of the background work costs a try, and nothing else.

use std::collections::BTreeMap;

use super::*;

/// The calls of each name that panic, from the first one on.
const MOST: usize = 6;

/// Returns the calls of a session in which an image arrives, with their numbers. One of them panics.
async fn session(panics_in: Option<(&'static str, usize)>) -> BTreeMap<&'static str, usize> {
    let fake = Fake::default();
    let first = fake.image(NAME, 2);
    if let Some((call, after)) = panics_in {
        fake.panic(call, after);
    }
    let bench = Bench::on(fake, ALL).await;
    let second = bench.fake.image("r.example/second:1", 2);
    bench.emit_created(&second.name);
    // Longer than the pause of the last try.
    tokio::time::sleep(Duration::from_secs(5 * 60)).await;
    let context = format!("{panics_in:?}");
    assert!(bench.fake.has_panicked(), "{context}");
    let calls = bench.fake.count_calls();
    for image in [&first, &second] {
        let state = bench.state(image, "erofs").await;
        assert_eq!(state, State::Ready, "{context}: {}", image.name);
    }
    assert_eq!(
        bench.node.engine.leftovers().await.unwrap(),
        [""; 0],
        "{context}"
    );
    let third = bench.fake.image("r.example/third:1", 3);
    bench.emit_created(&third.name);
    settle().await;
    assert_eq!(
        bench.state(&third, "erofs").await,
        State::Ready,
        "{context}"
    );
    calls
}

#[tokio::test(start_paused = true)]
async fn the_work_goes_on_after_a_panic_in_any_call() {
    let calls = session(None).await;
    assert!(calls.len() > 12, "{calls:?}");
    for (call, count) in calls {
        for after in 0..count.min(MOST) {
            session(Some((call, after))).await;
        }
    }
}
