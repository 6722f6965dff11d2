//! One answer with a part of a blob: its request, and the part that it really holds.
//!
//! The answer to GET is authoritative. HEAD is used only for a size, and is only believed if GET
//! does not state one.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::answer::Answer;
use super::client::{PULL, Registry};
use super::endpoint::{Endpoint, Read};
use super::error::Error;
use super::headers::content_range;
use super::http::Fetch;
use super::memory::Target;
use super::starlift::Purpose;
use crate::oci::{Digest, Repository};

/// The longest suffix range, because registries written in Go read it as a signed number.
const MAX_TAIL: u64 = i64::MAX as u64;
/// The most bytes of a blob of unknown size that are kept while its size is measured. The bytes of
/// a longer one are requested again. Configurations and small layers fit.
const MAX_HELD: usize = 4 << 20;

pub(super) type Chunks = BoxStream<'static, Result<Bytes, Error>>;

/// A part of a blob, from one answer.
pub(super) struct Part {
    pub(super) blob_size: u64,
    pub(super) range: Range<u64>,
    pub(super) chunks: Chunks,
    /// The number of the endpoint that sent it.
    pub(super) number: usize,
    /// Whether that endpoint is a Starlift server.
    pub(super) starlift: bool,
}

/// The requested part of a blob.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    Whole,
    /// Not empty.
    Range(Range<u64>),
    /// The last bytes, at least one.
    Tail(u64),
}

/// A blob at one endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) repository: &'a Repository,
    pub(super) digest: &'a Digest,
    pub(super) purpose: Option<Purpose>,
}

/// The blob's size, the range of the bytes in it, the bytes.
type Sized = (u64, Range<u64>, Chunks);

/// The content of an answer.
enum PartContent {
    Part(Sized),
    /// A range of a blob whose size is not stated. Its end is `u64::MAX` if that is unknown too.
    WithoutSize(Range<u64>, Chunks),
    /// The blob's size, without the requested bytes.
    OnlySize(u64),
    /// Bytes that were not requested.
    Other,
}

impl Registry {
    pub(super) async fn part(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: &Wanted,
        purpose: Option<Purpose>,
    ) -> Result<Part, Error> {
        self.try_each(PULL, Some(digest), |number, endpoint| async move {
            let blob = Blob {
                endpoint,
                repository,
                digest,
                purpose,
            };
            let (blob_size, range, chunks) = blob.part(wanted).await?;
            Ok(Part {
                blob_size,
                range,
                chunks,
                number,
                starlift: endpoint.is_starlift(),
            })
        })
        .await
    }
}

