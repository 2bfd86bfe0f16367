//! Tests of the workers: slow work delays neither other snapshotters nor quick work.

use super::*;

/// More places than the workers have, so that the engine does not limit the unpacks.
const MANY: &str =
    "[unpack]\nparallel_images = 64\nparallel_layers = 64\n[snapshotters.erofs]\neager = \"all\"\n";

/// More images than one worker looks at at the same time.
const SLOW_IMAGES: usize = 20;

/// Begins a session in which images are being unpacked in erofs, for longer than the test.
async fn with_slow_unpacks(config: &str) -> Bench {
    let fake = Fake::default();
    // A proxy plugin.
    fake.is_lazy("nydus", &[]);
    let bench = Bench::on(fake, config).await;
    bench.fake.slow("apply layer", Duration::from_secs(3600));
    for n in 0..SLOW_IMAGES {
        let name = format!("r.example/slow:{n}");
        image_with_own_layer(&bench.fake, &name);
        bench.emit_created(&name);
    }
    settle().await;
    bench
}

#[tokio::test(start_paused = true)]
async fn slow_unpacks_in_one_snapshotter_do_not_delay_another() {
    for config in [MANY, ALL] {
        let bench = with_slow_unpacks(config).await;
        let image = image_with_own_layer(&bench.fake, NAME);
        bench.emit_created(NAME);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let state = bench.state(&image, "nydus").await;
        assert_eq!(state, State::Ready, "{config}");
        assert_eq!(bench.state(&image, "erofs").await, State::Missing);
    }
}

#[tokio::test(start_paused = true)]
async fn slow_unpacks_do_not_delay_a_repair_in_the_same_snapshotter() {
    for config in [MANY, ALL] {
        let bench = with_slow_unpacks(config).await;
        let image = image_with_own_layer(&bench.fake, NAME);
        let chain = only_chain(&image);
        bench.fake.commit_unlabelled("erofs", &chain, None);
        bench.emit_created(NAME);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let state = bench.state(&image, "erofs").await;
        assert_eq!(state, State::Ready, "{config}");
    }
}

/// A hook runs between two looks, also where no look waits for containerd.
#[tokio::test]
async fn a_reconcile_lets_other_tasks_run() {
    let fake = Fake::default();
    for n in 0..200 {
        image_with_own_layer(&fake, &format!("r.example/app:{n}"));
    }
    let config = "[snapshotters.erofs]\neager = \"all\"\nexclude = [\"*\"]\n";
    let bench = Bench::begun(fake, config, |_| percent(100));
    let workers = bench.ahead.workers().await;
    let worker = workers.iter().find(|worker| worker.name() == "erofs");
    let worker = worker.unwrap().clone();
    let reconcile = || async {
        let mut reported = summary::LastReported::default();
        let done = reconcile::run(&bench.ahead, &worker, &mut reported).await;
        done.unwrap();
    };
    // The first one reads the manifests.
    reconcile().await;
    let turns = Arc::new(AtomicU64::default());
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    tokio::task::yield_now().await;
    let before = turns.load(Ordering::Relaxed);
    reconcile().await;
    let turns = turns.load(Ordering::Relaxed) - before;
    other.abort();
    assert!(turns >= 200 / 16, "{turns} turns in 200 looks");
}
