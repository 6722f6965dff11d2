//! Draws plots as SVG without a library: bars with their spread, points on a logarithmic scale,
//! curves over time.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
const ROW: f64 = 24.0;
/// Space for the title above the data, and for the scale below.
const TOP: f64 = 56.0;
const BOTTOM: f64 = 44.0;
/// Space for labels left of the bars, and for values right of them.
const LABELS: f64 = 250.0;
const VALUES: f64 = 90.0;
const SCATTER_HEIGHT: f64 = 420.0;
const COLOURS: [&str; 7] = [
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3",
];

#[derive(Debug)]
pub(crate) enum Plot {
    Bars(Bars),
    Scatter(Scatter),
    Lines(Lines),
}

/// A horizontal bar for each figure, with a whisker from the least to the most.
#[derive(Debug)]
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) bars: Vec<Bar>,
    /// Reference values, each a dashed line with its label.
    pub(crate) marks: Vec<(f64, String)>,
}

#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// Bars of one group have the same colour.
    pub(crate) group: usize,
}

/// Named points on a logarithmic x axis.
#[derive(Debug)]
pub(crate) struct Scatter {
    pub(crate) title: String,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) points: Vec<Point>,
}

#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) label: String,
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Points of one group have the same colour.
    pub(crate) group: usize,
}

/// Curves over one linear scale that starts at zero.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) curves: Vec<Curve>,
    /// Events, each a dashed line at its x with a label of a few letters.
    pub(crate) marks: Vec<(f64, String)>,
}

#[derive(Debug)]
pub(crate) struct Curve {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Collects SVG elements; coordinates are pixels.
#[derive(Default)]
struct Canvas(String);

impl Canvas {
    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), style: &str) {
        let _infallible = writeln!(
            self.0,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {style}/>"#
        );
    }

    fn text(&mut self, (x, y): (f64, f64), style: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _infallible = writeln!(
            self.0,
            r#"<text x="{x:.1}" y="{y:.1}" {style}>{text}</text>"#
        );
    }

    fn shape(&mut self, shape: &str) {
        self.0.push_str(shape);
        self.0.push('\n');
    }

    fn finish(self, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
            self.0
        )
    }
}

const GRID: &str = r##"stroke="#dddddd""##;
const DASHED: &str = r##"stroke="#333333" stroke-dasharray="5 4""##;

impl Plot {
    pub(crate) fn title(&self) -> &str {
        match self {
            Self::Bars(bars) => &bars.title,
            Self::Scatter(scatter) => &scatter.title,
            Self::Lines(lines) => &lines.title,
        }
    }

    pub(crate) fn svg(&self) -> String {
        match self {
            Self::Bars(bars) => bars.svg(),
            Self::Scatter(scatter) => scatter.svg(),
            Self::Lines(lines) => lines.svg(),
        }
    }
}

