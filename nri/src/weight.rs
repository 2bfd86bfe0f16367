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

/// What an entry of a map takes besides its key and value, in the growing table and in the ordered map.
const ENTRY: usize = 224;

/// A kind of message: what one takes in a growing list and as the type that it becomes, and its known fields.
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
    scalars: &[3],
    lists: &[],
};

/// An event of the dialect up to NRI 0.11.
pub static STATE_CHANGE: Shape = Shape {
    size: 0,
    messages: &[(2, &POD), (3, &CONTAINER)],
    scalars: &[1],
    lists: &[],
};

/// A message without messages in it.
pub static FLAT: Shape = Shape {
    size: 0,
    messages: &[],
    scalars: &[1, 2, 3, 4, 5, 6],
    lists: &[],
};

static POD: Shape = Shape {
    size: 2 * size_of::<api::PodSandbox>() + size_of::<types::Pod>(),
    messages: &[(5, &MAP_ENTRY), (6, &MAP_ENTRY)],
    scalars: &[1, 2, 3, 4, 7],
    lists: &[],
};

static CONTAINER: Shape = Shape {
    size: 2 * size_of::<api::Container>() + size_of::<types::Container>(),
    messages: &[(5, &MAP_ENTRY), (6, &MAP_ENTRY), (9, &MOUNT), (22, &IMAGE)],
    scalars: &[1, 2, 3, 4],
    lists: &[],
};

static MAP_ENTRY: Shape = Shape {
    size: ENTRY,
    messages: &[],
    scalars: &[1, 2],
    lists: &[],
};

static MOUNT: Shape = Shape {
    size: 2 * size_of::<api::Mount>() + size_of::<types::Mount>(),
    messages: &[],
    scalars: &[1, 2, 3],
    lists: &[4],
};

static IMAGE: Shape = Shape {
    size: 2 * size_of::<api::Image>() + size_of::<types::Image>(),
    messages: &[],
    scalars: &[1, 2, 3],
    lists: &[],
};

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
    let mut last = 0;
    while !rest.is_empty() {
        let (number, bytes) = field(&mut rest)?;
        let of_message = shape.messages.iter().find(|(n, _)| *n == number);
        let more = match (of_message, bytes) {
            (Some((_, shape)), Some(bytes)) => weigh(shape, bytes)?,
            (_, bytes) => {
                let own = if shape.scalars.contains(&number) {
                    SCALAR
                } else if shape.lists.contains(&number) || number == last {
                    ELEMENT
                } else {
                    UNKNOWN
                };
                own + bytes.map_or(0, <[u8]>::len)
            }
        };
        weight = weight.saturating_add(more);
        last = number;
    }
    Ok(weight)
}

/// Takes a field off the message. Returns its number, and its bytes if it is not a number.
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
        number => Ok((number, bytes)),
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
            assert_eq!(weight, 1000 * each.size);
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

    proptest! {
        /// What the decoder takes is not refused here, so that no runtime is refused that was not before.
        #[test]
        fn what_can_be_decoded_can_be_weighed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let has_group = |bytes: &[u8]| bytes.iter().any(|b| matches!(b & 7, 3 | 4));
            if api::SynchronizeRequest::parse_from_bytes(&bytes).is_ok() && !has_group(&bytes) {
                prop_assert!(weigh(&REQUEST, &bytes).is_ok(), "{:?}", bytes);
            }
        }
    }
}
