//! The record files of `ctr-remote image optimize --record-out`: which files a container opened, in order.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use super::failure::Failure;

/// A record over this is not read: one of a million files is a fifth of it.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// A line of the record; which image and layer it was is of no concern here.
#[derive(Deserialize)]
struct Line {
    path: String,
}

/// The paths in `file`, each once, in the order of their first use.
pub(super) fn read(file: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let cannot = || Failure::when(format!("{} cannot be read", file.display()));
    if std::fs::metadata(file).map_err(cannot())?.len() > MAX_RECORD_BYTES {
        return Err(Failure::new(format!("{} is over {MAX_RECORD_BYTES} bytes long", file.display())));
    }
    let text = std::fs::read(file).map_err(cannot())?;
    paths(&text).map_err(Failure::when(format!("{} is no record", file.display())))
}

fn paths(text: &[u8]) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let mut seen = HashSet::new();
    let mut paths = Vec::new();
    for line in serde_json::Deserializer::from_slice(text).into_iter::<Line>() {
        let path = line?.path.into_bytes();
        if seen.insert(path.clone()) {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_once_and_in_order() {
        let text = br#"{"path":"bin/sh","layerIndex":0}
{"path":"lib/libc.so"}
{"path":"bin/sh","manifestDigest":"sha256:00"}"#;
        assert_eq!(paths(text).unwrap(), [b"bin/sh".to_vec(), b"lib/libc.so".to_vec()]);
        assert!(paths(b"{\"path\":1}").is_err());
        assert!(paths(b"").unwrap().is_empty());
    }
}
