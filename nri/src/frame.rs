//! The header of a frame on the socket: the virtual connection and the length of the payload.
//!
//! Pure: no I/O and no allocation, so that a fuzzer can call this code alone. Knows neither the purpose of
//! the connections nor the meaning of the payload.

/// The size of an encoded header in bytes: two big-endian `u32`, connection and length.
pub const HEADER_LEN: usize = 8;

/// The longest payload in bytes: a ttrpc message of 4 MiB and the 10 bytes of ttrpc's own header. NRI
/// splits longer writes at this size, so a longer frame is not from NRI.
pub const MAX_PAYLOAD: usize = 10 + (4 << 20);

/// The header of one frame.
///
/// Invariant: `length <= MAX_PAYLOAD`. Both constructors check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    connection: u32,
    length: u32,
}

/// The error for a length that no NRI peer sends: the reader has lost the frames' boundaries, or the peer
/// does not speak NRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a frame of {length} bytes for connection {connection} is over the limit of {MAX_PAYLOAD}: \
     is the peer an NRI runtime?"
)]
pub struct Oversized {
    /// The connection in the frame's header.
    pub connection: u32,
    /// The length in the frame's header, in bytes.
    pub length: usize,
}

impl Header {
    /// Returns the header of a payload of `length` bytes.
    ///
    /// # Errors
    /// When `length` is over [`MAX_PAYLOAD`].
    pub fn new(connection: u32, length: usize) -> Result<Self, Oversized> {
        match u32::try_from(length) {
            Ok(length) if length as usize <= MAX_PAYLOAD => Ok(Self { connection, length }),
            _ => Err(Oversized { connection, length }),
        }
    }

    /// Decodes a header.
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

    /// Encodes the header.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [c0, c1, c2, c3] = self.connection.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [c0, c1, c2, c3, l0, l1, l2, l3]
    }

    /// Returns the id of the virtual connection.
    #[must_use]
    pub fn connection(self) -> u32 {
        self.connection
    }

    /// Returns the length of the payload in bytes, at most [`MAX_PAYLOAD`].
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
    fn headers_are_encoded_as_nri_encodes_them() {
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
    fn both_constructors_reject_lengths_over_the_limit() {
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
    fn a_length_that_only_fits_after_truncation_is_rejected() {
        assert!(Header::new(1, (1 << 32) + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_eight_bytes_decode_to_a_header_that_encodes_to_them_or_are_oversized(bytes: [u8; 8]) {
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
