//! Signed statements on converted images: which source image a converted image was made from, and
//! in which generation.
//!
//! ```text
//! converted manifest ▶ statement (in-toto, SLSA provenance) ─┐
//!                                             private key ───┴▶ envelope (DSSE) ▶ artifact that
//!                                                                                 refers to the image
//! envelope + trusted public keys ▶ payload ▶ statement ▶ does it name this digest?
//! ```
//! Pure: no file but the keys', no network, no clock. The format stands in docs/SPECIFICATION.md.

mod envelope;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod keys;
mod signed;
mod statement;
#[cfg(test)]
mod tests;
mod verify;

pub use envelope::{Envelope, EnvelopeError, MAX_ENVELOPE_BYTES, MEDIA_TYPE, pae};
pub use keys::{KeyError, KeyId, PublicKey, SignError, SigningKey, TrustedKeys};
pub use signed::{SigningError, document_of, is_statement, sign, source_of};
pub use statement::{Provenance, Statement, StatementError, Subject};
pub use verify::{Refusal, Verified, unverified, verify};
