//! Verifies a whole blob against its digest while it streams.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::error::Error;
use crate::oci::Digest;

/// Passes `size` bytes on. The last chunk follows only after all bytes are verified to have the
/// digest `expected`.
pub(crate) fn verified(
    bytes: BoxStream<'static, Result<Bytes, Error>>,
    expected: Digest,
    size: u64,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let state = (bytes, expected.hasher(), size, false);
    let checked = stream::try_unfold(state, move |(mut bytes, mut hasher, left, done)| {
        let expected = expected.clone();
        async move {
            if done {
                return Ok(None);
            }
            let wrong = || Error::WrongDigest {
                expected: expected.clone(),
            };
            let chunk = match bytes.next().await.transpose()? {
                Some(chunk) => chunk,
                None if left > 0 => {
                    return Err(Error::Unavailable("blob ends too early".to_owned()));
                }
                None => Bytes::new(),
            };
            let left = left.checked_sub(chunk.len() as u64).ok_or_else(wrong)?;
            hasher.update(&chunk);
            if left == 0 && hasher.clone().finish() != expected {
                return Err(wrong());
            }
            Ok(Some((chunk, (bytes, hasher, left, left == 0))))
        }
    });
    checked.boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    async fn check(chunks: &[&'static [u8]], whole: &[u8]) -> (Vec<u8>, Result<(), Error>) {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok(Bytes::from_static(chunk)))
            .collect();
        let mut stream = verified(
            stream::iter(chunks).boxed(),
            Digest::sha256_of(whole),
            whole.len() as u64,
        );
        let mut got = Vec::new();
        loop {
            match stream.try_next().await {
                Ok(Some(chunk)) => got.extend_from_slice(&chunk),
                Ok(None) => return (got, Ok(())),
                Err(error) => return (got, Err(error)),
            }
        }
    }

    #[tokio::test]
    async fn right_bytes_pass() {
        assert!(matches!(check(&[b"ab", b"c"], b"abc").await, (got, Ok(())) if got == b"abc"));
        assert!(matches!(check(&[], b"").await, (got, Ok(())) if got.is_empty()));
    }

    #[tokio::test]
    async fn wrong_bytes_end_in_an_error_instead_of_the_last_chunk() {
        let (got, end) = check(&[b"ab", b"x"], b"abc").await;
        assert!(matches!(end, Err(Error::WrongDigest { .. })));
        assert_eq!(got, b"ab");
        assert!(matches!(
            check(&[b"ab", b"cd"], b"abc").await.1,
            Err(Error::WrongDigest { .. })
        ));
        assert!(matches!(
            check(&[b"ab"], b"abc").await.1,
            Err(Error::Unavailable(_))
        ));
    }
}
