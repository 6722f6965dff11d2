//! The two ends of a conversion's blocking thread: pieces come in from the upstream and go out to
//! the store.

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use estargz::Footer;
use tokio::sync::mpsc;

use super::budget::OUTPUT_PIECE;
use super::status::LayerProgress;
use crate::layers::open::Tail;

/// Bytes kept of the end of a layer to recognize a lazily readable one. At least the length of the
/// longest footer.
const TAIL_LEN: usize = 128;

/// A message to the blocking thread. A channel that closes without `End` lost its sender in the
/// middle of the layer.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// The layer is complete and has the expected digest.
    End,
}

/// A reader of the source layer as the upstream stores it.
#[derive(Debug)]
pub(super) struct SourceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    tail: Vec<u8>,
    length: u64,
    progress: Arc<LayerProgress>,
}

impl SourceReader {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>, progress: Arc<LayerProgress>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            ended: false,
            tail: Vec::new(),
            length: 0,
            progress,
        }
    }

    /// Reads to the end, so that the digest is checked whatever the content was.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        while !self.fill_buf()?.is_empty() {
            self.current.clear();
        }
        Ok(())
    }

    /// Returns the footer of a lazily readable layer. The layer must have been read to its end.
    pub(super) fn footer(&self) -> Option<Footer> {
        Tail::new(self.length, self.tail.clone()).footer().ok()
    }

    fn keep_tail(&mut self) {
        let new = &self.current[self.current.len().saturating_sub(TAIL_LEN)..];
        let surplus = (self.tail.len() + new.len()).saturating_sub(TAIL_LEN);
        self.tail.drain(..surplus);
        self.tail.extend_from_slice(new);
    }
}

impl BufRead for SourceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    self.length += bytes.len() as u64;
                    self.progress.add(bytes.len() as u64);
                    self.current = bytes;
                    self.keep_tail();
                }
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "layer ended early",
                    ));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// A writer that gathers the converted layer into pieces for the store.
#[derive(Debug)]
pub(super) struct StoreWriter {
    pieces: mpsc::Sender<Bytes>,
    gathered: BytesMut,
}

impl StoreWriter {
    pub(super) fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        Self {
            pieces,
            gathered: BytesMut::with_capacity(OUTPUT_PIECE),
        }
    }
}

impl Write for StoreWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(OUTPUT_PIECE - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..length]);
        if self.gathered.len() == OUTPUT_PIECE {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece =
            std::mem::replace(&mut self.gathered, BytesMut::with_capacity(OUTPUT_PIECE)).freeze();
        self.pieces.blocking_send(piece).map_err(|_closed| {
            io::Error::new(io::ErrorKind::BrokenPipe, "upload to the store has ended")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(pieces: Vec<Piece>) -> SourceReader {
        let (sender, receiver) = mpsc::channel(16);
        for piece in pieces {
            sender.try_send(piece).unwrap();
        }
        SourceReader::new(receiver, Arc::default())
    }

    #[test]
    fn an_end_mark_differs_from_a_closed_channel() {
        let bytes = || Piece::Bytes(Bytes::from_static(b"abc"));
        let mut text = String::new();
        reader(vec![
            bytes(),
            Piece::Bytes(Bytes::new()),
            bytes(),
            Piece::End,
        ])
        .read_to_string(&mut text)
        .unwrap();
        assert_eq!(text, "abcabc");
        assert!(reader(vec![bytes()]).read_to_string(&mut text).is_err());
    }

    #[test]
    fn the_tail_is_kept_across_pieces() {
        let layer: Vec<u8> = (0..200).collect();
        for size in [1, 7, 127, 128, 130, 200] {
            let mut pieces: Vec<_> = layer
                .chunks(size)
                .map(|piece| Piece::Bytes(Bytes::copy_from_slice(piece)))
                .collect();
            pieces.push(Piece::End);
            let (sender, receiver) = mpsc::channel(pieces.len());
            pieces
                .into_iter()
                .for_each(|piece| sender.try_send(piece).unwrap());
            let mut reader = SourceReader::new(receiver, Arc::default());
            reader.drain().unwrap();
            assert_eq!(reader.tail, &layer[200 - TAIL_LEN..], "pieces of {size}");
        }
    }

    #[test]
    fn output_leaves_in_pieces_and_nothing_is_lost() {
        let (sender, mut receiver) = mpsc::channel(16);
        let mut writer = StoreWriter::new(sender);
        let bytes = vec![5; OUTPUT_PIECE * 2 + 10];
        writer.write_all(&bytes).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let mut lengths = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            lengths.push(piece.len());
        }
        assert_eq!(lengths, [OUTPUT_PIECE, OUTPUT_PIECE, 10]);
    }
}