impl Blob<'_> {
    async fn part(&self, wanted: &Wanted) -> Result<Sized, Error> {
        let size = match self.ask(wanted).await {
            Ok(PartContent::Part(part)) => return Ok(part),
            Ok(PartContent::WithoutSize(range, chunks)) => {
                return self.sized(wanted, range, chunks).await;
            }
            Ok(PartContent::OnlySize(size)) => size,
            Ok(PartContent::Other) => return self.cut_from_whole(wanted).await,
            // Some registries refuse a suffix longer than the blob, and some stores refuse every
            // suffix.
            Err(Error::RangeNotSatisfiable { size: Some(size) }) if wanted.is_tail() => size,
            Err(Error::RangeNotSatisfiable { .. } | Error::Malformed(_)) if wanted.is_tail() => {
                self.size().await?
            }
            // Some registries reject ranges.
            Err(Error::Malformed(_)) if wanted.is_range() => {
                return self.cut_from_whole(wanted).await;
            }
            Err(error) => return Err(error),
        };
        let Some(range) = wanted.within(size) else {
            return cut(wanted, size, 0..size, stream::empty().boxed());
        };
        match self.ask(&range).await {
            Ok(PartContent::Part(part)) => Ok(part),
            Ok(PartContent::WithoutSize(given, chunks)) => cut(wanted, size, given, chunks),
            Ok(PartContent::OnlySize(_) | PartContent::Other) | Err(Error::Malformed(_)) => {
                self.cut_from_whole(wanted).await
            }
            Err(error) => Err(error),
        }
    }

    async fn ask(&self, wanted: &Wanted) -> Result<PartContent, Error> {
        let targets = &self.endpoint.http().context().memory.targets;
        let target = (
            self.endpoint.id(),
            self.repository.clone(),
            self.digest.clone(),
        );
        let remembered = match wanted {
            Wanted::Whole => None,
            Wanted::Range(_) | Wanted::Tail(_) => self.remembered(&target, wanted).await,
        };
        let answer = match remembered {
            Some(answer) => answer,
            None => {
                let read = Read::get(self.repository, self.path());
                self.endpoint
                    .read(&Read {
                        headers: wanted.headers()?,
                        purpose: self.purpose,
                        ..read
                    })
                    .await?
            }
        };
        if !answer.is_own {
            targets.insert(target, answer.url.clone()).await;
        }
        Ok(found_in(answer, wanted))
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest)
    }

    /// Reads directly from the last target of a redirect, while that works.
    async fn remembered(&self, target: &Target, wanted: &Wanted) -> Option<Answer> {
        let http = self.endpoint.http();
        if http.health().is_bad(self.endpoint.key(), self.digest) {
            return None;
        }
        let url = http.context().memory.targets.get(target).await?;
        let fetch = Fetch {
            method: Method::GET,
            url,
            headers: wanted.headers().ok()?,
            secrets: HeaderMap::new(),
        };
        match http.fetch(&fetch).await.and_then(Answer::accepted) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "cached redirect failed");
                http.context().memory.targets.invalidate(target).await;
                None
            }
        }
    }

    /// Cuts the wanted part from an answer that does not state the blob's size.
    async fn sized(
        &self,
        wanted: &Wanted,
        given: Range<u64>,
        chunks: Chunks,
    ) -> Result<Sized, Error> {
        if let Some(size) = self.stated_size().await? {
            return cut(wanted, size, given, chunks);
        }
        drop(chunks);
        match self.measured().await? {
            (size, Some(bytes)) => cut(wanted, size, 0..size, stream::iter([Ok(bytes)]).boxed()),
            (_, None) => self.cut_from_whole(wanted).await,
        }
    }

    /// Cuts the wanted part from the whole blob, for endpoints that do not support ranges.
    async fn cut_from_whole(&self, wanted: &Wanted) -> Result<Sized, Error> {
        let without = || Error::Malformed("blob without a size".to_owned());
        match self.ask(&Wanted::Whole).await? {
            PartContent::Part((size, given, chunks)) => cut(wanted, size, given, chunks),
            PartContent::WithoutSize(given, chunks) => match self.stated_size().await? {
                Some(size) => cut(wanted, size, given, chunks),
                None => {
                    drop(chunks);
                    let (size, bytes) = self.measured().await?;
                    let bytes = bytes.ok_or_else(without)?;
                    cut(wanted, size, 0..size, stream::iter([Ok(bytes)]).boxed())
                }
            },
            PartContent::OnlySize(_) | PartContent::Other => Err(without()),
        }
    }

    /// Returns the size of the blob.
    pub(super) async fn size(&self) -> Result<u64, Error> {
        match self.stated_size().await? {
            Some(size) => Ok(size),
            None => self.measured().await.map(|(size, _)| size),
        }
    }

    /// Returns the size that the endpoint states in one way or another; `None` if the blob exists
    /// and no answer states it.
    async fn stated_size(&self) -> Result<Option<u64>, Error> {
        if let Some(size) = self
            .endpoint
            .http()
            .context()
            .memory
            .sizes
            .get(self.digest)
            .await
        {
            return Ok(Some(size));
        }
        // Some registries, and signed URLs made for GET, do not support HEAD. Some always answer it
        // with the size 0.
        let head = self
            .endpoint
            .read(&Read::head(self.repository, self.path()))
            .await;
        if let Some(size) = head
            .ok()
            .and_then(|answer| content_length(&answer))
            .filter(|size| *size > 0)
        {
            return Ok(Some(size));
        }
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
        let get = Read {
            headers,
            ..Read::get(self.repository, self.path())
        };
        match self.endpoint.read(&get).await {
            Ok(answer) if answer.status() == StatusCode::PARTIAL_CONTENT => {
                Ok(content_range(answer.headers()).and_then(|(_, size)| size))
            }
            Ok(answer) => Ok(content_length(&answer)),
            Err(Error::RangeNotSatisfiable { size: Some(0) }) => Ok(Some(0)),
            Err(Error::RangeNotSatisfiable { .. } | Error::Malformed(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the whole blob to measure its size, which is cached once the digest is verified.
    /// Returns the bytes too if they are few.
    async fn measured(&self) -> Result<(u64, Option<Bytes>), Error> {
        let context = self.endpoint.http().context();
        let full = |full: crate::budget::Full| Error::Unavailable(full.to_string());
        let _weight = context
            .reading
            .documents
            .take(MAX_HELD as u64)
            .await
            .map_err(full)?;
        let mut chunks = self
            .endpoint
            .read(&Read::get(self.repository, self.path()))
            .await?
            .chunks();
        let (mut hasher, mut size, mut held) = (self.digest.hasher(), 0, Some(BytesMut::new()));
        while let Some(chunk) = chunks.next().await.transpose()? {
            hasher.update(&chunk);
            size += chunk.len() as u64;
            held = held.filter(|held| held.len() + chunk.len() <= MAX_HELD);
            if let Some(held) = &mut held {
                held.extend_from_slice(&chunk);
            }
        }
        if hasher.finish() != *self.digest {
            return Err(Error::WrongDigest {
                expected: self.digest.clone(),
            });
        }
        context.memory.sizes.insert(self.digest.clone(), size).await;
        Ok((size, held.map(BytesMut::freeze)))
    }
}

impl Wanted {
    fn is_tail(&self) -> bool {
        matches!(self, Self::Tail(_))
    }

    fn is_range(&self) -> bool {
        matches!(self, Self::Range(_))
    }

    /// Returns the part as a range in a blob of `size` bytes; `None` if it is empty.
    fn within(&self, size: u64) -> Option<Self> {
        let range = match self {
            Self::Whole => 0..size,
            Self::Range(range) => range.start..range.end.min(size),
            Self::Tail(length) => size.saturating_sub(*length)..size,
        };
        (!range.is_empty()).then_some(Self::Range(range))
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        Ok(self.header()?.into_iter().collect())
    }

    fn header(&self) -> Result<Option<(HeaderName, HeaderValue)>, Error> {
        let text = match self {
            Self::Whole => return Ok(None),
            Self::Range(Range {
                start,
                end: u64::MAX,
            }) => format!("bytes={start}-"),
            // The end of a range that is not empty is at least 1.
            Self::Range(Range { start, end }) => format!("bytes={start}-{}", end.saturating_sub(1)),
            Self::Tail(length) => format!("bytes=-{}", length.min(&MAX_TAIL)),
        };
        let value =
            HeaderValue::try_from(text).map_err(|error| Error::Malformed(error.to_string()))?;
        Ok(Some((RANGE, value)))
    }
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.trim().parse().ok()
}

fn found_in(answer: Answer, wanted: &Wanted) -> PartContent {
    let is_partial = answer.status() == StatusCode::PARTIAL_CONTENT;
    let (given, length) = (content_range(answer.headers()), content_length(&answer));
    let chunks = answer.chunks();
    if is_partial {
        return given.map_or(PartContent::Other, |(range, size)| {
            partial(range, size, chunks, wanted)
        });
    }
    match (wanted, length) {
        (_, None) => PartContent::WithoutSize(0..u64::MAX, chunks),
        // The answer is dropped unread, because the blob may be long and the endpoint may support
        // ranges by position.
        (Wanted::Tail(tail), Some(size)) if *tail < size => PartContent::OnlySize(size),
        (_, Some(size)) => cut(wanted, size, 0..size, chunks)
            .map_or(PartContent::OnlySize(size), PartContent::Part),
    }
}

/// Interprets a 206, which holds the range that it states, not always the requested one.
fn partial(given: Range<u64>, size: Option<u64>, chunks: Chunks, wanted: &Wanted) -> PartContent {
    let is_useful = match (wanted, size) {
        (Wanted::Whole, _) => given.start == 0,
        (Wanted::Range(wanted), _) => given.contains(&wanted.start),
        (Wanted::Tail(tail), Some(size)) if given.start == size.saturating_sub(*tail) => true,
        (Wanted::Tail(_), Some(size)) => return PartContent::OnlySize(size),
        // The last bytes end at the end of the blob.
        (Wanted::Tail(tail), None) if given.end - given.start == *tail || given.start == 0 => {
            return PartContent::Part((given.end, given, chunks));
        }
        (Wanted::Tail(_), None) => false,
    };
    match size {
        _ if !is_useful => PartContent::Other,
        Some(size) => {
            cut(wanted, size, given, chunks).map_or(PartContent::Other, PartContent::Part)
        }
        None => PartContent::WithoutSize(given, chunks),
    }
}

/// Cuts the wanted part, or the beginning of it, from the bytes `given` of a blob of `size` bytes.
fn cut(wanted: &Wanted, size: u64, given: Range<u64>, chunks: Chunks) -> Result<Sized, Error> {
    let range = match wanted.within(size) {
        Some(Wanted::Range(range)) => range,
        _ if wanted.is_range() => return Err(Error::RangeNotSatisfiable { size: Some(size) }),
        _ => return Ok((size, size..size, stream::empty().boxed())),
    };
    let end = range.end.min(given.end);
    if range.start < given.start || range.start >= end {
        return Err(Error::Malformed(
            "answer holds another range than requested".to_owned(),
        ));
    }
    Ok((
        size,
        range.start..end,
        without_first(chunks, range.start - given.start),
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_range_header() {
        let text = |wanted: Wanted| {
            let header = wanted.header().unwrap();
            header.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(text(Wanted::Whole), None);
        assert_eq!(text(Wanted::Range(5..10)).as_deref(), Some("bytes=5-9"));
        assert_eq!(
            text(Wanted::Range(5..u64::MAX)).as_deref(),
            Some("bytes=5-")
        );
        assert_eq!(text(Wanted::Tail(51)).as_deref(), Some("bytes=-51"));
        assert_eq!(
            text(Wanted::Tail(u64::MAX)).as_deref(),
            Some("bytes=-9223372036854775807")
        );
    }
}
