//! Estimates the memory that a request takes when it is decoded, before it is decoded: two bytes can stand for a message
//! of hundreds.
//!
//! Pure: no I/O and no allocation, so that a fuzzer can call this code alone. Knows of each message only which of its
//! fields are messages.

use crate::api;
use crate::types;

/// What a field with one value takes besides its bytes: the least that an allocation takes.
const SCALAR: usize = 16;

/// What an element of a list takes besides its bytes: its place in a growing list, and an allocation.
const ELEMENT: usize = 64;

/// What the first of several fields takes that this crate does not know: its place in a growing table of lists.
const UNKNOWN: usize = 512;

/// A list begins with places for so many elements.
const FIRST: usize = 4;

/// What an entry of a map takes besides its key and value, in the growing table and in the ordered map.
const ENTRY: usize = 224;

/// A kind of message: what one takes in a growing list and as the type that it becomes, and its known fields: those that
/// are messages by number, the others by tag.
#[derive(Debug)]
pub struct Shape {
    size: usize,
    messages: &'static [(u32, &'static Shape)],
    scalars: &'static [u32],
    lists: &'static [u32],
}

/// The state of the runtime, and the events that have an RPC of their own: a pod and a container.
pub static REQUEST: Shape = Shape {
    size: 0,
    messages: &[(1, &POD), (2, &CONTAINER)],
    scalars: &[number(3)],
    lists: &[],
};

/// An event of the dialect up to NRI 0.11.
pub static STATE_CHANGE: Shape = Shape {
    size: 0,
    messages: &[(2, &POD), (3, &CONTAINER)],
    scalars: &[number(1)],
    lists: &[],
};

/// A message without messages in it.
pub static FLAT: Shape = Shape {
    size: 0,
    messages: &[],
    scalars: &[text(1), text(2), text(3), number(4), number(5), text(6)],
    lists: &[],
};

static POD: Shape = Shape {
    size: 2 * size_of::<api::PodSandbox>() + size_of::<types::Pod>(),
    messages: &[(5, &MAP_ENTRY), (6, &MAP_ENTRY)],
    scalars: &[text(1), text(2), text(3), text(4), text(7)],
    lists: &[],
};

static CONTAINER: Shape = Shape {
    size: 2 * size_of::<api::Container>() + size_of::<types::Container>(),
    messages: &[(5, &MAP_ENTRY), (6, &MAP_ENTRY), (9, &MOUNT), (22, &IMAGE)],
    scalars: &[text(1), text(2), text(3), number(4)],
    lists: &[],
};

static MAP_ENTRY: Shape = Shape {
    size: ENTRY,
    messages: &[],
    scalars: &[text(1), text(2)],
    lists: &[],
};

static MOUNT: Shape = Shape {
    size: 2 * size_of::<api::Mount>() + size_of::<types::Mount>(),
    messages: &[],
    scalars: &[text(1), text(2), text(3)],
    lists: &[text(4)],
};

static IMAGE: Shape = Shape {
    size: 2 * size_of::<api::Image>() + size_of::<types::Image>(),
    messages: &[],
    scalars: &[text(1), text(2), text(3)],
    lists: &[],
};

/// The tag of a number's field.
const fn number(field: u32) -> u32 {
    field << 3
}

/// The tag of a text's field.
const fn text(field: u32) -> u32 {
    field << 3 | 2
}

/// The bytes are not a message: a field is longer than what is left, or of a kind that NRI does not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a field is cut short or malformed")]
pub struct Malformed;

/// A request, or the state of the runtime, takes more memory than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it takes {} MiB in memory (limit {} MiB): is the peer an NRI runtime?", weight >> 20, limit >> 20
)]
pub(crate) struct TooLarge {
    pub(crate) weight: usize,
    pub(crate) limit: usize,
}

/// Estimates the memory that a message takes when it is decoded, in bytes. The estimate is not below the real size.
///
/// # Errors
/// When the bytes are not a message.
pub fn weigh(shape: &Shape, message: &[u8]) -> Result<usize, Malformed> {
    let mut rest = message;
    let mut weight = shape.size;
    let mut met = 0_u64;
    let mut last = 0;
    while !rest.is_empty() {
        let (tag, bytes) = field(&mut rest)?;
        let of_message = shape.messages.iter().position(|(n, _)| *n == tag >> 3);
        let more = match (of_message, bytes) {
            (Some(nth), Some(bytes)) => {
                let is_first = met & 1 << nth == 0;
                met |= 1 << nth;
                let kind = shape.messages[nth].1;
                let unused = if is_first { (FIRST - 1) * kind.size } else { 0 };
                weigh(kind, bytes)? + unused
            }
            (_, bytes) => {
                let own = if shape.scalars.contains(&tag) {
                    SCALAR
                } else if shape.lists.contains(&tag) || tag == last {
                    ELEMENT
                } else {
                    UNKNOWN
                };
                own + bytes.map_or(0, <[u8]>::len)
            }
        };
        weight = weight.saturating_add(more);
        last = tag;
    }
    Ok(weight)
}