impl Bars {
    fn svg(&self) -> String {
        let figures = self
            .bars
            .iter()
            .map(|bar| bar.most)
            .chain(self.marks.iter().map(|mark| mark.0));
        let ticks = ticks(0.0, figures.fold(0.0, f64::max));
        let scale = ticks.last().copied().unwrap_or(1.0);
        let x = |value: f64| LABELS + value / scale * (WIDTH - LABELS - VALUES);
        let bottom = self.bars.iter().fold(TOP, |y, _| y + ROW);
        let mut canvas = Canvas::default();
        canvas.text(
            (MARGIN, 24.0),
            r#"font-size="15" font-weight="bold""#,
            &self.title,
        );
        for tick in ticks {
            canvas.line((x(tick), TOP), (x(tick), bottom), GRID);
            canvas.text(
                (x(tick), bottom + 16.0),
                r#"text-anchor="middle""#,
                &short(tick),
            );
        }
        canvas.text((x(scale), bottom + 34.0), r#"text-anchor="end""#, self.unit);
        let mut y = TOP;
        for bar in &self.bars {
            let middle = y + ROW / 2.0;
            let (colour, width) = (colour(bar.group), x(bar.value) - LABELS);
            canvas.text(
                (LABELS - 8.0, middle + 4.0),
                r#"text-anchor="end""#,
                &bar.label,
            );
            canvas.shape(&format!(
                r#"<rect x="{LABELS}" y="{:.1}" width="{width:.1}" height="{:.1}" fill="{colour}"/>"#,
                y + 4.0,
                ROW - 8.0
            ));
            canvas.line(
                (x(bar.least), middle),
                (x(bar.most), middle),
                r#"stroke="black""#,
            );
            canvas.text(
                (x(bar.most.max(bar.value)) + 6.0, middle + 4.0),
                "",
                &short(bar.value),
            );
            y += ROW;
        }
        for (value, label) in &self.marks {
            canvas.line((x(*value), TOP - 4.0), (x(*value), bottom), DASHED);
            canvas.text(
                (x(*value), TOP - 6.0),
                r#"text-anchor="middle" font-size="11""#,
                label,
            );
        }
        canvas.finish(bottom + BOTTOM)
    }
}

impl Scatter {
    fn svg(&self) -> String {
        let (left, right, bottom) = (
            MARGIN + 50.0,
            WIDTH - MARGIN - 70.0,
            SCATTER_HEIGHT - BOTTOM,
        );
        let bounds = |value: fn(&Point) -> f64| {
            let values = self.points.iter().map(value);
            values.fold(
                (f64::INFINITY, f64::NEG_INFINITY),
                |(least, most), value| (least.min(value), most.max(value)),
            )
        };
        let ((x_least, x_most), (y_least, y_most)) =
            (bounds(|point| point.x), bounds(|point| point.y));
        let x_ticks: Vec<f64> = [
            1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0,
        ]
        .into();
        let first = x_ticks
            .iter()
            .copied()
            .rfind(|tick| *tick <= x_least)
            .unwrap_or(1.0);
        let last = x_ticks
            .iter()
            .copied()
            .find(|tick| *tick >= x_most)
            .unwrap_or(2000.0);
        let y_ticks = ticks(y_least, y_most);
        let (lowest, highest) = (
            y_ticks.first().copied().unwrap_or(0.0),
            y_ticks.last().copied().unwrap_or(1.0),
        );
        let x = |value: f64| left + (value / first).ln() / (last / first).ln() * (right - left);
        let y = |value: f64| bottom - (value - lowest) / (highest - lowest) * (bottom - TOP);
        let mut canvas = Canvas::default();
        canvas.text(
            (MARGIN, 24.0),
            r#"font-size="15" font-weight="bold""#,
            &self.title,
        );
        for tick in x_ticks
            .into_iter()
            .filter(|tick| (first..=last).contains(tick))
        {
            canvas.line((x(tick), TOP), (x(tick), bottom), GRID);
            canvas.text(
                (x(tick), bottom + 16.0),
                r#"text-anchor="middle""#,
                &short(tick),
            );
        }
        for tick in y_ticks {
            canvas.line((left, y(tick)), (right, y(tick)), GRID);
            canvas.text(
                (left - 6.0, y(tick) + 4.0),
                r#"text-anchor="end""#,
                &format!("{tick:.2}"),
            );
        }
        canvas.text((right, bottom + 34.0), r#"text-anchor="end""#, self.x);
        canvas.text((MARGIN, TOP - 6.0), "", self.y);
        let places: Vec<(f64, f64)> = self
            .points
            .iter()
            .map(|point| (x(point.x), y(point.y)))
            .collect();
        let mut taken: Vec<Area> = places.iter().map(|place| Area::around(*place)).collect();
        for (point, place) in self.points.iter().zip(&places) {
            let (cx, cy) = place;
            canvas.shape(&format!(
                r#"<circle cx="{cx:.1}" cy="{cy:.1}" r="5" fill="{}"/>"#,
                colour(point.group)
            ));
            let label = Area::of_label(&point.label, *place, &taken);
            canvas.text(
                (label.left, label.bottom - 3.0),
                r#"font-size="11""#,
                &point.label,
            );
            taken.push(label);
        }
        canvas.finish(SCATTER_HEIGHT)
    }
}

impl Lines {
    fn svg(&self) -> String {
        let (left, right, bottom) = (
            MARGIN + 50.0,
            WIDTH - MARGIN - 90.0,
            SCATTER_HEIGHT - BOTTOM,
        );
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let x_ticks = ticks(0.0, points().map(|point| point.0).fold(0.0, f64::max));
        let y_ticks = ticks(0.0, points().map(|point| point.1).fold(0.0, f64::max));
        let scale = |ticks: &[f64]| ticks.last().copied().unwrap_or(1.0);
        let x = |value: f64| left + value / scale(&x_ticks) * (right - left);
        let y = |value: f64| bottom - value / scale(&y_ticks) * (bottom - TOP);
        let mut canvas = Canvas::default();
        canvas.text(
            (MARGIN, 24.0),
            r#"font-size="15" font-weight="bold""#,
            &self.title,
        );
        for tick in &x_ticks {
            canvas.line((x(*tick), TOP), (x(*tick), bottom), GRID);
            canvas.text(
                (x(*tick), bottom + 16.0),
                r#"text-anchor="middle""#,
                &short(*tick),
            );
        }
        for tick in &y_ticks {
            canvas.line((left, y(*tick)), (right, y(*tick)), GRID);
            canvas.text(
                (left - 6.0, y(*tick) + 4.0),
                r#"text-anchor="end""#,
                &short(*tick),
            );
        }
        canvas.text((right, bottom + 34.0), r#"text-anchor="end""#, self.x);
        canvas.text((MARGIN, TOP - 6.0), "", self.y);
        for (mark, label) in &self.marks {
            canvas.line((x(*mark), TOP), (x(*mark), bottom), DASHED);
            let style = r#"text-anchor="middle" font-size="10""#;
            canvas.text((x(*mark), bottom + 28.0), style, label);
        }
        let mut legend = TOP + 12.0;
        for (group, curve) in self.curves.iter().enumerate() {
            let places: Vec<String> = curve
                .points
                .iter()
                .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
                .collect();
            let colour = colour(group);
            canvas.shape(&format!(
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#,
                places.join(" ")
            ));
            canvas.text(
                (right + 10.0, legend),
                &format!(r#"fill="{colour}""#),
                &curve.label,
            );
            legend += 16.0;
        }
        canvas.finish(SCATTER_HEIGHT)
    }
}

/// A rectangle of the drawing.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    fn around((x, y): (f64, f64)) -> Self {
        Self {
            left: x - 5.0,
            right: x + 5.0,
            top: y - 5.0,
            bottom: y + 5.0,
        }
    }

