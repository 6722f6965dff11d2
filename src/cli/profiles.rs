//! Profiles as text.

use bytesize::ByteSize;

use super::table::Table;
use crate::inspect::profiles::{FileReport, ProfileReport};

/// Returns the profile as text with a table.
pub(super) fn text(profile: &ProfileReport) -> String {
    let sources: Vec<_> = profile.sources.iter().map(|source| source.name()).collect();
    let mut text = format!(
        "  workload {}: {} files, {}, {}",
        profile.workload,
        profile.files.len(),
        ByteSize::b(profile.bytes),
        if sources.is_empty() {
            "nothing is known".to_owned()
        } else {
            sources.join(" and ")
        },
    );
    if profile.observers > 0 {
        let plural = if profile.observers == 1 { "" } else { "s" };
        text.push_str(&format!(", {} observer{plural}", profile.observers));
    }
    let mut table = Table::new();
    table.row(["order", "after", "size", "layer", "source", "path"]);
    for (place, FileReport { size, file }) in profile.files.iter().enumerate() {
        let sources: Vec<_> = file.sources.iter().map(|source| source.name()).collect();
        table.row([
            (place + 1).to_string().as_str(),
            &format!("{} ms", file.after.as_millis()),
            &size.map_or("none".to_owned(), |size| ByteSize::b(size).to_string()),
            &file.layer.to_string(),
            &sources.join(","),
            &file.path,
        ]);
    }
    format!("{text}\n{table}")
}
