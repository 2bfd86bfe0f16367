//! What the fuzzers in `fuzz/` call, and the tests that replay their corpus. Each function does with bytes what the crate
//! does with bytes of a runtime, and panics if a promise does not hold.

use protobuf::Message;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::end::SessionEnd;
use crate::frame::{HEADER_LEN, Header};
use crate::limited::MAX_WEIGHT;
use crate::mux::{self, PLUGIN_SERVICE, RUNTIME_SERVICE};
use crate::types::{Container, Pod, RuntimeInfo, optional};
use crate::weight::{self, Shape, weigh};

/// The end of the bytes of a socket.
#[derive(Debug, PartialEq)]
enum End {
    Orderly,
    Truncated,
    Oversized,
}

/// The bytes of a socket: each virtual connection reads its own payloads, and the end has the right reason.
///
/// # Panics
/// If not.
pub fn frames(wire: &[u8]) {
    let mut lanes = [vec![], vec![]];
    let expected = read_frames(wire, &mut lanes);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().expect("a runtime");
    let (end, read) = runtime.block_on(async {
        let (mux, mut plugin, mut runtime) = mux::divide(tokio::io::join(wire, tokio::io::sink()));
        let (mut one, mut two) = (vec![], vec![]);
        let (end, first, second) = tokio::join!(
            mux.run(CancellationToken::new(), CancellationToken::new()),
            plugin.read_to_end(&mut one),
            runtime.read_to_end(&mut two),
        );
        first.and(second).expect("an orderly end");
        (end, [one, two])
    });
    let end = match end {
        SessionEnd::ClosedByPeer => End::Orderly,
        SessionEnd::Truncated => End::Truncated,
        SessionEnd::Oversized(_) => End::Oversized,
        other => panic!("{other:?}"),
    };
    assert_eq!((end, read), (expected, lanes));
}

/// Reads the frames one after another from memory.
fn read_frames(mut wire: &[u8], lanes: &mut [Vec<u8>; 2]) -> End {
    while !wire.is_empty() {
        let Some((header, rest)) = wire.split_first_chunk::<HEADER_LEN>() else {
            return End::Truncated;
        };
        let Ok(header) = Header::decode(*header) else {
            return End::Oversized;
        };
        assert_eq!(&header.encode(), &wire[..HEADER_LEN]);
        let payload = &rest[..header.length().min(rest.len())];
        match header.connection() {
            PLUGIN_SERVICE => lanes[0].extend(payload),
            RUNTIME_SERVICE => lanes[1].extend(payload),
            _ => {}
        }
        if payload.len() < header.length() {
            return End::Truncated;
        }
        wire = &rest[payload.len()..];
    }
    End::Orderly
}

/// A request of the runtime, behind a byte that chooses its kind: it is weighed, and decoded if it is not too heavy.
///
/// # Panics
/// If something that was encoded cannot be weighed.
pub fn messages(bytes: &[u8]) {
    let Some((kind, request)) = bytes.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            let state = decoded::<api::SynchronizeRequest>(&weight::REQUEST, request);
            let state = state.unwrap_or_default();
            drop(state.pods.into_iter().map(Pod::from).collect::<Vec<_>>());
            let containers = state.containers.into_iter().map(Container::from);
            drop(containers.collect::<Vec<_>>());
        }
        1 => {
            let event = decoded::<api::CreateContainerRequest>(&weight::REQUEST, request);
            let event = event.unwrap_or_default();
            let _: Option<Pod> = optional(event.pod);
            let _: Option<Container> = optional(event.container);
        }
        2 => {
            let event = decoded::<api::StateChangeEvent>(&weight::STATE_CHANGE, request);
            let event = event.unwrap_or_default();
            let _: Option<Pod> = optional(event.pod);
            let _: Option<Container> = optional(event.container);
        }
        _ => {
            let request = decoded::<api::ConfigureRequest>(&weight::FLAT, request);
            drop(RuntimeInfo::from(request.unwrap_or_default()));
        }
    }
}

fn decoded<M: Message>(shape: &Shape, request: &[u8]) -> Option<M> {
    let weight = weigh(shape, request).ok()?;
    if weight > MAX_WEIGHT {
        return None;
    }
    let message = M::parse_from_bytes(request).ok()?;
    let again = message.write_to_bytes().expect("it was decoded");
    assert!(weigh(shape, &again).is_ok(), "{again:?}");
    Some(message)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, function: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let files = std::fs::read_dir(corpus.join(target)).unwrap();
        let inputs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for input in inputs {
            println!("{}", input.display());
            function(&std::fs::read(input).unwrap());
        }
    }

    #[test]
    fn the_corpus_of_frames() {
        replay("frames", super::frames);
    }

    #[test]
    fn the_corpus_of_messages() {
        replay("messages", super::messages);
    }
}