    /// Places the label beside the point, or if that is occupied, where it covers least of `taken`.
    fn of_label(label: &str, (x, y): (f64, f64), taken: &[Self]) -> Self {
        // Letters of 11 pixels are about six pixels wide.
        let (width, height) = (label.chars().fold(0.0, |width, _| width + 6.2), 13.0);
        let at = |left: f64, top: f64| Self {
            left,
            right: left + width,
            top,
            bottom: top + height,
        };
        let beside = [(x + 7.0, y - 6.0), (x - 7.0 - width, y - 6.0)];
        let above_or_below = [
            (x - width / 2.0, y - 20.0),
            (x - width / 2.0, y + 7.0),
            (x + 4.0, y - 19.0),
            (x + 4.0, y + 6.0),
        ];
        let places = beside
            .into_iter()
            .chain(above_or_below)
            .map(|(left, top)| at(left, top));
        let covered = |area: &Self| taken.iter().filter(|other| area.overlaps(other)).count();
        places.min_by_key(covered).unwrap_or_else(|| at(x, y))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

fn colour(group: usize) -> &'static str {
    COLOURS[group % COLOURS.len()]
}

/// Returns about five round values that enclose the span.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let rough = ((most - least) / 5.0).max(1e-9);
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let mut tick = (least / step).floor() * step;
    let mut ticks = vec![tick];
    while tick < most {
        tick += step;
        ticks.push(tick);
    }
    ticks
}

/// Formats a value with three digits.
fn short(value: f64) -> String {
    let decimals = match value {
        value if value.fract() == 0.0 || value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_span() {
        assert_eq!(ticks(0.0, 20.0), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(ticks(0.0, 9.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    }

    #[test]
    fn a_label_keeps_clear_of_other_labels_and_points() {
        let taken = [Area::around((100.0, 100.0)), Area::around((120.0, 100.0))];
        let label = Area::of_label("label", (100.0, 100.0), &taken);
        assert!(taken.iter().all(|area| !label.overlaps(area)), "{label:?}");
    }

    #[test]
    fn labels_are_escaped() {
        let bar = Bar {
            label: "a<b&c".to_owned(),
            value: 1.0,
            least: 1.0,
            most: 1.0,
            group: 7,
        };
        let plot = Plot::Bars(Bars {
            title: "t".to_owned(),
            unit: "u",
            bars: vec![bar],
            marks: Vec::new(),
        });
        assert!(plot.svg().contains("a&lt;b&amp;c"));
    }
}
