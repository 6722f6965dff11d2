//! Reading through the public interface: golden blobs, hostile TOCs, properties.

mod golden;
mod hostile;
mod support;
mod tree;
