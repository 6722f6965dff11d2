//! The files of a layer, one folder at a time.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use maud::{Markup, html};

use super::frame::{self, Page, Tab};
use super::operator::Viewer;
use super::{image, images, text};
use crate::catalog::{Folder, Item, MAX_FOLDER_ITEMS, MAX_FOLDER_PATH};
use crate::oci::Digest;
use crate::serve::app::App;
use crate::serve::caller::Caller;

/// The number of the last second that people are shown a time of: the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    _: Viewer,
    Path((source, layer)): Path<(String, String)>,
    caller: Caller,
) -> Response {
    let (Ok(source), Ok(layer)) = (source.parse::<Digest>(), layer.parse::<Digest>()) else {
        return image::unknown(&app);
    };
    let path = text::parameter(&caller.uri, "in").unwrap_or_default();
    let path = trimmed(&path);
    let from = text::number_in(&caller.uri, "from");
    let place = Place {
        source: &source,
        layer: &layer,
        path,
    };
    let folder = match app.catalog.folder(&layer, path, from).await {
        Ok(Some(folder)) => folder,
        Ok(None) => {
            let text = "The store has no such layer, or the layer has no such folder.";
            return frame::failure(&app, StatusCode::NOT_FOUND, "No such folder", text);
        }
        Err(error) => return frame::unreadable(&app, &error),
    };
    let image = match app.catalog.listing().await {
        Ok(listing) => listing
            .entries
            .iter()
            .find(|entry| entry.source == source)
            .cloned(),
        Err(_unreadable) => None,
    };
    let image = image.map_or_else(
        || text::short(&source).to_owned(),
        |entry| images::title(&entry),
    );
    let content = html! {
        nav class="crumbs" aria-label="Place" {
            a href="/images" { "Images" } " / " a href={ "/images/" (source) } { (image) }
            " / " span { "layer " code title=(layer) { (text::short(&layer)) } }
        }
        h1 { "Files of a layer" }
        (crumbs(&place))
        p class="soft" {
            (text::bytes(folder.bytes)) " below this folder · " (text::number(folder.total as u64))
            (if folder.total == 1 { " entry" } else { " entries" }) " in it · "
            (text::number(folder.entries as u64)) " in the layer"
        }
        (table(&place, &folder))
        (pager(&place, &folder))
    };
    Page::new("Files of a layer", Tab::Images, content).answer(&app)
}

struct Place<'a> {
    source: &'a Digest,
    layer: &'a Digest,
    path: &'a [u8],
}

impl Place<'_> {
    fn link(&self, path: &[u8], from: usize) -> String {
        let (source, layer) = (self.source, self.layer);
        let mut link = format!("/images/{source}/layers/{layer}?in={}", text::encoded(path));
        if from > 0 {
            link += &format!("&from={from}");
        }
        link
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [self.path, name].join(&b'/')
        }
    }
}

fn trimmed(path: &[u8]) -> &[u8] {
    let is_name = |byte: &u8| *byte != b'/';
    let start = path.iter().position(is_name).unwrap_or(path.len());
    let end = path
        .iter()
        .rposition(is_name)
        .map_or(start, |last| last + 1);
    path.get(start..end).unwrap_or_default()
}

/// The folder's path, with a link for each folder above it.
fn crumbs(place: &Place<'_>) -> Markup {
    let ends = place.path.iter().enumerate();
    let ends = ends.filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let ends: Vec<usize> = ends.chain([place.path.len()]).collect();
    let starts = [0].into_iter().chain(ends.iter().map(|end| end + 1));
    let parts: Vec<_> = starts.zip(&ends).collect();
    html! {
        nav class="path" aria-label="Folder" {
            a href=(place.link(b"", 0)) { "/" }
            @if !place.path.is_empty() {
                @for (start, end) in parts {
                    @let name = text::name(place.path.get(start..*end).unwrap_or_default());
                    @if *end < place.path.len() {
                        a href=(place.link(place.path.get(..*end).unwrap_or_default(), 0)) { (name) } "/"
                    } @else { span aria-current="page" { (name) } }
                }
            }
        }
    }
}

fn table(place: &Place<'_>, folder: &Folder) -> Markup {
    html! {
        @if folder.items.is_empty() { p class="empty" { "The folder is empty." } }
        @else {
            table class="files" {
                thead {
                    tr {
                        th { "Name" } th class="wide-only" { "Mode" } th class="wide-only" { "Owner" }
                        th class="number" { "Size" } th class="wide-only" { "Modified, UTC" }
                    }
                }
                tbody { @for item in &folder.items { (row(place, item)) } }
            }
        }
    }
}

fn row(place: &Place<'_>, item: &Item) -> Markup {
    let name = text::name(&item.name);
    let path = place.path_of(&item.name);
    let can_open = item.is_folder && item.is_whole && path.len() <= MAX_FOLDER_PATH;
    let modified = u64::try_from(item.modified)
        .ok()
        .filter(|time| *time <= LAST_SECOND);
    html! {
        tr {
            td class="file" {
                @if can_open { a href=(place.link(&path, 0)) { (name) "/" } }
                @else { (name) @if item.is_folder { "/" } }
                @if !item.target.is_empty() { span class="soft" { " → " (text::name(&item.target)) } }
                @if item.other_names > 0 { " " span class="tag" { "hard link" } }
            }
            td class="wide-only" { code { (item.mode) } }
            td class="wide-only" { (item.uid) ":" (item.gid) }
            td class="number" { (text::bytes(item.size)) }
            td class="wide-only" { (modified.map_or_else(|| "–".to_owned(), text::time)) }
        }
    }
}

fn pager(place: &Place<'_>, folder: &Folder) -> Markup {
    let shown = folder.items.len();
    let (first, behind) = (folder.from, folder.from + shown);
    let before = first.saturating_sub(MAX_FOLDER_ITEMS);
    html! {
        @if shown > 0 && shown < folder.total {
            nav class="pager" aria-label="Further files" {
                @if first > 0 { a rel="prev" href=(place.link(place.path, before)) { "← Previous" } } @else { span {} }
                span class="soft" {
                    (text::number(first as u64 + 1)) " to " (text::number(behind as u64)) " of " (text::number(folder.total as u64))
                }
                @if behind < folder.total { a rel="next" href=(place.link(place.path, behind)) { "Next →" } } @else { span {} }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_ends_of_a_path_do_not_count() {
        for (path, expected) in [
            ("", ""),
            ("/", ""),
            ("//", ""),
            ("/a/b/", "a/b"),
            ("a", "a"),
        ] {
            assert_eq!(trimmed(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn each_folder_above_has_a_link_and_markup_in_names_is_escaped() {
        let digest = Digest::sha256_of(b"");
        let place = Place {
            source: &digest,
            layer: &digest,
            path: b"usr/<b>/\xff",
        };
        let text = crumbs(&place).into_string();
        assert!(
            text.contains("?in=usr\"") && text.contains("?in=usr/%3Cb%3E\""),
            "{text}"
        );
        assert!(
            text.contains("&lt;b&gt;") && !text.contains("<b>"),
            "{text}"
        );
        assert!(text.contains("\\xff"), "{text}");
    }
}
