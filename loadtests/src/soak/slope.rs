//! The slope of a curve: how fast a process grows.

/// Returns the slope of the least-squares line through these points, or `None` for fewer than two.
pub(crate) fn of(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.iter().fold(0.0, |count, _| count + 1.0);
    let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let common: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    (spread > 0.0).then(|| common / spread)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_has_its_slope_and_noise_has_none() {
        let line: Vec<_> = (0..10)
            .map(|x| (f64::from(x), 3.0 + 2.0 * f64::from(x)))
            .collect();
        assert!((super::of(&line).unwrap() - 2.0).abs() < 1e-9);
        let flat = [(0.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.0, 1.0)];
        assert!(super::of(&flat).unwrap().abs() < 1e-9);
        assert_eq!(super::of(&[(1.0, 1.0)]), None);
    }
}
