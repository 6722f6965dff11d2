//! Blobs of a registry: whole or in part, taken up again where a connection broke.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::Body;
use super::answer::Answer;
use super::endpoint::{Endpoint, Read};
use super::error::Error;
use super::http::Fetch;
use super::registry::{Registry, Target};
use super::verify::verified;
use crate::oci::{Digest, Repository};

/// A blob that got this much further has its attempts back: one that breaks every few bytes must come to an end.
const PROGRESS: u64 = 1 << 20;

type Chunks = BoxStream<'static, Result<Bytes, Error>>;

/// A part of a blob as one answer gives it.
struct Part {
    blob_size: u64,
    range: Range<u64>,
    chunks: Chunks,
}

impl Registry {
    pub(super) async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
        self.try_each(|_, endpoint| size_at(endpoint, repository, digest)).await
    }

    /// A blob's bytes; a range is cut at the blob's end, and one that starts behind it is an error.
    pub(super) async fn blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<Body, Error> {
        if let Some(range) = range.as_ref().filter(|range| range.is_empty()) {
            let blob_size = self.blob_size(repository, digest).await?;
            return Ok(Body { blob_size, range: range.start..range.start, stream: stream::empty().boxed() });
        }
        let part = self.part(repository, digest, range.as_ref()).await?;
        let (blob_size, got) = (part.blob_size, part.range.clone());
        let is_whole = got == (0..blob_size);
        let reading = Reading {
            registry: Arc::clone(self),
            repository: repository.clone(),
            digest: digest.clone(),
            blob_size,
            left: got.clone(),
            chunks: Some(part.chunks),
            failures: 0,
            progress: 0,
        };
        let chunks = reading.stream();
        let stream = if is_whole { verified(chunks, digest.clone(), blob_size) } else { chunks };
        Ok(Body { blob_size, range: got, stream })
    }

    async fn part(&self, repository: &Repository, digest: &Digest, range: Option<&Range<u64>>) -> Result<Part, Error> {
        self.try_each(|number, endpoint| async move {
            let target = (number, repository.clone(), digest.clone());
            let remembered = match range {
                Some(range) => self.remembered(endpoint, &target, range).await,
                None => None,
            };
            let answer = match remembered {
                Some(answer) => answer,
                None => {
                    let headers = range.map(range_header).transpose()?.into_iter().collect();
                    let read = Read::get(repository, format!("blobs/{digest}"));
                    endpoint.read(&Read { headers, ..read }).await?
                }
            };
            if !answer.is_own {
                self.targets.insert(target, answer.url.clone()).await;
            }
            match part_of(answer, range)? {
                Found::Part(part) => Ok(part),
                Found::WithoutSize(chunks) => {
                    let blob_size = size_at(endpoint, repository, digest).await?;
                    Ok(Part { blob_size, range: 0..blob_size, chunks })
                }
            }
        })
        .await
    }

    /// Reads straight from where the registry redirected to the last time, while that works.
    async fn remembered(&self, endpoint: &Endpoint, target: &Target, range: &Range<u64>) -> Option<Answer> {
        let url = self.targets.get(target).await?;
        let headers = HeaderMap::from_iter([range_header(range).ok()?]);
        let fetch = Fetch { method: Method::GET, url, headers, authorization: None };
        match endpoint.http().fetch(&fetch).await.and_then(Answer::accepted) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "a remembered redirect works no more");
                self.targets.invalidate(target).await;
                None
            }
        }
    }
}

fn range_header(range: &Range<u64>) -> Result<(reqwest::header::HeaderName, HeaderValue), Error> {
    // The end of a range that is not empty is at least 1.
    let text = match range.end {
        u64::MAX => format!("bytes={}-", range.start),
        end => format!("bytes={}-{}", range.start, end.saturating_sub(1)),
    };
    let value = HeaderValue::try_from(text).map_err(|error| Error::Malformed(error.to_string()))?;
    Ok((RANGE, value))
}

async fn size_at(endpoint: &Endpoint, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
    let path = format!("blobs/{digest}");
    match endpoint.read(&Read::head(repository, path.clone())).await {
        Ok(answer) => {
            if let Some(size) = content_length(&answer) {
                return Ok(size);
            }
        }
        // Some registries, and signed URLs made for GET, know no HEAD.
        Err(Error::Malformed(_) | Error::Denied) => {}
        Err(error) => return Err(error),
    }
    let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
    let answer = endpoint.read(&Read { headers, ..Read::get(repository, path) }).await;
    let answer = match answer {
        Err(Error::RangeNotSatisfiable { size: Some(0) }) => return Ok(0),
        other => other?,
    };
    let size = match answer.status() {
        StatusCode::PARTIAL_CONTENT => content_range(&answer).map(|(_, size)| size),
        _ => content_length(&answer),
    };
    size.ok_or_else(|| Error::Malformed("nothing says how long the blob is".to_owned()))
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.parse().ok()
}

