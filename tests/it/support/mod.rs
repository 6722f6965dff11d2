//! Peers and inputs that more than one test uses.

pub(crate) mod bucket;
pub(crate) mod image;
pub(crate) mod registry;
pub(crate) mod s3;
