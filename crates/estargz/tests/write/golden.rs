//! The bytes themselves: a change here is a new generation of every converted layer.

use estargz::write::{Compression, Layout, Options, TocPlacement};

use crate::support::{convert, every_type};

#[test]
fn the_bytes_are_those_of_this_generation() {
    let base = Options::default();
    let digests: Vec<String> = [
        base.clone(),
        Options::fast(),
        base.clone().with_layout(Layout::Classic),
        base.clone().with_toc(TocPlacement::External),
        base.clone()
            .with_min_chunk_size(10_000)
            .with_chunk_size(100_000),
        base.with_compression(Compression::Zstd(3)),
    ]
    .iter()
    .map(|options| convert(&every_type(), options).1.blob_digest.to_string())
    .collect();
    assert_eq!(digests, DIGESTS);
}

const DIGESTS: [&str; 6] = [
    "sha256:7d908751173547b9f1950b08c58d55e09d88100038a137f772c5b85842b64a0e",
    "sha256:30c70d122b4b5aa7e308385263b10c05a9575fafb1ace30e9877eb34d191eab4",
    "sha256:5ec40f35a42f8b148e4df63fa67ac7d9397ee8e372cf4da04f9250da0f9781ba",
    "sha256:49c581381c228b24a23cd9deb92323bf43ecaae6575530a41f8a45e6725c256c",
    "sha256:8633862736e08817d6f17994b734cf737fc132d4777d752327b65405ebe14d11",
    "sha256:e4c17da54977427c752ac264a14e42d6234169a47df9a0c72c575a9c78634ee8",
];
