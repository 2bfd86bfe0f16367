//! What a request of ttrpc has besides its payload: names, a timeout and metadata, which ttrpc decodes before it calls a
//! method. A message of 4 MiB can have two million entries of metadata of two bytes each, which take hundreds of megabytes.
//!
//! Pure: no I/O and no allocation. Reads a message in pieces, as they arrive.

/// The limit of a request's bytes besides its payload. Those of NRI take some fifty; entries of metadata, such as the
/// identifiers of a trace, a few hundred.
pub(crate) const MAX_ENVELOPE: usize = 16 << 10;

/// The number of the field with the payload.
const PAYLOAD: u64 = 3;

/// The error for a message with too much besides its payload, or of which a field is longer than the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotARequest;

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Tag,
    Number,
    Length {
        is_payload: bool,
    },
    /// The rest of the message is no field.
    Anything,
}

/// The place in a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope {
    next: Next,
    number: u64,
    shift: u32,
    /// The bytes of the field that follow, and whether it is the payload.
    field: usize,
    is_payload: bool,
    /// The bytes of the message that follow.
    left: usize,
    /// The bytes besides the payload so far.
    outside: usize,
}

impl Envelope {
    /// Begins a message of this length.
    pub(crate) fn of(length: usize) -> Self {
        Self {
            next: Next::Tag,
            number: 0,
            shift: 0,
            field: 0,
            is_payload: false,
            left: length,
            outside: 0,
        }
    }

    /// Follows the next bytes of the message, which are not more than are left of it.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), NotARequest> {
        while let Some((first, rest)) = bytes.split_first() {
            let taken = match (self.field, self.next) {
                (0, Next::Anything) => bytes.len(),
                (0, _) => {
                    self.left -= 1;
                    bytes = rest;
                    self.add(1)?;
                    self.take(*first)?;
                    continue;
                }
                (left, _) => left.min(bytes.len()),
            };
            bytes = &bytes[taken..];
            self.left -= taken;
            self.field -= self.field.min(taken);
            if !self.is_payload {
                self.add(taken)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, more: usize) -> Result<(), NotARequest> {
        self.outside += more;
        match self.outside > MAX_ENVELOPE {
            true => Err(NotARequest),
            false => Ok(()),
        }
    }

    /// Takes a byte of a number: seven bits in each, the lowest first, at most ten bytes.
    fn take(&mut self, byte: u8) -> Result<(), NotARequest> {
        self.is_payload = false;
        self.number |= u64::from(byte & 0x7f) << self.shift;
        if byte & 0x80 != 0 {
            self.shift += 7;
            if self.shift >= 64 {
                self.next = Next::Anything;
            }
            return Ok(());
        }
        let number = std::mem::take(&mut self.number);
        self.shift = 0;
        let next = std::mem::replace(&mut self.next, Next::Tag);
        match next {
            Next::Tag => match number & 7 {
                0 => self.next = Next::Number,
                1 => self.field = 8,
                2 => {
                    let is_payload = number >> 3 == PAYLOAD;
                    self.next = Next::Length { is_payload };
                }
                5 => self.field = 4,
                _ => self.next = Next::Anything,
            },
            Next::Length { is_payload } => {
                self.field = usize::try_from(number).map_err(|_| NotARequest)?;
                self.is_payload = is_payload;
                // A decoder would reserve memory for it.
                if self.field > self.left {
                    return Err(NotARequest);
                }
            }
            Next::Number | Next::Anything => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message;
    use ttrpc::Request;
    use ttrpc::proto::KeyValue;

    use super::*;

    fn follow(message: &[u8], piece: usize) -> Result<(), NotARequest> {
        let mut envelope = Envelope::of(message.len());
        let mut pieces = message.chunks(piece);
        pieces.try_for_each(|piece| envelope.follow(piece))
    }

    fn request(payload: usize, metadata: usize) -> Vec<u8> {
        let entry = KeyValue {
            key: "traceparent".to_owned(),
            value: "0".repeat(55),
            ..Default::default()
        };
        let request = Request {
            service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
            method: "Synchronize".to_owned(),
            timeout_nano: 2_000_000_000,
            payload: vec![0x0a; payload],
            metadata: vec![entry; metadata],
            ..Default::default()
        };
        request.write_to_bytes().unwrap()
    }

    #[test]
    fn requests_of_every_length_are_taken_in_pieces_of_every_size() {
        for (payload, metadata) in [(0, 0), (1, 2), (300, 20), (4_000_000, 100)] {
            let message = request(payload, metadata);
            for piece in [1, 3, 4096, message.len()] {
                assert_eq!(follow(&message, piece), Ok(()), "{payload}, {metadata}");
            }
        }
        // ttrpc answers what is no request.
        assert_eq!(follow(&[0xff; 1000], 7), Ok(()));
    }

    #[test]
    fn much_besides_the_payload_is_an_error() {
        let metadata = [0x2a, 0].repeat(2 << 20);
        let empty_payloads = [0x1a, 0].repeat(MAX_ENVELOPE);
        let in_one_entry = [&[0x2a, 0x80, 0x80, 0x08][..], &[0x18; 1 << 17]].concat();
        let garbage = vec![0xff; MAX_ENVELOPE + 1];
        let after_a_payload = [&request(1 << 20, 0)[..], &metadata].concat();
        // A payload of 10 MB in six bytes.
        let short = vec![0x1a, 0x80, 0xad, 0xe2, 0x04, 1];
        for message in [
            metadata,
            empty_payloads,
            in_one_entry,
            garbage,
            after_a_payload,
            request(0, 1000),
            short,
        ] {
            for piece in [1000, message.len()] {
                assert_eq!(follow(&message, piece), Err(NotARequest));
            }
        }
    }
}
