//! The boundaries of ttrpc's messages in the data of one virtual connection.
//!
//! ttrpc skips a message that is too long, however long its header says it is. If the boundaries are lost, it would skip
//! all that follows, and the session would be silent until the runtime closes it, which NRI 0.6 never does.
//!
//! Pure: no I/O and no allocation.

/// The size of ttrpc's header in bytes: the length of the message (big-endian), a stream, a type and flags.
const HEADER_LEN: usize = 10;

/// The longest message of ttrpc in bytes, without its header.
const MAX_MESSAGE: usize = 4 << 20;

/// The error for a message that no ttrpc peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) usize);

/// The place in the data of a connection.
#[derive(Debug, Default)]
pub(crate) struct Boundaries {
    header: [u8; HEADER_LEN],
    /// The bytes of the header that were seen.
    seen: usize,
    /// The bytes of the message that follow.
    left: usize,
}

impl Boundaries {
    /// Follows the next bytes of the connection.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(HEADER_LEN - self.seen));
            self.header[self.seen..][..part.len()].copy_from_slice(part);
            self.seen += part.len();
            bytes = rest;
            if self.seen == HEADER_LEN {
                let [l0, l1, l2, l3, ..] = self.header;
                let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
                if length > MAX_MESSAGE {
                    return Err(TooLong(length));
                }
                (self.seen, self.left) = (0, length);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let header = [&(length as u32).to_be_bytes()[..], &[0, 0, 0, 1, 1, 0]].concat();
        [header, vec![255; length.min(MAX_MESSAGE)]].concat()
    }

    #[test]
    fn messages_of_every_length_are_followed_in_pieces_of_every_size() {
        let lengths = [0, 1, 9, 10, 300, MAX_MESSAGE];
        let data: Vec<u8> = lengths.into_iter().flat_map(message).collect();
        for size in [1, 3, 7, 4096, data.len()] {
            let mut boundaries = Boundaries::default();
            for piece in data.chunks(size) {
                assert_eq!(boundaries.follow(piece), Ok(()), "pieces of {size}");
            }
            assert_eq!(
                (boundaries.seen, boundaries.left),
                (0, 0),
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn a_longer_message_is_an_error() {
        for length in [MAX_MESSAGE + 1, u32::MAX as usize] {
            let mut data = message(10);
            data.extend(&message(length)[..HEADER_LEN]);
            assert_eq!(Boundaries::default().follow(&data), Err(TooLong(length)));
        }
    }
}
