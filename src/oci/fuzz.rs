//! Fuzz targets: arbitrary bytes in place of the input of clients and registries.

use bytes::Bytes;

use super::range::{self, Selection};
use super::route::Route;
use super::{Reference, document};

/// Input: eight bytes of an object's size, then a `Range` header. The parts lie in the object, and
/// no two touch.
pub fn ranges(data: &[u8]) {
    let Some((size, header)) = data.split_first_chunk::<8>() else {
        return;
    };
    let (size, header) = (u64::from_le_bytes(*size), String::from_utf8_lossy(header));
    let Some(specs) = range::parse(&header) else {
        return;
    };
    let Selection::Parts(mut parts) = range::select(&specs, size) else {
        return;
    };
    parts.sort_by_key(|part| part.start);
    assert!(
        parts
            .iter()
            .all(|part| part.start < part.end && part.end <= size),
        "{parts:?} of {size}"
    );
    assert!(
        parts.windows(2).all(|pair| pair[0].end < pair[1].start),
        "{parts:?}"
    );
}

/// Input: a path behind `/v2/`, a reference, a repository. A parsed name prints as it was read.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(route) = Route::parse(&text) {
        let name = route.name.to_string();
        assert_eq!(name.parse::<super::Repository>().ok(), Some(route.name));
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(
            reference.to_string().parse::<Reference>().ok(),
            Some(reference)
        );
    }
}

/// Input: a body that may be a manifest. An accepted manifest has the size of its bytes and can be
/// translated without a panic.
pub fn documents(data: &[u8]) {
    if let Ok(manifest) = document::read(None, None, Bytes::copy_from_slice(data)) {
        assert_eq!(manifest.size(), data.len() as u64);
        let _translated = super::translate::image(&manifest);
    }
}