/// Takes a field off the message. Returns its tag, and its bytes if it is not a number.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Option<&'a [u8]>), Malformed> {
    let tag = u32::try_from(varint(rest)?).map_err(|_| Malformed)?;
    let bytes = match tag & 7 {
        0 => {
            varint(rest)?;
            None
        }
        1 => take(rest, 8).map(|_| None)?,
        2 => {
            let length = varint(rest)?;
            let length = usize::try_from(length).map_err(|_| Malformed)?;
            Some(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| None)?,
        // Groups, which the third version of the language does not have.
        _ => return Err(Malformed),
    };
    match tag >> 3 {
        0 => Err(Malformed),
        _ => Ok((tag, bytes)),
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

/// Takes a number off the message: seven bits in each byte, the lowest first, at most ten bytes.
fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..70).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::Message;

    use super::*;

    #[test]
    fn a_small_message_of_many_messages_is_heavy() {
        for (two, each) in [([0x0a, 0], &POD), ([0x12, 0], &CONTAINER)] {
            let weight = weigh(&REQUEST, &two.repeat(1000)).unwrap();
            assert_eq!(weight, (1000 + FIRST - 1) * each.size);
        }
        let mounts = [0x4a, 0].repeat(1000);
        assert!(weigh(&CONTAINER, &mounts).unwrap() > 1000 * size_of::<api::Mount>());
        // Unknown fields of many numbers.
        let unknown: Vec<u8> = (100..1000_u16)
            .flat_map(|n| [(n << 3) as u8 | 0x80, (n >> 4) as u8, 1])
            .collect();
        assert!(weigh(&FLAT, &unknown).unwrap() >= 900 * UNKNOWN);
    }

    #[test]
    fn a_message_of_a_real_pod_weighs_little_more_than_its_bytes() {
        let labels = (0..20).map(|i| (format!("example.com/label-{i}"), "value".repeat(8)));
        let pod = api::PodSandbox {
            id: "0".repeat(64),
            labels: labels.clone().collect(),
            annotations: labels.collect(),
            ..Default::default()
        };
        let request = api::SynchronizeRequest {
            pods: vec![pod; 500],
            ..Default::default()
        };
        let bytes = request.write_to_bytes().unwrap();
        let weight = weigh(&REQUEST, &bytes).unwrap();
        assert!(weight < 6 * bytes.len(), "{weight} for {}", bytes.len());
    }

    #[test]
    fn fields_that_are_cut_short_are_malformed() {
        for bytes in [
            &[0x0a][..],
            &[0x0a, 1],
            // A length of 10 MB in five bytes.
            &[0x12, 0x80, 0xad, 0xe2, 0x04],
            &[0x09, 1, 2, 3],
            &[0x0d, 1],
            // A group, a field without a number, and a number of eleven bytes.
            &[0x0b],
            &[0x02, 0],
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
        ] {
            assert_eq!(weigh(&REQUEST, bytes), Err(Malformed), "{bytes:?}");
        }
    }

    /// What an error of the decoder takes, once.
    const AN_ERROR: usize = 1024;

    /// Fields of all kinds but groups, with messages in messages, as an encoder writes them.
    fn fields() -> impl Strategy<Value = Vec<u8>> {
        let text = prop::collection::vec(any::<u8>(), 0..8);
        let message = text.prop_recursive(4, 256, 16, |inner| {
            let number = prop_oneof![1..=7_u32, 1..=30_u32, 31..=2000_u32];
            let kind = prop_oneof![6 => Just(2_u32), 1 => Just(0), 1 => Just(1), 1 => Just(5)];
            let field = (number, kind, inner, any::<u64>());
            prop::collection::vec(field, 0..16)
                .prop_map(|fields| fields.iter().flat_map(encode).collect())
        });
        message.prop_filter("no message", |bytes| weigh(&FLAT, bytes).is_ok())
    }

    fn encode((number, kind, bytes, scalar): &(u32, u32, Vec<u8>, u64)) -> Vec<u8> {
        let mut field = vec![];
        let mut out = protobuf::CodedOutputStream::vec(&mut field);
        out.write_raw_varint32(number << 3 | kind).unwrap();
        match kind {
            0 => out.write_raw_varint64(*scalar).unwrap(),
            1 => out.write_raw_bytes(&scalar.to_le_bytes()).unwrap(),
            2 => out.write_bytes_no_tag(bytes).unwrap(),
            _ => out.write_raw_bytes(&scalar.to_le_bytes()[..4]).unwrap(),
        }
        drop(out);
        field
    }

    proptest! {
        /// No runtime is refused for what it writes. The decoder also takes messages that are cut short.
        #[test]
        fn what_was_encoded_can_be_weighed(bytes in fields()) {
            if let Ok(state) = api::SynchronizeRequest::parse_from_bytes(&bytes) {
                let again = state.write_to_bytes().unwrap();
                prop_assert!(weigh(&REQUEST, &again).is_ok(), "{again:?}");
            }
        }

        #[test]
        fn what_is_decoded_takes_no_more_than_its_weight(bytes in fields()) {
            let Ok(weight) = weigh(&REQUEST, &bytes) else {
                return Ok(());
            };
            let taken = allocation_counter::measure(|| {
                let Ok(state) = api::SynchronizeRequest::parse_from_bytes(&bytes) else {
                    return;
                };
                let pods: Vec<_> = state.pods.into_iter().map(types::Pod::from).collect();
                let containers: Vec<_> = state.containers.into_iter().map(types::Container::from).collect();
                drop((pods, containers));
            });
            let most = (weight + AN_ERROR) as u64;
            prop_assert!(taken.bytes_max <= most, "{} for {weight}: {bytes:?}", taken.bytes_max);
        }
    }
}
