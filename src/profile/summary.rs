//! What is known about an image's starts, in numbers.

use super::workload::Workload;

/// The sources of an image's profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The files that a person recorded, or that a profile beside the source image names.
    pub recorded: Option<usize>,
    /// The files that static analysis predicted.
    pub predicted: Option<usize>,
    pub workloads: Vec<WorkloadSummary>,
}

/// What was learned of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadSummary {
    pub workload: Workload,
    /// Starts that nodes and clients reported, those of forgotten observers not included.
    pub starts: u32,
    /// Nodes that are remembered.
    pub nodes: usize,
    /// Clients whose requests for ranges are remembered.
    pub clients: usize,
    /// The time of the last observation, in seconds since 1970.
    pub heard: u64,
}

impl Summary {
    /// The starts of all workloads.
    pub fn starts(&self) -> u64 {
        let starts = self.workloads.iter().map(|seen| u64::from(seen.starts));
        starts.sum()
    }
}
