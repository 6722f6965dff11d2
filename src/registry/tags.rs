//! Lists of tags. If the upstream pages as the specification says, one page is passed on. If it
//! names its pages in another way, or has no pages or no order, all tags are collected and cut
//! here.

use std::sync::Arc;

use url::Url;

use super::endpoint::{Endpoint, Read};
use super::error::{Error, excerpt};
use super::headers::next_link;
use crate::aside::aside;
use crate::oci::{Repository, stream};

/// The longest answer. Docker Hub lists up to 10,000 tags in one.
const MAX_ANSWER: u64 = 4 << 20;
/// The most pages of one list. A registry that names pages by tokens puts 50 or 100 tags on each.
const MAX_PAGES: usize = 500;
/// The bytes of all pages together: 100,000 tags of the greatest length.
const MAX_BYTES: u64 = 16 << 20;
/// The most tags of one list; more are listed only by registries that page as the specification
/// says.
const MAX_TAGS: usize = 100_000;
/// The memory of a tag besides its text.
const TAG_BYTES: usize = size_of::<String>() + 16;
/// The longest tag (distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;
/// The size of a page if the request does not state one. A longer answer is cut to it.
const DEFAULT_PAGE: usize = 1000;

/// A page of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    pub tags: Vec<String>,
    /// Whether more tags follow the last one.
    pub more: bool,
}

/// One parsed answer.
struct Page {
    tags: Vec<String>,
    next: Option<Url>,
    bytes: u64,
}

/// Returns at most `n` tags after `last`.
pub(super) async fn tags(
    endpoint: &Endpoint,
    repository: &Repository,
    n: Option<usize>,
    last: Option<&str>,
) -> Result<Tags, Error> {
    // A client that asks for the tags after `last` got the tags before it from this list.
    if last.is_some()
        && let Some(gathered) = endpoint.gathered_tags(repository).await
    {
        return Ok(cut(&gathered, n, last));
    }
    let mut read = Read::get(repository, "tags/list".to_owned());
    read.query.extend(n.map(|n| ("n", n.to_string())));
    read.query
        .extend(last.map(|last| ("last", last.to_owned())));
    let first = page(endpoint.read(&read).await?).await?;
    if first.is_as_asked(n, last) {
        return Ok(Tags {
            tags: first.tags,
            more: first.next.is_some(),
        });
    }
    let all = Arc::new(gather(endpoint, &read, first).await?);
    if !all.is_empty() {
        endpoint.remember_tags(repository, Arc::clone(&all)).await;
    }
    Ok(cut(&all, n, last))
}

/// Returns all tags from `first` on, sorted and without duplicates.
async fn gather(endpoint: &Endpoint, read: &Read<'_>, first: Page) -> Result<Vec<String>, Error> {
    let Page {
        mut tags,
        mut next,
        mut bytes,
    } = first;
    let mut held = vec![endpoint.reading().list(weight(&tags)).await?];
    for _ in 1..MAX_PAGES {
        let Some(link) = next.take() else { break };
        let found = page(endpoint.follow(read, &link).await?).await?;
        held.push(endpoint.reading().list(weight(&found.tags)).await?);
        bytes += found.bytes;
        tags.extend(found.tags);
        next = found.next.filter(|next| *next != link);
        if bytes > MAX_BYTES {
            return Err(Error::TooLarge { limit: MAX_BYTES });
        }
        if tags.len() > MAX_TAGS {
            return Err(too_many());
        }
    }
    if next.is_some() {
        return Err(Error::Malformed(format!(
            "more than {MAX_PAGES} pages of tags"
        )));
    }
    tags.sort_unstable();
    tags.dedup();
    Ok(tags)
}

async fn page(answer: super::answer::Answer) -> Result<Page, Error> {
    let next = next_link(answer.headers()).and_then(|link| answer.url.join(&link).ok());
    let document = answer.document(MAX_ANSWER).await?;
    let bytes = document.bytes.clone();
    let tags = aside(bytes.len(), move || parse(&bytes)).await?;
    Ok(Page {
        tags,
        next,
        bytes: document.bytes.len() as u64,
    })
}