/// `Content-Range: bytes FIRST-LAST/SIZE`.
fn content_range(answer: &Answer) -> Option<(Range<u64>, u64)> {
    parse_content_range(answer.header(CONTENT_RANGE)?)
}

fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then_some((first..last + 1, size))
}

enum Found {
    Part(Part),
    /// A whole blob of a length that is not said.
    WithoutSize(Chunks),
}

fn part_of(answer: Answer, wanted: Option<&Range<u64>>) -> Result<Found, Error> {
    let is_partial = answer.status() == StatusCode::PARTIAL_CONTENT;
    let (given, length) = (content_range(&answer), content_length(&answer));
    let chunks = answer.chunks();
    match (is_partial, wanted) {
        (false, None) => Ok(match length {
            Some(size) => Found::Part(Part { blob_size: size, range: 0..size, chunks }),
            None => Found::WithoutSize(chunks),
        }),
        // The range was ignored: what lies before it is thrown away.
        (false, Some(wanted)) => {
            let size = length.ok_or_else(|| Error::Malformed("a blob of unknown length".to_owned()))?;
            if wanted.start >= size {
                return Err(Error::RangeNotSatisfiable { size: Some(size) });
            }
            let chunks = without_first(chunks, wanted.start);
            Ok(Found::Part(Part { blob_size: size, range: wanted.start..wanted.end.min(size), chunks }))
        }
        (true, Some(wanted)) => match given {
            Some((range, size)) if range.start == wanted.start && range.end <= wanted.end => {
                Ok(Found::Part(Part { blob_size: size, range, chunks }))
            }
            _ => Err(Error::Malformed("the answer holds another range than was asked for".to_owned())),
        },
        (true, None) => Err(Error::Malformed("a part where the whole was asked for".to_owned())),
    }
}

fn without_first(chunks: Chunks, count: u64) -> Chunks {
    let state = (chunks, count);
    let skipped = stream::try_unfold(state, |(mut chunks, mut skip)| async move {
        while let Some(mut chunk) = chunks.next().await.transpose()? {
            let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= cut as u64;
            let rest = chunk.split_off(cut);
            if !rest.is_empty() {
                return Ok(Some((rest, (chunks, skip))));
            }
        }
        Ok(None)
    });
    skipped.boxed()
}

/// A blob on its way, and what is needed to ask for the rest of it again.
struct Reading {
    registry: Arc<Registry>,
    repository: Repository,
    digest: Digest,
    blob_size: u64,
    left: Range<u64>,
    chunks: Option<Chunks>,
    failures: u32,
    /// Bytes since the last failure.
    progress: u64,
}

impl Reading {
    fn stream(self) -> Chunks {
        stream::try_unfold(self, |mut reading| async move { Ok(reading.next().await?.map(|chunk| (chunk, reading))) })
            .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.left.is_empty() {
            let chunks = match &mut self.chunks {
                Some(chunks) => chunks,
                None => {
                    let chunks = self.reopen().await?;
                    self.chunks.insert(chunks)
                }
            };
            match chunks.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => return Ok(Some(self.take(chunk))),
                Some(Err(error)) => self.broke_off(error).await?,
                None => self.broke_off(Error::Unavailable("the body ends too early".to_owned())).await?,
            }
        }
        Ok(None)
    }

    fn take(&mut self, mut chunk: Bytes) -> Bytes {
        let wanted = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
        chunk.truncate(wanted);
        self.left.start += chunk.len() as u64;
        self.progress += chunk.len() as u64;
        if self.progress >= PROGRESS {
            self.failures = 0;
        }
        chunk
    }

    /// Waits until it is time to try again; gives the error back when it is not worth it.
    async fn broke_off(&mut self, error: Error) -> Result<(), Error> {
        let Some(pause) = self.registry.retry.pause_after(self.failures, &error) else { return Err(error) };
        tracing::debug!(digest = %self.digest, at = self.left.start, %error, "a blob is taken up where it broke off");
        self.chunks = None;
        self.failures += 1;
        self.progress = 0;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn reopen(&mut self) -> Result<Chunks, Error> {
        let part = self.registry.part(&self.repository, &self.digest, Some(&self.left)).await?;
        if part.blob_size != self.blob_size {
            return Err(Error::WrongDigest { expected: self.digest.clone() });
        }
        Ok(part.chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_make_sense_or_are_none() {
        assert_eq!(parse_content_range("bytes 0-0/1"), Some((0..1, 1)));
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5..10, 100)));
        for text in ["", "bytes */5", "bytes 5-4/100", "bytes 5-100/100", "bytes 0-18446744073709551615/*", "0-1/2"] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }
}
