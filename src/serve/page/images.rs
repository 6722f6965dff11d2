//! The list of images.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures::future::join_all;
use maud::{Markup, html};

use super::frame::{self, Page, Tab};
use super::operator::Viewer;
use super::text;
use crate::catalog::{Entry, LISTED_FOR};
use crate::clock::unix_now;
use crate::serve::app::App;
use crate::serve::caller::Caller;

/// Images on one page. The starts of each are looked up.
const ON_PAGE: usize = 25;
/// The longest text that is searched for, in bytes: the longest name of a repository.
const MAX_SEARCH: usize = 255;

pub(crate) async fn show(State(app): State<Arc<App>>, _: Viewer, caller: Caller) -> Response {
    let search = text::parameter(&caller.uri, "q").unwrap_or_default();
    let search = String::from_utf8_lossy(search.get(..MAX_SEARCH).unwrap_or(&search)).into_owned();
    let listing = match app.catalog.listing().await {
        Ok(listing) => listing,
        Err(error) => return frame::unreadable(&app, &error),
    };
    let found = listing.search(&search);
    let pages = found.len().div_ceil(ON_PAGE).max(1);
    let page = text::number_in(&caller.uri, "page").clamp(1, pages);
    let shown: Vec<_> = found
        .iter()
        .skip((page - 1) * ON_PAGE)
        .take(ON_PAGE)
        .collect();
    // The list is useful without these.
    let starts = join_all(shown.iter().map(|entry| app.catalog.starts(entry))).await;
    let now = unix_now();
    let link = |page: usize| format!("/images?q={}&page={page}", text::encoded(search.as_bytes()));
    let content = html! {
        div class="heading" {
            h1 { "Images" }
            span class="soft" {
                (text::number(found.len() as u64)) " " (if found.len() == 1 { "image" } else { "images" })
                ", as of " time datetime=(text::machine_time(listing.read_at)) { (text::time(listing.read_at)) } " UTC"
            }
        }
        @if !search.is_empty() {
            p class="soft" { "Found for “" (text::name(search.as_bytes())) "” · " a href="/images" { "all images" } }
        }
        @if listing.is_cut {
            p class="note" { "The store has more images than this list takes. It has those that were converted last." }
        }
        @if found.is_empty() {
            p class="empty" {
                @if search.is_empty() { "No image was converted yet. The first pull of an image begins it." }
                @else { "No image has this in its name or begins with this digest." }
            }
        }
        ol class="cards images" start=((page - 1) * ON_PAGE + 1) {
            @for (entry, starts) in shown.iter().zip(&starts) {
                (row(entry, starts.as_ref().ok().copied(), now))
            }
        }
        @if pages > 1 { (pager(page, pages, link)) }
        p class="soft small" {
            "Names are those under which an image was first converted; sizes are of compressed layers. The list is at most "
            (LISTED_FOR.as_secs()) " s old. Images of other generations are not in it."
        }
    };
    let mut page = Page::new("Images", Tab::Images, content);
    page.search = search;
    page.answer(&app)
}

fn row(entry: &Entry, starts: Option<u64>, now: u64) -> Markup {
    html! {
        li class="card" {
            div class="line" {
                a class="name" href={ "/images/" (entry.source) } { (title(entry)) }
                @if entry.passes_through() { span class="state plain" { "passes through" } }
                @else if entry.unchanged > 0 && !entry.is_index { span class="state run" { "in part" } }
            }
            p class="soft" {
                code title=(entry.source) { (text::short(&entry.source)) }
                @for platform in &entry.platforms { " " span class="tag" { (text::name(platform.as_bytes())) } }
            }
            (facts(entry, starts, now))
        }
    }
}

/// The name of an image, or a digest if the record has none.
pub(super) fn title(entry: &Entry) -> String {
    match &entry.name {
        Some(name) => text::name(name.as_bytes()),
        None => format!("unnamed, {}", text::short(&entry.source)),
    }
}

/// The numbers of an image.
pub(super) fn facts(entry: &Entry, starts: Option<u64>, now: u64) -> Markup {
    let known = |size: Option<u64>| size.map_or_else(|| "–".to_owned(), text::bytes);
    html! {
        dl class="facts" {
            div { dt { "Source" } dd { (known(entry.source_size)) } }
            div {
                dt { "Converted" }
                dd {
                    (known(entry.size))
                    @if let Some(change) = change(entry) { " " span class="soft" { (change) } }
                }
            }
            div {
                dt { "Lazy layers" }
                dd {
                    @if entry.layers > 0 {
                        (entry.lazy_layers) " of " (entry.layers)
                        meter min="0" max=(entry.layers) value=(entry.lazy_layers) aria-label="Share of lazy layers" {}
                    } @else { "–" }
                }
            }
            div { dt { "Took" } dd { (entry.took.map_or_else(|| "–".to_owned(), text::duration)) } }
            div { dt { "Starts seen" } dd { (starts.map_or_else(|| "–".to_owned(), text::number)) } }
            div {
                dt { "Converted at" }
                dd {
                    @if entry.converted_at > 0 {
                        time datetime=(text::machine_time(entry.converted_at)) title={ (text::time(entry.converted_at)) " UTC" } {
                            (text::ago(entry.converted_at, now))
                        }
                    } @else { "–" }
                }
            }
        }
    }
}

/// `+2 %`: the difference of the converted layers' size.
fn change(entry: &Entry) -> Option<String> {
    let (source, size) = (i128::from(entry.source_size?), i128::from(entry.size?));
    let percent = (size - source) * 100 / source.max(1);
    Some(format!("{percent:+} %").replace('-', "−"))
}

/// Links to the pages before and behind this one.
pub(super) fn pager(page: usize, pages: usize, link: impl Fn(usize) -> String) -> Markup {
    html! {
        nav class="pager" aria-label="Further pages" {
            @if page > 1 { a rel="prev" href=(link(page - 1)) { "← Previous" } } @else { span {} }
            span class="soft" { "Page " (page) " of " (pages) }
            @if page < pages { a rel="next" href=(link(page + 1)) { "Next →" } } @else { span {} }
        }
    }
}
