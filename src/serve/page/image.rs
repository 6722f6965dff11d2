//! One image: its numbers, what its starts read, and its layers or platforms.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use maud::{Markup, html};

use super::frame::{self, Page, Tab};
use super::operator::Viewer;
use super::{images, plot, text};
use crate::catalog::{Content, Image, Layer, Part, Start};
use crate::clock::unix_now;
use crate::oci::Digest;
use crate::profile::Summary;
use crate::serve::app::App;
use crate::store::records::Limit;

/// The files of a start that are listed.
const MAX_FILES: usize = 50;

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    _: Viewer,
    Path(digest): Path<String>,
) -> Response {
    let image = match digest.parse::<Digest>() {
        Ok(digest) => app.catalog.image(&digest).await,
        Err(_no_digest) => Ok(None),
    };
    let image = match image {
        Ok(Some(image)) => image,
        Ok(None) => return unknown(&app),
        Err(error) => return frame::unreadable(&app, &error),
    };
    // The page is useful without these.
    let start = if image.entry.is_index {
        None
    } else {
        app.catalog.start(&image.entry).await.ok().flatten()
    };
    let starts = match &start {
        Some(start) => Some(start.summary.starts()),
        None => app.catalog.starts(&image.entry).await.ok(),
    };
    let title = images::title(&image.entry);
    let content = html! {
        nav class="crumbs" aria-label="Place" { a href="/images" { "Images" } " / " span { (title) } }
        h1 class="name" { (title) }
        (digests(&image))
        (images::facts(&image.entry, starts, unix_now()))
        (why(&image))
        @if !image.entry.is_index { (start_section(start.as_ref(), app.config.profiles.enabled)) }
        (contents(&image))
    };
    Page::new(title, Tab::Images, content).answer(&app)
}

pub(super) fn unknown(app: &App) -> Response {
    let text = "The store has no such image of this generation. It may have been deleted, or it was never pulled.";
    frame::failure(app, StatusCode::NOT_FOUND, "No such image", text)
}

fn digests(image: &Image) -> Markup {
    let entry = &image.entry;
    html! {
        dl class="digests" {
            div { dt { "Source" } dd { code { (entry.source) } } }
            @if entry.passes_through() {
                div { dt { "Converted" } dd { "The source image is served." } }
            } @else {
                div { dt { "Converted" } dd { code { (entry.converted) } } }
            }
            @if !entry.platforms.is_empty() {
                div {
                    dt { "Platforms" }
                    dd { @for platform in &entry.platforms { span class="tag" { (text::name(platform.as_bytes())) } " " } }
                }
            }
        }
        @if image.is_ordered {
            p class="note" { "The files that its starts read first are at the front of its layers." }
        }
    }
}

/// Why parts of the image, or all of it, stayed as they were.
fn why(image: &Image) -> Markup {
    let limit = |limit: &Limit| match limit {
        Limit::LayerSize(size) => format!("convert.max_layer_size, {}", text::bytes(*size)),
        Limit::UnpackedSize(size) => {
            format!(
                "the limit of a layer's unpacked size, {}",
                text::bytes(*size)
            )
        }
    };
    html! {
        @if !image.reasons.is_empty() || !image.limits.is_empty() {
            section class="note" aria-labelledby="why" {
                h2 id="why" {
                    @if image.entry.passes_through() { "Why it was not converted" }
                    @else { "Why parts were not converted" }
                }
                ul {
                    @for (digest, reason) in &image.reasons {
                        li {
                            (text::name(reason.as_bytes()))
                            @if *digest != image.entry.source { " " code title=(digest) { (text::short(digest)) } }
                        }
                    }
                    @for over in &image.limits { li { "A layer is over " (limit(over)) } }
                }
            }
        }
    }
}

fn start_section(start: Option<&Start>, keeps_profiles: bool) -> Markup {
    html! {
        section aria-labelledby="start" {
            h2 id="start" { "What a start reads" }
            @match start.filter(|start| !start.reads.is_empty()) {
                Some(start) => {
                    (plot::figure(&start.reads))
                    (sources(&start.summary, &start.workload.to_string()))
                    (files(start))
                }
                None if keeps_profiles => {
                    p class="empty" {
                        "Nothing is known yet. It is predicted when the image is pulled, and learned from its starts on nodes with the agent."
                    }
                }
                None => { p class="empty" { "This server keeps no profiles (serve.profiles.enabled)." } }
            }
        }
    }
}

