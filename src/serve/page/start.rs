//! The start page: what Starlift is, its current work, and how to use this server.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::conversions;
use super::frame::{Page, Tab};
use super::operator::Viewer;
use super::text;
use super::usage::{self, Host};
use crate::catalog::Listing;
use crate::convert::State as ConversionState;
use crate::serve::app::App;
use crate::serve::caller::Caller;

/// Seconds between two loads of the page while something is converted.
const REFRESH: u32 = 4;

pub(crate) async fn show(State(app): State<Arc<App>>, _: Viewer, caller: Caller) -> Response {
    let host = Host::of(&app.config, &caller);
    let conversions = app.converter.status();
    let is_running = |state| state == ConversionState::Running;
    let running = conversions
        .iter()
        .filter(|one| is_running(one.state))
        .count();
    let jobs = app.jobs.list();
    let is_live = running > 0 || jobs.iter().any(|job| job.ended.is_none());
    let is_paused = text::parameter(&caller.uri, "pause").is_some();
    // The page is useful without the store.
    let listing = app.catalog.listing().await.ok();
    let content = html! {
        section class="hero" {
            h1 { "Every image starts before it is downloaded" }
            p class="lead" {
                "Pull any image through " strong { (host.name) } " and it arrives as eStargz. Nodes with a lazy "
                "snapshotter start it at once and fetch files as they are read; all other clients pull it as usual. "
                "Nobody rebuilds anything."
            }
            (numbers(&app, listing.as_deref(), running))
        }
        section class="live" aria-labelledby="live" {
            div class="heading" {
                h2 id="live" { "Conversions" }
                @if is_live && is_paused {
                    a href="/" { "Refresh again" }
                } @else if is_live {
                    span class="soft" { "refreshed every " (REFRESH) " s · " a href="/?pause=1" { "pause" } }
                }
            }
            (conversions::list(&conversions, &jobs))
        }
        (usage::section(&app.config, &host, is_live && !is_paused))
    };
    let mut page = Page::new(host.name.clone(), Tab::Start, content);
    page.refresh = (is_live && !is_paused).then_some(REFRESH);
    page.answer(&app)
}

fn numbers(app: &App, listing: Option<&Listing>, running: usize) -> Markup {
    let shown = |count: usize| text::number(count as u64);
    let images = listing.map(|listing| {
        let all = listing.entries.iter().filter(|entry| !entry.is_child);
        let count = shown(all.count());
        if listing.is_cut {
            format!("over {count}")
        } else {
            count
        }
    });
    html! {
        dl class="numbers" {
            div {
                dt { "Images" }
                dd { a href="/images" { (images.as_deref().unwrap_or("–")) } }
            }
            div { dt { "Converting now" } dd { (shown(running)) } }
            div { dt { "Running for" } dd { (text::duration(app.started.elapsed())) } }
        }
    }
}
