//! Tests of the mux with raw bytes: frames that arrive in chunks of any size, and sides that stop reading.

use std::time::Duration;

use nri::SessionEnd;
use nri::mux::{PLUGIN_SERVICE, RUNTIME_SERVICE, VirtualConnection, divide};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

struct Running {
    trunk: DuplexStream,
    plugin: VirtualConnection,
    runtime: VirtualConnection,
    mux: JoinHandle<SessionEnd>,
    stop_reading: CancellationToken,
    kill: CancellationToken,
}

/// Starts a mux on a socket with a buffer of `bytes`.
fn running(bytes: usize) -> Running {
    let (trunk, far) = duplex(bytes);
    let (mux, plugin, runtime) = divide(far);
    let (stop_reading, kill) = (CancellationToken::new(), CancellationToken::new());
    let mux = tokio::spawn(mux.run(stop_reading.clone(), kill.clone()));
    Running {
        trunk,
        plugin,
        runtime,
        mux,
        stop_reading,
        kill,
    }
}

fn frame(connection: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let header = [connection.to_be_bytes(), length.to_be_bytes()];
    [header.as_flattened(), payload].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_connection_reads_its_own_bytes_in_order_for_any_chunks(
        frames in prop::collection::vec((0..4_u32, prop::collection::vec(any::<u8>(), 0..300)), 0..40),
        cut in 1..50_usize,
        socket in 1..100_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let Running { mut trunk, mut plugin, runtime: mut other, mux, .. } = running(socket);
            let of = |id| frames.iter().filter(move |f| f.0 == id).flat_map(|f| f.1.clone()).collect::<Vec<_>>();
            let wire: Vec<u8> = frames.iter().flat_map(|(id, payload)| frame(*id, payload)).collect();
            let sending = async {
                for piece in wire.chunks(cut) {
                    trunk.write_all(piece).await.unwrap();
                }
                drop(trunk);
            };
            let (mut one, mut two) = (Vec::new(), Vec::new());
            let (_, one_read, two_read, end) = tokio::join!(
                sending,
                plugin.read_to_end(&mut one),
                other.read_to_end(&mut two),
                mux,
            );
            one_read.unwrap();
            two_read.unwrap();
            assert_eq!(one, of(PLUGIN_SERVICE));
            assert_eq!(two, of(RUNTIME_SERVICE));
            assert!(matches!(end.unwrap(), SessionEnd::ClosedByPeer));
        });
    }
}

#[tokio::test]
async fn one_write_makes_one_frame_and_an_empty_write_makes_none() {
    let mut running = running(64 << 10);
    for (connection, payload) in [(1, "one"), (2, "two"), (1, ""), (1, "three")] {
        let side = if connection == 1 {
            &mut running.plugin
        } else {
            &mut running.runtime
        };
        let written = side.write(payload.as_bytes()).await.unwrap();
        assert_eq!(written, payload.len());
    }
    let expected = [frame(1, b"one"), frame(2, b"two"), frame(1, b"three")].concat();
    let mut wire = vec![0; expected.len()];
    running.trunk.read_exact(&mut wire).await.unwrap();
    assert_eq!(wire, expected);
}

#[tokio::test]
async fn a_write_over_the_limit_makes_two_frames() {
    let mut running = running(1 << 20);
    let big = vec![7; nri::frame::MAX_PAYLOAD + 5];
    let expected = [frame(1, &big[5..]), frame(1, &big[..5])].concat();
    let writing = running.plugin.write_all(&big);
    let mut wire = vec![0; expected.len()];
    let (written, read) = tokio::join!(writing, running.trunk.read_exact(&mut wire));
    written.unwrap();
    read.unwrap();
    assert!(wire == expected);
}

/// More bytes than a virtual connection may leave unread.
const TOO_MUCH: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn a_connection_that_reads_late_delays_the_other_one_without_loss() {
    let mut running = running(64 << 10);
    let big = vec![7; TOO_MUCH];
    let wire = [frame(PLUGIN_SERVICE, &big), frame(RUNTIME_SERVICE, b"late")].concat();
    let sending = running.trunk.write_all(&wire);
    let reading = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let mut read = vec![0; big.len()];
        running.plugin.read_exact(&mut read).await.unwrap();
        assert!(read == big);
    };
    let mut late = [0; 4];
    let (sent, (), read) = tokio::join!(sending, reading, running.runtime.read_exact(&mut late));
    sent.unwrap();
    read.unwrap();
    assert_eq!(&late, b"late");
    assert!(!running.mux.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_reads_ends_the_session() {
    let mut running = running(64 << 10);
    let wire = frame(PLUGIN_SERVICE, &vec![7; TOO_MUCH]);
    let mut nothing = [0; 1];
    let (_, read, end) = tokio::join!(
        running.trunk.write_all(&wire),
        running.runtime.read(&mut nothing),
        running.mux
    );
    assert_eq!(read.unwrap(), 0);
    assert!(matches!(
        end.unwrap(),
        SessionEnd::Stalled { connection: 1 }
    ));
}

#[tokio::test]
async fn a_frame_for_a_closed_connection_ends_the_session() {
    let mut running = running(64 << 10);
    drop(running.plugin);
    running.runtime.write_all(b"still here").await.unwrap();
    running
        .trunk
        .write_all(&frame(1, b"anyone?"))
        .await
        .unwrap();
    let end = running.mux.await.unwrap();
    assert!(
        matches!(end, SessionEnd::Abandoned { connection: 1 }),
        "{end:?}"
    );
}

#[tokio::test]
async fn writers_wait_while_the_socket_accepts_nothing() {
    let mut running = running(16);
    let write = running.plugin.write_all(&[7; 10]);
    write.await.unwrap();
    let flood = async {
        loop {
            running.plugin.write_all(&[7; 10]).await.unwrap();
        }
    };
    timeout(Duration::from_millis(50), flood)
        .await
        .expect_err("the queue is bounded");
    // The other direction still works.
    running.trunk.write_all(&frame(2, b"hello")).await.unwrap();
    let mut hello = [0; 5];
    running.runtime.read_exact(&mut hello).await.unwrap();
    running.kill.cancel();
    assert!(matches!(running.mux.await.unwrap(), SessionEnd::ClosedHere));
    running.plugin.write_all(b"x").await.unwrap_err();
}

#[tokio::test]
async fn after_stop_reading_only_outgoing_frames_are_transferred() {
    let mut running = running(64 << 10);
    running.stop_reading.cancel();
    tokio::task::yield_now().await;
    running
        .trunk
        .write_all(&frame(1, b"too late"))
        .await
        .unwrap();
    running.plugin.write_all(b"answer").await.unwrap();
    drop(running.plugin);
    drop(running.runtime);
    let mut wire = Vec::new();
    running.trunk.read_to_end(&mut wire).await.unwrap();
    assert_eq!(wire, frame(1, b"answer"));
    assert!(matches!(running.mux.await.unwrap(), SessionEnd::ClosedHere));
}
