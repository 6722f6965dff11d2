//! Figures of several rounds: the median, the least and the most.

/// The values of one figure over the rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
        let middle = figures.len() / 2;
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self {
            median,
            least: at(0),
            most: at(figures.len().wrapping_sub(1)),
        }
    }

    /// Formats the figure as `median (least–most)` with this many decimals.
    pub(crate) fn show(&self, decimals: usize) -> String {
        format!(
            "{:.decimals$} ({:.decimals$}–{:.decimals$})",
            self.median, self.least, self.most
        )
    }
}

/// Converts a count for reports, which need three digits.
#[expect(clippy::cast_precision_loss, reason = "a report needs three digits")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).show(0), "2 (1–3)");
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).show(1), "2.5 (1.0–4.0)");
        assert!(Spread::of([]).median.is_nan());
    }
}
