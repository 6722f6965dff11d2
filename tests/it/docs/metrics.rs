//! The metrics reference matches the table in the source.

use super::sources::top;

#[test]
fn the_metrics_reference_is_fresh() {
    let path = top().join("docs/METRICS.md");
    let expected = starlift::telemetry::metrics::reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written,
        expected,
        "run this test with UPDATE_DOCS=1 to write {}",
        path.display()
    );
}
