//! Paths of a TOC, split into the names that lead from the root.

use super::error::TocError;
use crate::limits::Limits;

/// Splits `path` into its names from the root, as Go's `path.Clean` on `"/" + path` does: empty
/// names and `.` are dropped, `..` goes up and stops at the root. A NUL byte is an error.
pub(super) fn components<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, TocError> {
    if path.len() > limits.max_path_bytes {
        return Err(TocError::Limit {
            what: "bytes in a path",
            limit: limits.max_path_bytes as u64,
        });
    }
    if path.contains(&0) {
        return Err(TocError::Name { path: lossy(path) });
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ => names.push(name),
        }
    }
    if names.len() > limits.max_path_depth {
        return Err(TocError::Limit {
            what: "directories in a path",
            limit: limits.max_path_depth as u64,
        });
    }
    Ok(names)
}

/// Returns a path for people to read.
pub(super) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> String {
        let limits = Limits {
            max_path_bytes: 40,
            max_path_depth: 4,
            ..Limits::default()
        };
        match components(path.as_bytes(), &limits) {
            Ok(names) => names
                .iter()
                .map(|name| lossy(name))
                .collect::<Vec<_>>()
                .join("|"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn paths_are_cleaned_as_the_reference_does() {
        assert_eq!(names("./usr//lib/"), "usr|lib");
        assert_eq!(names("/usr/./lib/../bin"), "usr|bin");
        assert_eq!(names("../../etc"), "etc");
        assert_eq!(names("./"), "");
    }

    #[test]
    fn hostile_paths_are_refused() {
        assert_eq!(
            names("a/b/c/d/e"),
            "TOC exceeds the limit of 4 directories in a path"
        );
        assert_eq!(
            names(&"a".repeat(41)),
            "TOC exceeds the limit of 40 bytes in a path"
        );
        assert_eq!(names("a\0b"), "\"a\\0b\" is not a usable name");
    }
}
