//! What a start reads over time, as a drawing in the page: bytes from the container's start on.
//!
//! The drawing is stretched to the width of the page. Its texts are beside it, so that they stay
//! readable on a phone.

use std::fmt::Write as _;
use std::time::Duration;

use maud::{Markup, html};

use super::text;
use crate::catalog::Read;
use crate::profile::Source;

/// The drawing's own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;
/// The most corners of the line. The width of a page has not many more pixels.
const MAX_POINTS: usize = 500;

/// A point of the line, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    x: f64,
    y: f64,
}

/// The horizontal axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    Time(Duration),
    /// Predictions have an order and no times.
    Order(usize),
}

pub(super) fn figure(reads: &[Read]) -> Markup {
    let bytes = reads.iter().filter_map(|read| read.bytes);
    let total = bytes.fold(0, u64::saturating_add);
    let axis = axis(reads);
    let line = path(&points(reads, axis, total));
    let area = format!("{line}L{WIDTH:.0} {HEIGHT:.0}L0 {HEIGHT:.0}Z");
    let is_predicted = reads
        .iter()
        .all(|read| read.sources.iter().eq([&Source::Static]));
    let files = text::number(reads.len() as u64);
    let (end, what) = match axis {
        Axis::Time(last) => (text::duration(last), "after the start of the container"),
        Axis::Order(files) => (
            format!("file {}", text::number(files as u64)),
            "in the order of the prediction",
        ),
    };
    let half = match axis {
        Axis::Time(last) => text::duration(last / 2),
        Axis::Order(files) => format!("file {}", text::number(files as u64 / 2)),
    };
    let summary = format!(
        "{} in {files} files, {what}{}",
        text::bytes(total),
        if is_predicted { ", predicted" } else { "" }
    );
    html! {
        figure class="plot" {
            figcaption { (summary) }
            div class="area" {
                span class="y high" aria-hidden="true" { (text::bytes(total)) }
                span class="y half" aria-hidden="true" { (text::bytes(total / 2)) }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                    aria-label={ "Bytes read over time: " (summary) } {
                    g class="grid" {
                        @for at in [0.0, 0.25, 0.5, 0.75, 1.0] {
                            line x1="0" x2=(WIDTH) y1=(at * HEIGHT) y2=(at * HEIGHT) {}
                            line y1="0" y2=(HEIGHT) x1=(at * WIDTH) x2=(at * WIDTH) {}
                        }
                    }
                    path class="fill" d=(area) {}
                    path class="curve" d=(line) {}
                }
            }
            div class="x" aria-hidden="true" { span { "0" } span { (half) } span { (end) } }
        }
    }
}

fn axis(reads: &[Read]) -> Axis {
    let last = reads
        .iter()
        .map(|read| read.after)
        .max()
        .unwrap_or_default();
    if last.is_zero() {
        Axis::Order(reads.len())
    } else {
        Axis::Time(last)
    }
}

/// The sum of the bytes that are read until each file, the line's corners.
fn points(reads: &[Read], axis: Axis, total: u64) -> Vec<Point> {
    let mut in_order: Vec<_> = reads
        .iter()
        .map(|read| (read.after, read.bytes.unwrap_or(0)))
        .collect();
    // Files that are read at the same time stay in the order of their prefetching.
    in_order.sort_by_key(|(after, _)| *after);
    let count = in_order.len();
    let each = count.div_ceil(MAX_POINTS).max(1);
    let (mut sum, mut points) = (0_u64, Vec::new());
    for (at, (after, bytes)) in in_order.into_iter().enumerate() {
        sum = sum.saturating_add(bytes);
        if (at + 1) % each != 0 && at + 1 != count {
            continue;
        }
        let x = match axis {
            Axis::Time(last) => after.as_secs_f64() / last.as_secs_f64(),
            Axis::Order(files) => share(at as u64 + 1, files as u64),
        };
        points.push(Point {
            x: x.clamp(0.0, 1.0),
            y: share(sum, total),
        });
    }
    points
}

#[expect(clippy::cast_precision_loss, reason = "a pixel needs no more")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64).clamp(0.0, 1.0)
    }
}

/// Steps from point to point: bytes are read at once, and then nothing until the next file.
fn path(points: &[Point]) -> String {
    let mut path = format!("M0 {HEIGHT:.0}");
    for Point { x, y } in points {
        let _infallible = write!(path, "H{:.1}V{:.1}", x * WIDTH, HEIGHT - y * HEIGHT);
    }
    let _infallible = write!(path, "H{WIDTH:.0}");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(after: u64, bytes: u64) -> Read {
        Read {
            layer: 0,
            path: "a".to_owned(),
            after: Duration::from_millis(after),
            bytes: Some(bytes),
            sources: [Source::Agents].into(),
        }
    }

    #[test]
    fn bytes_add_up_over_time() {
        let reads = [read(100, 60), read(0, 20), read(50, 20)];
        let points = points(&reads, axis(&reads), 100);
        let expected = [(0.0, 0.2), (0.5, 0.4), (1.0, 1.0)];
        let expected = expected.map(|(x, y)| Point { x, y });
        assert_eq!(points, expected);
        assert_eq!(
            path(&points),
            "M0 300H0.0V240.0H500.0V180.0H1000.0V0.0H1000"
        );
    }

    #[test]
    fn a_prediction_is_drawn_by_its_order_and_many_files_by_few_points() {
        let reads: Vec<_> = (0..10_000).map(|_| read(0, 1)).collect();
        assert_eq!(axis(&reads), Axis::Order(10_000));
        let points = points(&reads, axis(&reads), 10_000);
        assert_eq!(points.len(), MAX_POINTS);
        assert_eq!(points.last(), Some(&Point { x: 1.0, y: 1.0 }));
        let page = figure(&[]).into_string();
        assert!(!page.contains("NaN"), "{page}");
    }
}
