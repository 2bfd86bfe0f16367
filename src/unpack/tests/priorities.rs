//! Which work goes on while other work is slow: a snapshotter that hangs, and a flight for which a container waits.

use super::*;

/// Longer than any work of these tests but the slow one.
const SOON: Duration = Duration::from_secs(60);

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

const SLOW: Duration = Duration::from_secs(30 * 60);

fn ask(bench: &Bench, image: &str, snapshotter: &str, urgency: Urgency) -> crate::unpack::Ticket {
    bench.engine.ensure(Request {
        want: Want::Image(image.to_owned()),
        snapshotter: snapshotter.to_owned(),
        urgency,
    })
}

/// The calls of a snapshotter do not answer, and its flights would fill all places of the process.
#[tokio::test(start_paused = true)]
async fn a_snapshotter_that_hangs_delays_no_other() {
    for urgency in [Urgency::Background, Urgency::Asked] {
        let bench = Bench::new(3).await;
        bench.fake.prepares_in("native", SLOW);
        let name = |n: usize| format!("r.example/hangs:{n}");
        for n in 0..5 {
            let layer = bench.fake.document(LAYER, name(n).as_bytes());
            bench.fake.image_from(&name(n), &[layer]);
        }
        let hanging: Vec<_> = (0..5)
            .map(|n| ask(&bench, &name(n), "native", urgency))
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut other = ask(&bench, NAME, EROFS, urgency);
        let done = tokio::time::timeout(SOON, other.outcome()).await;
        assert!(done.unwrap().is_ok(), "{urgency:?}");
        for mut ticket in hanging {
            ticket.outcome().await.unwrap();
        }
        bench.assert_nothing_left();
    }
}

/// A flight without a caller holds the base layer, and waits for an apply. A creation joins the flight that waits for it.
#[tokio::test(start_paused = true)]
async fn a_creation_raises_the_flight_that_holds_the_base_layer() {
    let mut bench = Bench::new(1).await;
    let limits = Parallel {
        images: 8,
        layers: 2,
    };
    let fallback = ContentFallback::default();
    bench.engine = Engine::new(
        bench.fake.clone(),
        Role::Daemon,
        limits,
        default_policy(),
        fallback,
    );
    let slow = bench.fake.document(LAYER, b"slow");
    bench.fake.applies_in(&slow.digest, SLOW);
    bench.fake.image_from("r.example/slow:1", &[slow]);
    let base = bench.fake.document(LAYER, b"base");
    for name in ["r.example/a:1", "r.example/b:1"] {
        let own = bench.fake.document(LAYER, name.as_bytes());
        bench.fake.image_from(name, &[base.clone(), own]);
    }
    // The slow image has the one permit for work without a caller.
    let mut tickets = vec![ask(&bench, "r.example/slow:1", EROFS, Urgency::Background)];
    for name in ["r.example/a:1", "r.example/b:1"] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tickets.push(ask(&bench, name, EROFS, Urgency::Background));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut creation = ask(&bench, "r.example/b:1", EROFS, Urgency::Creation);
    let done = tokio::time::timeout(SOON, creation.outcome()).await;
    assert!(done.expect("waited for the slow image").is_ok());
    for mut ticket in tickets {
        ticket.outcome().await.unwrap();
    }
    bench.assert_nothing_left();
}

/// As on a device that is full. containerd's own limit is an hour.
#[tokio::test(start_paused = true)]
async fn applies_that_hang_hold_up_no_other_snapshotter() {
    const HOUR: Duration = Duration::from_secs(3600);
    const TWO: Parallel = Parallel {
        images: 2,
        layers: 2,
    };
    let fake = Fake::default();
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let image = |name: &str| {
        let layer = fake.document(media_type, name.as_bytes());
        let image = fake.image_from(name, std::slice::from_ref(&layer));
        (image, layer.digest)
    };
    let hang = ["r.example/hangs:1", "r.example/hangs:2"].map(image);
    let (other, _) = image("r.example/other:1");
    for (_, layer) in &hang {
        fake.applies_in(layer, HOUR);
    }
    let bench = Bench::on(fake, other, EROFS, TWO).await;
    let mut hanging = hang
        .each_ref()
        .map(|(image, _)| ask(&bench, &image.name, "native", Urgency::Asked));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = tokio::time::Instant::now();
    bench.ensure().await.unwrap();
    assert!(began.elapsed() < HOUR / 6, "{:?}", began.elapsed());
    for ticket in &mut hanging {
        assert_eq!(ticket.outcome().await.unwrap().layers_done, 1);
    }
    assert!(began.elapsed() > HOUR / 2);
}
