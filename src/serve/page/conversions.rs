//! The running and the recent conversions.

use maud::{Markup, html};

use super::text;
use crate::clock::unix_now;
use crate::convert::{Conversion, State};
use crate::serve::jobs::Job;

/// Conversions that are shown, and the same for conversions requested by API.
const MAX_ROWS: usize = 12;

pub(super) fn list(conversions: &[Conversion], jobs: &[Job]) -> Markup {
    let is_running = |one: &&Conversion| one.state == State::Running;
    let running = conversions.iter().filter(is_running);
    let ended = conversions.iter().filter(|one| !is_running(one));
    let now = unix_now();
    html! {
        @if conversions.is_empty() && jobs.is_empty() {
            p class="empty" { "Nothing was converted since this server started. The first pull of an image begins it." }
        }
        ul class="cards" {
            @for conversion in running.chain(ended).take(MAX_ROWS) { (row(conversion, now)) }
        }
        @if !jobs.is_empty() {
            h3 { "Requested by API" }
            ul class="cards" {
                @for job in jobs.iter().take(MAX_ROWS) { (requested(job)) }
            }
        }
    }
}

fn row(conversion: &Conversion, now: u64) -> Markup {
    let name = format!("{}/{}", conversion.upstream, conversion.repository);
    let name = text::name(name.as_bytes());
    let (state, kind) = match conversion.state {
        State::Running => ("running", "run"),
        State::Converted => ("converted", "good"),
        State::PassedThrough => ("passes through", "plain"),
        State::Failed => ("failed", "bad"),
    };
    let (done, total) = conversion
        .layers
        .iter()
        .fold((0_u64, 0_u64), |(done, total), layer| {
            (
                done.saturating_add(layer.done),
                total.saturating_add(layer.total),
            )
        });
    let since = match conversion.ended {
        Some(ended) => text::ago(ended, now),
        None => format!("for {} s", now.saturating_sub(conversion.started)),
    };
    html! {
        li class="card" {
            div class="line" {
                @if conversion.converted.is_some() {
                    a class="name" href={ "/images/" (conversion.source) } { (name) }
                } @else {
                    span class="name" { (name) }
                }
                span class={ "state " (kind) } { (state) }
            }
            @if conversion.state == State::Running {
                (progress(&name, done, total))
            }
            p class="soft" {
                @if conversion.state == State::Running && total > 0 {
                    (text::bytes(done)) " of " (text::bytes(total)) " in " (layers(conversion.layers.len())) " · "
                }
                (since) " · " code title=(conversion.source) { (text::short(&conversion.source)) }
                @if let Some(reason) = conversion.error { " · " (reason.to_string()) }
            }
        }
    }
}

fn progress(name: &str, done: u64, total: u64) -> Markup {
    let percent = (u128::from(done) * 100).checked_div(u128::from(total));
    let percent = percent.map(|percent| percent.min(100));
    html! {
        progress max="100" value=[percent] aria-label={ "Conversion of " (name) } {
            @if let Some(percent) = percent { (percent) " %" }
        }
    }
}

fn layers(count: usize) -> String {
    match count {
        1 => "1 layer".to_owned(),
        count => format!("{count} layers"),
    }
}

fn requested(job: &Job) -> Markup {
    let state = format!("{:?}", job.state).to_lowercase();
    let kind = match (&job.converted, &job.error) {
        (Some(_), _) => "good",
        (_, Some(_)) => "bad",
        (None, None) => "run",
    };
    html! {
        li class="card" {
            div class="line" {
                span class="name" { (text::name(job.reference.as_bytes())) }
                span class={ "state " (kind) } { (state) }
            }
            @if let Some(reason) = job.error { p class="soft" { (reason.to_string()) } }
            @if let (Some(source), Some(_)) = (&job.source, &job.converted) {
                p class="soft" { a href={ "/images/" (source) } { code { (text::short(source)) } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn foreign_text_cannot_become_markup() {
        let conversion = Conversion {
            id: 1,
            upstream: "<script>alert(1)</script>".to_owned(),
            repository: "\"onload=".to_owned(),
            source: Digest::sha256_of(b""),
            state: State::Running,
            started: 0,
            ended: None,
            layers: Vec::new(),
            converted: None,
            error: None,
        };
        let page = list(&[conversion], &[]).into_string();
        assert!(!page.contains("<script"), "{page}");
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&quot;onload="),
            "{page}"
        );
    }
}
