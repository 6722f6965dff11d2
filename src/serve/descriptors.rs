//! The descriptors of the process: the limit is raised at the start, and divided.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit that is assumed if there is none.
const UNBOUNDED: u64 = 1 << 20;

/// Raises the number of descriptors that may be open to the maximum of the process, and returns it.
pub(super) fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, limit = limit.current, "limit of open files not raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(UNBOUNDED)
}

/// The most connections: as many as configured, and at most half of the descriptors. Each request
/// may need one more descriptor for an upstream or a file, and conversions need theirs.
pub(super) fn connections(configured: usize, descriptors: u64) -> usize {
    configured
        .min(usize::try_from(descriptors / 2).unwrap_or(usize::MAX))
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_half_of_the_descriptors() {
        assert_eq!(connections(8192, 256), 128);
        assert_eq!(connections(8192, 1 << 20), 8192);
        assert_eq!(connections(8192, 0), 1);
    }

    #[test]
    fn the_limit_is_raised_to_the_maximum() {
        let limit = raise();
        assert_eq!(
            getrlimit(Resource::Nofile).maximum.unwrap_or(UNBOUNDED),
            limit
        );
    }
}
