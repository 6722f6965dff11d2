//! Keys of annotations and labels, each with the place that defines it.

/// On a converted image, its index and its layers: the digest of its source.
pub const SOURCE_DIGEST: &str = "dev.starlift.source.digest";
/// On a converted layer: the digest of the source tar, the first `SOURCE_SIZE` bytes of the
/// decompressed layer.
pub const SOURCE_DIFF_ID: &str = "dev.starlift.source.diff-id";
/// On a converted layer: the length of the source tar.
pub const SOURCE_SIZE: &str = "dev.starlift.source.size";
/// On a converted image: the generation of the bytes.
pub const GENERATION: &str = "dev.starlift.generation";
/// On a profile: the workload that it is of.
pub const PROFILE_WORKLOAD: &str = "dev.starlift.profile.workload";

/// On an artifact with an in-toto statement: the type of its predicate (BuildKit,
/// `docs/attestations/attestation-storage.md`).
pub const PREDICATE: &str = "in-toto.io/predicate-type";

/// When something was made (OCI image-spec, annotations.md).
pub const CREATED: &str = "org.opencontainers.image.created";
/// On an entry of a layout's index: the tag, or a whole reference (OCI image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// On an entry of a layout's index: the whole reference, by containerd and newer Docker engines.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The digest of the TOC of an eStargz layer (stargz-snapshotter,
/// `estargz.TOCJSONDigestAnnotation`).
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// On an external TOC: the layer that it is of (stargz-snapshotter,
/// `nativeconverter/estargz/externaltoc`).
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/stargz/layer.digest";
/// Length of the decompressed layer (stargz-snapshotter, `estargz.StoreUncompressedSizeAnnotation`).
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// The digest of the TOC of a zstd:chunked layer (containers/storage,
/// `internal.ManifestChecksumKey`).
pub const ZSTD_CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
/// The same by its older name, which is stargz-snapshotter's.
pub const OLDER_ZSTD_CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
/// `offset:length:decompressed length:type` of the TOC (containers/storage, `internal.ManifestInfoKey`).
pub const ZSTD_POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";

/// The diff-id of a layer (containerd, `labels.LabelUncompressed`), which some builders also write as annotation.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The repositories a blob was found in, with the registry's host behind a dot (containerd,
/// `labels.LabelDistributionSource`).
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source";
/// The chain-id that a snapshot is to be committed as (containerd, `snapshots.go`).
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// On a child of an index: its kind, where it describes another child (BuildKit,
/// `docs/attestations/attestation-storage.md`).
pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// On such a child: the digest of the child that it describes.
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// Labels by which the reference's own client describes a layer to a snapshotter
/// (stargz-snapshotter, `fs/source/source.go`).
pub mod stargz {
    /// The image as the client names it.
    pub const REFERENCE: &str = "containerd.io/snapshot/remote/stargz.reference";
    pub const LAYER: &str = "containerd.io/snapshot/remote/stargz.digest";
    /// The layer and those above it.
    pub const LAYERS: &str = "containerd.io/snapshot/remote/stargz.layers";
    pub const PREFETCH_SIZE: &str = "containerd.io/snapshot/remote/stargz.prefetch";
    pub const SKIP_VERIFY: &str = "containerd.io/snapshot/remote/stargz.skipverify";
}

/// Labels by which containerd describes a layer to a snapshotter (containerd,
/// `pkg/snapshotters/annotations.go`).
pub mod cri {
    /// The image as the client names it.
    pub const REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
    pub const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
    /// The layer and those above it.
    pub const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
    pub const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
}
