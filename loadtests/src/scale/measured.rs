//! The figures of the runs, as they are kept beside the report and read again by the model.

use serde::{Deserialize, Serialize};

/// The cost of some work for the replicas and the bucket.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Used {
    /// Seconds of wall time.
    pub(super) wall: f64,
    /// Seconds of processor time of all replicas.
    pub(super) cpu: f64,
    /// GET and HEAD requests to the bucket.
    pub(super) reads: f64,
    /// PUT, POST and listing requests to the bucket.
    pub(super) writes: f64,
}

/// The work of the clients.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) pulls: f64,
    /// Requests with a range.
    pub(super) ranges: f64,
    /// Bytes of ranges and documents.
    pub(super) bytes: f64,
    /// Whole layers, and their bytes.
    pub(super) wholes: f64,
    pub(super) whole_bytes: f64,
    /// Pulls that were answered with the source image first.
    pub(super) source_first: f64,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        self.pulls += other.pulls;
        self.ranges += other.ranges;
        self.bytes += other.bytes;
        self.wholes += other.wholes;
        self.whole_bytes += other.whole_bytes;
        self.source_first += other.source_first;
    }
}

/// Some work, and its cost.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Phase {
    pub(super) done: Done,
    pub(super) used: Used,
}

/// All phases with one number of replicas and of clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) replicas: usize,
    pub(super) clients: usize,
    /// Each client pulls each image, none of which is converted.
    pub(super) cold: Phase,
    /// The same again.
    pub(super) warm: Phase,
    /// Ranges of [`Ranges::SMALL`] and of [`Ranges::LARGE`] bytes.
    pub(super) small: Phase,
    pub(super) large: Phase,
    /// Whole layers.
    pub(super) whole: Phase,
    /// Layers that were converted, by all replicas together.
    pub(super) conversions: f64,
}

/// The lengths of the measured ranges.
pub(super) struct Ranges;

impl Ranges {
    pub(super) const SMALL: usize = 32 << 10;
    pub(super) const LARGE: usize = 512 << 10;
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Measured {
    /// The day and the machine.
    pub(super) of: String,
    pub(super) images: f64,
    /// Different layers of all images.
    pub(super) layers: f64,
    /// Bytes of these layers as the upstream has them.
    pub(super) source_bytes: f64,
    /// The share of each layer that a client reads.
    pub(super) share: f64,
    pub(super) runs: Vec<Run>,
    /// For each number of replicas, the seconds from the first replica's answer with the converted
    /// image to the last one's, in order.
    pub(super) noticed: Vec<(usize, Vec<f64>)>,
}
