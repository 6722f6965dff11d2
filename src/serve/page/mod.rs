//! The pages for people who operate the server: how to use it and its current work, the stored
//! images, one image, and the files of a layer.
//!
//! Pages are documents of the server: one style, no script, nothing from elsewhere. They change
//! nothing, and all text in them is escaped by the templates.

mod conversions;
mod folder;
mod frame;
mod image;
mod images;
mod operator;
mod plot;
mod start;
mod text;
mod usage;

pub(crate) use folder::show as folder;
pub(crate) use image::show as image;
pub(crate) use images::show as images;
pub(crate) use operator::sign_in;
pub(crate) use start::show as start;
