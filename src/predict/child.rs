//! The predictor's process: it sets its limits first, then reads the image piece by piece.

use std::cell::RefCell;
use std::io::{self, BufWriter, Write};

use bytes::Bytes;

use super::blobs::{Piece, Task};
use super::sandbox::{self, Limits};
use super::wire::{self, MAX_GIVEN, Said};

/// Predicts for the parent, which holds the other ends of standard input and output.
///
/// # Errors
/// If the limits cannot be set, or the parent has exited.
pub fn work(limits: &Limits) -> io::Result<()> {
    let pipes = RefCell::new((io::stdin().lock(), BufWriter::new(io::stdout().lock())));
    let is_filtered = sandbox::enter(limits)?;
    send(&mut pipes.borrow_mut().1, &Said::Ready { is_filtered })?;
    let task = wire::read(&mut pipes.borrow_mut().0, MAX_GIVEN)?;
    let task: Task = serde_json::from_slice(&task)?;
    let read = |pieces: &[Piece]| -> io::Result<Vec<Bytes>> {
        let (input, output) = &mut *pipes.borrow_mut();
        send(output, &Said::Read(pieces.to_vec()))?;
        pieces
            .iter()
            .map(|_piece| wire::read(input, MAX_GIVEN).map(Bytes::from))
            .collect()
    };
    let message = match super::predict(&task, Box::new(read)) {
        Ok(prediction) => Said::Done(prediction),
        Err(why) => Said::Failed(why),
    };
    let (_, output) = &mut *pipes.borrow_mut();
    send(output, &message)
}

fn send(output: &mut impl Write, message: &Said) -> io::Result<()> {
    wire::write(output, &serde_json::to_vec(message)?)
}
