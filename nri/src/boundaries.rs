//! The boundaries of ttrpc's messages in the data of one virtual connection.
//!
//! ttrpc skips a message that is too long, however long its header says it is. If the boundaries are lost, it would skip
//! all that follows, and the session would be silent until the runtime closes it, which NRI 0.6 never does.
//!
//! A message that would take too much memory when ttrpc decodes it is an error here: an answer that is longer than those of
//! NRI, and a request with too much besides its payload. The payload itself is weighed in [`crate::limited`].
//!
//! Pure: no I/O and no allocation.

use crate::envelope::{Envelope, NotARequest};

/// The size of ttrpc's header in bytes: the length of the message (big-endian), a stream, a type and flags.
const HEADER_LEN: usize = 10;

/// The longest message of ttrpc in bytes, without its header.
const MAX_MESSAGE: usize = 4 << 20;

/// The longest answer in bytes, without ttrpc's header. That to a registration is empty, or has the text of an error.
pub(crate) const MAX_ANSWER: usize = 64 << 10;

/// The error for a message that no NRI runtime sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its length in bytes is over the limit.
    TooLong(usize),
    /// It has too much besides its payload, or is not complete.
    NotARequest,
}

impl From<NotARequest> for Refused {
    fn from(NotARequest: NotARequest) -> Self {
        Self::NotARequest
    }
}

/// The place in the data of a connection.
#[derive(Debug)]
pub(crate) struct Boundaries {
    longest: usize,
    /// The message that is open, on the connection with requests.
    request: Option<Envelope>,
    has_requests: bool,
    header: [u8; HEADER_LEN],
    /// The bytes of the header that were seen.
    seen: usize,
    /// The bytes of the message that follow.
    left: usize,
}

impl Boundaries {
    /// Returns the beginning of a connection with requests of the runtime.
    pub(crate) fn of_requests() -> Self {
        Self::new(MAX_MESSAGE, true)
    }

    /// Returns the beginning of a connection with answers of the runtime.
    pub(crate) fn of_answers() -> Self {
        Self::new(MAX_ANSWER, false)
    }

    fn new(longest: usize, has_requests: bool) -> Self {
        Self {
            longest,
            request: None,
            has_requests,
            header: [0; HEADER_LEN],
            seen: 0,
            left: 0,
        }
    }

    /// Follows the next bytes of the connection.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Refused> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                if let Some(request) = &mut self.request {
                    request.follow(&bytes[..skipped])?;
                }
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
                if length > self.longest {
                    return Err(Refused::TooLong(length));
                }
                (self.seen, self.left) = (0, length);
                self.request = self.has_requests.then(|| Envelope::of(length));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a request of this length, nearly all of it payload.
    fn message(length: usize) -> Vec<u8> {
        let header = [&(length as u32).to_be_bytes()[..], &[0, 0, 0, 1, 1, 0]].concat();
        let payload = length.saturating_sub(5);
        let varint = [payload | 0x80, payload >> 7 | 0x80, payload >> 14 | 0x80];
        let varint = varint.map(|byte| byte as u8);
        let start = [&[0x1a][..], &varint, &[(payload >> 21) as u8]].concat();
        let body = [start, vec![255; payload.min(MAX_MESSAGE)]].concat();
        [header, body[..length.min(body.len())].to_vec()].concat()
    }

    #[test]
    fn messages_of_every_length_are_followed_in_pieces_of_every_size() {
        let lengths = [0, 1, 9, 10, 300, MAX_MESSAGE];
        let data: Vec<u8> = lengths.into_iter().flat_map(message).collect();
        for size in [1, 3, 7, 4096, data.len()] {
            let mut boundaries = Boundaries::of_requests();
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
            let followed = Boundaries::of_requests().follow(&data);
            assert_eq!(followed, Err(Refused::TooLong(length)));
        }
        assert_eq!(
            Boundaries::of_answers().follow(&message(MAX_ANSWER)),
            Ok(())
        );
        let followed = Boundaries::of_answers().follow(&message(MAX_ANSWER + 1));
        assert_eq!(followed, Err(Refused::TooLong(MAX_ANSWER + 1)));
    }

    #[test]
    fn each_request_has_its_own_limit_of_what_is_besides_its_payload() {
        let header = [0, 0, 0x30, 0, 0, 0, 0, 1, 1, 0];
        let request = [&header[..], &[0x2a, 0].repeat(0x1800)].concat();
        assert_eq!(Boundaries::of_requests().follow(&request.repeat(5)), Ok(()));
        let header = [0, 0, 0x60, 0, 0, 0, 0, 1, 1, 0];
        let request = [&header[..], &[0x2a, 0].repeat(0x3000)].concat();
        let followed = Boundaries::of_requests().follow(&request);
        assert_eq!(followed, Err(Refused::NotARequest));
    }
}
