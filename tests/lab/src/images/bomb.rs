//! A layer that is small as a blob and large on the disk.

use std::io::Write;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tar::{EntryType, Header};

use super::Compression;

/// What is compressed once, and then repeated.
const PIECE: usize = 16 << 20;

/// Returns the blob of a layer with one file of zeros, of so many times 16 MiB. The compressed pieces follow one another,
/// as both formats allow.
pub fn bomb(pieces: usize, compression: Compression) -> Vec<u8> {
    let compress = |bytes: &[u8]| match compression {
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Level::best());
            encoder
                .write_all(bytes)
                .and_then(|()| encoder.finish())
                .expect("a Vec takes everything")
        }
        Compression::Zstd => compress_to_vec(bytes, CompressionLevel::Fastest),
        Compression::None => bytes.to_vec(),
    };
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_path("zeros").expect("a short path");
    header.set_mode(0o644);
    header.set_size((pieces * PIECE) as u64);
    header.set_cksum();
    let piece = compress(&vec![0; PIECE]);
    [
        compress(header.as_bytes()),
        piece.repeat(pieces),
        compress(&[0; 1024]),
    ]
    .concat()
}
