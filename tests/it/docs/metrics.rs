//! The metrics reference matches the table in the source.

use std::path::Path;

#[test]
fn the_metrics_reference_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
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