/// Returns the tags of an answer. Invalid entries are left out.
fn parse(bytes: &[u8]) -> Result<Vec<String>, Error> {
    let (mut tags, mut is_too_long) = (Vec::new(), false);
    let take = |text: &str| {
        let tag = Some(text)
            .filter(|text| text.len() <= MAX_TAG + 2)
            .and_then(|text| serde_json::from_str::<String>(text).ok());
        is_too_long |= tags.len() == MAX_TAGS;
        tags.extend(tag.filter(|tag| !tag.is_empty() && !is_too_long));
    };
    stream::for_each(bytes, "tags", take)
        .map_err(|error| Error::Malformed(excerpt(&error.to_string())))?;
    if is_too_long {
        return Err(too_many());
    }
    Ok(tags)
}

fn too_many() -> Error {
    Error::Malformed(format!("more than {MAX_TAGS} tags"))
}

/// Returns the memory that tags take.
fn weight(tags: &[String]) -> u64 {
    tags.iter().map(|tag| (tag.len() + TAG_BYTES) as u64).sum()
}

impl Page {
    /// Whether the page is the requested one, is not too long, is sorted, and names the next page by its last tag.
    fn is_as_asked(&self, n: Option<usize>, last: Option<&str>) -> bool {
        let is_behind =
            last.is_none_or(|last| self.tags.first().is_none_or(|first| first.as_str() > last));
        let is_short = self.tags.len() <= n.unwrap_or(DEFAULT_PAGE);
        let goes_on = self.next.as_ref().is_none_or(|next| {
            let named = next
                .query_pairs()
                .find(|(name, _)| name == "last")
                .map(|(_, tag)| tag.into_owned());
            named.is_some() && named.as_ref() == self.tags.last()
        });
        is_behind && is_short && goes_on && self.tags.is_sorted()
    }
}

/// Returns at most `n` of the tags after `last`.
fn cut(tags: &[String], n: Option<usize>, last: Option<&str>) -> Tags {
    let start = last.map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let rest = tags.get(start..).unwrap_or_default();
    let page = rest.get(..n.unwrap_or(DEFAULT_PAGE)).unwrap_or(rest);
    Tags {
        tags: page.to_vec(),
        more: page.len() < rest.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(tags: &[&str], next: Option<&str>) -> Page {
        let next = next.map(|next| format!("http://a/v2/x/tags/list?{next}").parse().unwrap());
        Page {
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            next,
            bytes: 0,
        }
    }

    #[test]
    fn a_page_is_passed_on_if_it_is_the_requested_one() {
        for (tags, next, n, last, is_as_asked) in [
            (&["a", "b"][..], None, None, None, true),
            (&["a", "b"], Some("n=2&last=b"), Some(2), None, true),
            (&["c", "d"], None, Some(2), Some("b"), true),
            (&[], None, Some(2), Some("b"), true),
            (&["a", "b"], Some("n=2&next_page=x"), Some(2), None, false),
            (&["a", "b"], Some("n=2&last=opaque"), Some(2), None, false),
            (&["a", "b", "c"], None, Some(2), None, false),
            (&["a", "b"], None, Some(2), Some("a"), false),
            (&["b", "a"], None, None, None, false),
        ] {
            assert_eq!(
                page_of(tags, next).is_as_asked(n, last),
                is_as_asked,
                "{tags:?} {next:?} {n:?} {last:?}"
            );
        }
    }

    #[test]
    fn pages_start_after_the_last_tag() {
        let tags = ["a", "b", "d"].map(str::to_owned);
        let cut = |n, last| {
            let Tags { tags, more } = cut(&tags, n, last);
            (tags.concat(), more)
        };
        assert_eq!(cut(Some(2), None), ("ab".to_owned(), true));
        assert_eq!(cut(Some(2), Some("b")), ("d".to_owned(), false));
        assert_eq!(cut(Some(1), Some("a")), ("b".to_owned(), true));
        assert_eq!(cut(None, Some("c")), ("d".to_owned(), false));
        assert_eq!(cut(Some(5), Some("z")), (String::new(), false));
    }

    #[test]
    fn invalid_tags_are_left_out() {
        let long = "x".repeat(MAX_TAG + 1);
        let list = format!(r#"{{"name":"a","tags":["b",null,7,["c"],"{long}","","a"]}}"#);
        assert_eq!(parse(list.as_bytes()).unwrap(), ["b", "a"]);
        assert!(parse(br#"{"tags":null}"#).unwrap().is_empty());
        let many = format!(r#"{{"tags":[{}"a"]}}"#, "\"a\",".repeat(MAX_TAGS));
        assert!(matches!(parse(many.as_bytes()), Err(Error::Malformed(_))));
        assert!(parse(b"<html>").is_err());
    }
}
