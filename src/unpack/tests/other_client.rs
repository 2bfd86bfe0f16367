//! containerd unpacks the same image at the same time: no layer is unpacked twice, and nothing waits for ever.

use std::time::{Duration, SystemTime};

use super::{Action, Bench, EROFS, NAME, Outcome, Want, request};

impl Bench {
    /// containerd begins to unpack the layer `n`.
    fn begin(&self, n: usize) -> String {
        let parent = n.checked_sub(1).map(|below| self.chain_ids[below].as_str());
        let key = format!("extract-1-abcd {}", self.chain_ids[n]);
        self.fake.extract(EROFS, &key, parent, SystemTime::now());
        key
    }

    /// containerd commits the layer `n`.
    fn end(&self, n: usize, key: &str) {
        let parent = n.checked_sub(1).map(|below| self.chain_ids[below].as_str());
        self.fake.forget(EROFS, key);
        self.fake
            .commit_unlabelled(EROFS, &self.chain_ids[n], parent);
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
    let mut key = bench.begin(0);
    let flight = bench.start();
    for n in 0..3 {
        tokio::time::sleep(SOON).await;
        assert!(!flight.is_finished());
        bench.end(n, &key);
        if n < 2 {
            key = bench.begin(n + 1);
        }
    }
    flight.await.unwrap().unwrap();
    assert_eq!(bench.applies(), 0);
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn what_containerd_gives_up_is_unpacked() {
    let bench = Bench::new(3).await;
    let key = bench.begin(1);
    let flight = bench.start();
    tokio::time::sleep(SOON).await;
    assert!(!flight.is_finished());
    bench.fake.forget(EROFS, &key);
    assert_eq!(flight.await.unwrap().unwrap().action, Action::Unpacked);
    assert_eq!(bench.applies(), 3);
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn an_extraction_that_does_not_end_is_waited_for_once() {
    let bench = Bench::new(1).await;
    let key = bench.begin(0);
    let flight = bench.start();
    tokio::time::sleep(SOON).await;
    assert_eq!(bench.applies(), 0);
    assert_eq!(flight.await.unwrap().unwrap().action, Action::Unpacked);
    assert_eq!(bench.applies(), 1);
    bench.fake.forget(EROFS, &key);
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_containerd_left_and_other_images_are_not_waited_for() {
    let bench = Bench::new(3).await;
    let old = SystemTime::now() - Duration::from_secs(61);
    let left = format!("extract-1-abcd {}", bench.chain_ids[0]);
    bench.fake.extract(EROFS, &left, None, old);
    let later = format!("extract-3-abcd {}", bench.chain_ids[1]);
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    bench.fake.extract(EROFS, &later, None, tomorrow);
    let other = format!("extract-2-abcd sha256:{}", "0".repeat(64));
    bench.fake.extract(EROFS, &other, None, SystemTime::now());
    let began = tokio::time::Instant::now();
    bench.ensure().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(bench.applies(), 3);
}
