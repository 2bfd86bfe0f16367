//! Passes the bytes of a blocking writer on as the pieces of a blob. The queue is bounded. If the writer fails,
//! no end is sent.

use std::io::{self, Write};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::containerd::{BlobChunk, Descriptor};

/// The size of one piece in bytes: large against the cost of a message, well below containerd's limit of
/// 16 MiB.
const PIECE: usize = 512 << 10;

/// The number of pieces in the queue: enough to keep both sides busy. A rebuild keeps these pieces and the one
/// on each side in memory, for a layer of any size.
pub(super) const WAITING: usize = 4;

/// The image specification's media type of a layer without compression.
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A writer that sends its bytes in pieces.
pub(super) struct Chunks {
    sender: mpsc::Sender<BlobChunk>,
    piece: Vec<u8>,
    digest: Sha256,
    size: u64,
}

impl Chunks {
    /// Returns a writer for this channel. A write fails if the receiver was dropped.
    pub(super) fn new(sender: mpsc::Sender<BlobChunk>) -> Self {
        Self {
            sender,
            piece: Vec::with_capacity(PIECE),
            digest: Sha256::new(),
            size: 0,
        }
    }

    /// Ends the blob: sends its digest and size. Returns its descriptor.
    pub(super) fn end(mut self) -> io::Result<Descriptor> {
        self.flush()?;
        let hex: String = self
            .digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let digest = format!("sha256:{hex}");
        let end = BlobChunk::End {
            digest: digest.clone(),
            size: self.size,
        };
        send(&self.sender, end)?;
        Ok(Descriptor {
            media_type: TAR_LAYER.to_owned(),
            digest,
            size: self.size.try_into().unwrap_or(i64::MAX),
            ..Default::default()
        })
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PIECE - self.piece.len())];
        self.piece.extend_from_slice(taken);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    /// Sends the buffered bytes as a piece.
    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.digest.update(&piece);
        self.size += piece.len() as u64;
        send(&self.sender, BlobChunk::Data(piece))
    }
}

fn send(sender: &mpsc::Sender<BlobChunk>, piece: BlobChunk) -> io::Result<()> {
    let sent = sender.blocking_send(piece);
    sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the write of the blob has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::sha256;

    #[test]
    fn pieces_have_one_size_and_their_sum_is_the_blob() {
        let bytes: Vec<u8> = (0..PIECE * 2 + 10).map(|i| i as u8).collect();
        let (sender, mut receiver) = mpsc::channel(10);
        let mut chunks = Chunks::new(sender);
        for part in bytes.chunks(1000) {
            chunks.write_all(part).unwrap();
        }
        let blob = chunks.end().unwrap();
        assert_eq!(blob.digest, sha256(&bytes));
        let mut sizes = vec![];
        let mut end = None;
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                BlobChunk::Data(data) => sizes.push(data.len()),
                BlobChunk::End { digest, size } => end = Some((digest, size)),
            }
        }
        assert_eq!(sizes, [PIECE, PIECE, 10]);
        assert_eq!(end, Some((blob.digest, bytes.len() as u64)));
    }

    #[test]
    fn a_write_without_a_receiver_fails() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let mut chunks = Chunks::new(sender);
        let error = chunks.write_all(&vec![0; PIECE]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
