//! The header in front of every piece of data on the socket: which connection it belongs to, and
//! how much of it follows.
//!
//! Pure: no I/O and no allocation, so that a fuzzer can call just this. What the two connections
//! are for, and what the payload means, is not known here.

/// Bytes of a header on the wire: two big-endian `u32`, connection and length.
pub const HEADER_LEN: usize = 8;

/// The longest payload: a ttrpc message of 4 MiB and the 10 bytes of ttrpc's own header. NRI cuts
/// longer writes at this size, so anything longer is not NRI.
pub const MAX_PAYLOAD: usize = 10 + (4 << 20);

/// One frame's header.
///
/// Invariant: `length <= MAX_PAYLOAD`. Both ways to make one check it, so whoever holds a header
/// may trust its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    connection: u32,
    length: u32,
}

/// A length that no NRI peer sends: the stream is out of step, or not NRI at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a frame of {length} bytes for connection {connection} is over the limit of {MAX_PAYLOAD}: \
     is the peer an NRI runtime?"
)]
pub struct Oversized {
    /// The connection that the frame names.
    pub connection: u32,
    /// The length that it claims, in bytes.
    pub length: usize,
}

impl Header {
    /// The header of a payload of `length` bytes.
    ///
    /// # Errors
    /// When `length` is over [`MAX_PAYLOAD`].
    pub fn new(connection: u32, length: usize) -> Result<Self, Oversized> {
        match u32::try_from(length) {
            Ok(length) if length as usize <= MAX_PAYLOAD => Ok(Self { connection, length }),
            _ => Err(Oversized { connection, length }),
        }
    }

    /// Reads a header off the wire.
    ///
    /// # Errors
    /// When the length is over [`MAX_PAYLOAD`].
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, Oversized> {
        let [c0, c1, c2, c3, l0, l1, l2, l3] = bytes;
        Self::new(
            u32::from_be_bytes([c0, c1, c2, c3]),
            u32::from_be_bytes([l0, l1, l2, l3]) as usize,
        )
    }

    /// The header as it goes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [c0, c1, c2, c3] = self.connection.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [c0, c1, c2, c3, l0, l1, l2, l3]
    }

    /// The virtual connection that the payload belongs to.
    #[must_use]
    pub fn connection(self) -> u32 {
        self.connection
    }

    /// Bytes of payload that follow, at most [`MAX_PAYLOAD`].
    #[must_use]
    pub fn length(self) -> usize {
        self.length as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_on_the_wire() {
        let cases: [(u32, usize, [u8; 8]); 4] = [
            (1, 0, [0, 0, 0, 1, 0, 0, 0, 0]),
            (2, 10, [0, 0, 0, 2, 0, 0, 0, 10]),
            (0x0102_0304, 0x0001_0203, [1, 2, 3, 4, 0, 1, 2, 3]),
            (u32::MAX, MAX_PAYLOAD, [255, 255, 255, 255, 0, 0x40, 0, 10]),
        ];
        for (connection, length, bytes) in cases {
            let header = Header::new(connection, length).unwrap();
            assert_eq!(header.encode(), bytes);
            assert_eq!(Header::decode(bytes), Ok(header));
            assert_eq!((header.connection(), header.length()), (connection, length));
        }
    }

    #[test]
    fn lengths_over_the_limit_are_refused_either_way() {
        let cases: [([u8; 4], usize); 3] = [
            ([0, 0x40, 0, 11], MAX_PAYLOAD + 1),
            ([1, 0, 0, 0], 1 << 24),
            ([255; 4], u32::MAX as usize),
        ];
        for (wire, length) in cases {
            let refused = Oversized {
                connection: 7,
                length,
            };
            let [a, b, c, d] = wire;
            assert_eq!(Header::decode([0, 0, 0, 7, a, b, c, d]), Err(refused));
            assert_eq!(Header::new(7, length), Err(refused));
        }
    }

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn a_length_that_only_fits_after_truncation_is_refused() {
        assert!(Header::new(1, (1 << 32) + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_eight_bytes_are_a_header_that_encodes_back_or_oversized(bytes: [u8; 8]) {
            let length = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
            match Header::decode(bytes) {
                Ok(header) => {
                    prop_assert!(length <= MAX_PAYLOAD);
                    prop_assert_eq!(header.encode(), bytes);
                }
                Err(oversized) => {
                    prop_assert!(length > MAX_PAYLOAD);
                    prop_assert_eq!(oversized.length, length);
                }
            }
        }
    }
}
