//! Entries of a layout's index: the annotation that names one, and the names of the images of
//! external TOCs.

use serde_json::Value;

use crate::failure::Failure;
use crate::oci::annotations::REF_NAME;
use crate::oci::name::DEFAULT_TAG;
use crate::oci::{Descriptor, Reference};

/// The suffix that stargz-snapshotter appends to the tag of an image for the image of its external
/// TOCs.
pub(super) const TOC_SUFFIX: &str = "-esgztoc";

/// Whether a layout's entry is not an image but belongs to one.
pub(super) fn is_artifact(entry: &Descriptor) -> bool {
    entry.rest.contains_key("artifactType") || ref_name(entry).is_some_and(is_toc_name)
}

pub(super) fn ref_name(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).and_then(Value::as_str)
}

/// Returns the tag of the TOCs of the image `name`, or their full name if `name` is one.
pub(super) fn toc_name(name: Option<&str>) -> String {
    format!("{}{TOC_SUFFIX}", name.unwrap_or(DEFAULT_TAG))
}

/// Whether an image of this name holds the TOCs of another.
fn is_toc_name(name: &str) -> bool {
    name.ends_with(TOC_SUFFIX)
}

/// Returns the tag of the TOCs of the image that `reference` names.
pub(super) fn toc_reference(reference: Option<&Reference>) -> Result<Reference, Failure> {
    let tag = match reference {
        Some(Reference::Tag(tag)) => Some(tag.as_str()),
        Some(Reference::Digest(_)) | None => None,
    };
    toc_name(tag)
        .parse()
        .map(Reference::Tag)
        .map_err(Failure::from_error)
}