/// Where the profile came from.
fn sources(summary: &Summary, workload: &str) -> Markup {
    let files = |count: usize| match count {
        1 => "1 file".to_owned(),
        count => format!("{} files", text::number(count as u64)),
    };
    html! {
        h3 { "Sources of the profile" }
        dl class="facts sources" {
            div {
                dt { "Recorded or attached" }
                dd { (summary.recorded.map_or_else(|| "no".to_owned(), files)) }
            }
            div {
                dt { "Predicted" }
                dd { (summary.predicted.map_or_else(|| "no".to_owned(), files)) }
            }
            @for seen in &summary.workloads {
                div {
                    dt { "Learned, workload " (seen.workload.to_string()) }
                    dd {
                        (text::number(u64::from(seen.starts))) (if seen.starts == 1 { " start" } else { " starts" })
                        ", " (seen.nodes) (if seen.nodes == 1 { " node" } else { " nodes" })
                        ", " (seen.clients) " by ranges, last " (text::time(seen.heard)) " UTC"
                    }
                }
            }
            @if summary.workloads.is_empty() { div { dt { "Learned" } dd { "no starts yet" } } }
        }
        p class="soft small" { "The plot and the list are of the workload " (workload) ". Files that were recorded or attached always count; predictions only as long as nothing else is known." }
    }
}

fn files(start: &Start) -> Markup {
    html! {
        details {
            summary { "Files in the order of their prefetching" }
            table class="files" {
                thead { tr { th { "File" } th class="wide-only" { "Layer" } th class="number" { "Read" } th class="number" { "After" } } }
                tbody {
                    @for read in start.reads.iter().take(MAX_FILES) {
                        tr {
                            td class="file" { (text::name(read.path.as_bytes())) }
                            td class="wide-only" { (u64::from(read.layer) + 1) }
                            td class="number" { (read.bytes.map_or_else(|| "–".to_owned(), text::bytes)) }
                            td class="number" { (text::duration(read.after)) }
                        }
                    }
                }
            }
            @if start.reads.len() > MAX_FILES {
                p class="soft" { "and " (text::number((start.reads.len() - MAX_FILES) as u64)) " further files" }
            }
        }
    }
}

fn contents(image: &Image) -> Markup {
    let rest = |shown: usize| image.total.saturating_sub(shown);
    let (title, shown) = match &image.content {
        Content::Layers(layers) => ("Layers, from the bottom", layers.len()),
        Content::Platforms(parts) => ("Platforms and attestations", parts.len()),
        Content::Absent => ("Layers", 0),
    };
    html! {
        section aria-labelledby="contents" {
            h2 id="contents" { (title) }
            @match &image.content {
                Content::Layers(layers) => {
                    ol class="cards" {
                        @for (number, layer) in layers.iter().enumerate() { (layer_card(&image.entry.source, number, layer)) }
                    }
                }
                Content::Platforms(parts) => { ul class="cards" { @for part in parts { (part_card(part)) } } }
                Content::Absent => {
                    p class="empty" { "The store has no manifest of this image, because the source image is served." }
                }
            }
            @if rest(shown) > 0 { p class="soft" { "and " (rest(shown)) " more" } }
        }
    }
}

fn layer_card(image: &Digest, number: usize, layer: &Layer) -> Markup {
    let is_converted = layer.source.is_some();
    html! {
        li class="card" {
            div class="line" {
                span class="name" {
                    "Layer " (number + 1)
                    @if layer.is_lazy && is_converted {
                        " · " a href={ "/images/" (image) "/layers/" (layer.digest) } { "files" }
                    }
                }
                @if is_converted { span class="state good" { "converted" } }
                @else { span class="state plain" { "unchanged" } }
            }
            p class="soft" {
                @if let (true, Some(size)) = (is_converted, layer.source_size) { (text::bytes(size)) " → " }
                (text::bytes(layer.size))
                " · " code title=(layer.digest) { (text::short(&layer.digest)) }
                @if let Some(source) = &layer.source { " from " code title=(source) { (text::short(source)) } }
            }
            @if let Some(reason) = &layer.reason { p { "Not converted: " (text::name(reason.as_bytes())) } }
            @else if !is_converted { p class="soft" { "Media type " (text::name(layer.media_type.as_bytes())) } }
        }
    }
}

fn part_card(part: &Part) -> Markup {
    let name = part.platform.as_deref().unwrap_or("no platform");
    let name = text::name(name.as_bytes());
    html! {
        li class="card" {
            div class="line" {
                @if let Some(image) = &part.image { a class="name" href={ "/images/" (image) } { (name) } }
                @else { span class="name" { (name) } }
                @if part.reason.is_some() { span class="state plain" { "unchanged" } }
                @else { span class="state good" { "converted" } }
            }
            p class="soft" {
                @if let Some(size) = part.size { (text::bytes(size)) " · " }
                code title=(part.digest) { (text::short(&part.digest)) }
            }
            @if let Some(reason) = &part.reason { p { "Not converted: " (text::name(reason.as_bytes())) } }
        }
    }
}
