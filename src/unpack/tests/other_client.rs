//! containerd unpacks the same image at the same time: no layer is unpacked twice, and nothing waits for ever.

use std::time::{Duration, SystemTime};

use crate::containerd::{Containerd, Labels, Resource};

use super::{Action, Bench, EROFS, NAME, Outcome, Want, request};

/// The lease of a creation of containerd.
const LEASE: &str = "1-abcd";

impl Bench {
    /// containerd begins to unpack the layer `n`.
    fn begin(&self, n: usize) {
        self.begin_at(n, SystemTime::now());
    }

    fn begin_at(&self, n: usize, time: SystemTime) {
        let parent = n.checked_sub(1).map(|below| self.chain_ids[below].as_str());
        let key = self.extraction(n);
        self.fake.extract(EROFS, &key, parent, time);
        self.hold(&key);
    }

    fn extraction(&self, n: usize) -> String {
        format!("extract-1-abcd {}", self.chain_ids[n])
    }

    /// containerd commits the layer `n`, and its lease stays.
    fn end(&self, n: usize) {
        let parent = n.checked_sub(1).map(|below| self.chain_ids[below].as_str());
        self.fake.forget(EROFS, &self.extraction(n));
        let chain_id = &self.chain_ids[n];
        self.fake.commit_unlabelled(EROFS, chain_id, parent);
        self.fake.set_created(EROFS, chain_id, SystemTime::now());
        self.hold(chain_id);
    }

    fn hold(&self, key: &str) {
        let held = [Resource::snapshot(EROFS, key)];
        self.fake.lease(LEASE, Labels::new(), &held);
    }

    async fn give_up(&self) {
        self.fake.delete_lease(LEASE, false).await.unwrap();
    }

    fn applies(&self) -> usize {
        let calls = self.fake.calls();
        calls
            .iter()
            .filter(|call| call.starts_with("apply"))
            .count()
    }

    fn start(&self) -> tokio::task::JoinHandle<Outcome> {
        let engine = self.engine.clone();
        let want = request(Want::Image(NAME.to_owned()));
        tokio::spawn(async move { engine.ensure(want).outcome().await })
    }
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn layers_that_containerd_unpacks_are_left_to_it() {
    let bench = Bench::new(3).await;
    bench.begin(0);
    let flight = bench.start();
    for n in 0..3 {
        tokio::time::sleep(SOON).await;
        assert!(!flight.is_finished());
        bench.end(n);
        if n < 2 {
            bench.begin(n + 1);
        }
    }
    flight.await.unwrap().unwrap();
    assert_eq!(bench.applies(), 0);
    bench.give_up().await;
    bench.assert_nothing_left();
}

/// In native, `Prepare` copies all layers below, and its snapshot is not listed before it has ended.
#[tokio::test(start_paused = true)]
async fn a_slow_prepare_of_containerd_is_waited_for() {
    let bench = Bench::new(3).await;
    bench.begin(0);
    bench.end(0);
    let flight = bench.start();
    tokio::time::sleep(SOON).await;
    assert!(!flight.is_finished());
    assert_eq!(bench.applies(), 0);
    bench.give_up().await;
    flight.await.unwrap().unwrap();
    assert_eq!(bench.applies(), 2);
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn what_containerd_gives_up_is_unpacked() {
    let bench = Bench::new(3).await;
    bench.begin(1);
    let flight = bench.start();
    tokio::time::sleep(SOON).await;
    assert!(!flight.is_finished());
    bench.fake.forget(EROFS, &bench.extraction(1));
    bench.give_up().await;
    assert_eq!(flight.await.unwrap().unwrap().action, Action::Unpacked);
    assert_eq!(bench.applies(), 3);
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn an_extraction_that_does_not_end_is_waited_for_once() {
    let bench = Bench::new(1).await;
    bench.begin(0);
    let flight = bench.start();
    tokio::time::sleep(SOON).await;
    assert_eq!(bench.applies(), 0);
    assert_eq!(flight.await.unwrap().unwrap().action, Action::Unpacked);
    assert_eq!(bench.applies(), 1);
    bench.fake.forget(EROFS, &bench.extraction(0));
    bench.give_up().await;
    bench.assert_nothing_left();
}

async fn assert_not_waited_for(bench: Bench) {
    let began = tokio::time::Instant::now();
    bench.ensure().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(bench.applies(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_containerd_left_is_not_waited_for() {
    let old = SystemTime::now() - Duration::from_secs(61);
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    for created_at in [old, tomorrow] {
        let bench = Bench::new(3).await;
        bench.begin_at(1, created_at);
        assert_not_waited_for(bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn other_images_are_not_waited_for() {
    let bench = Bench::new(3).await;
    let other = format!("extract-2-abcd sha256:{}", "0".repeat(64));
    bench.fake.extract(EROFS, &other, None, SystemTime::now());
    bench.hold(&other);
    assert_not_waited_for(bench).await;
}
