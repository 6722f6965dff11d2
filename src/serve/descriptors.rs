//! Descriptors of the process: raised to what is allowed at the start, and divided.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is assumed where nobody bounds them.
const UNBOUNDED: u64 = 1 << 20;

/// Raises the number of descriptors that may be open as far as the process may, and returns it.
pub(super) fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, limit = limit.current, "the number of open files cannot be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(UNBOUNDED)
}

/// How many connections there may be: as many as configured, and half of the descriptors at most. Each request may need
/// one more for an upstream or a file, and conversions need theirs.
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
    fn as_many_as_the_process_may_open() {
        let limit = raise();
        assert_eq!(
            getrlimit(Resource::Nofile).maximum.unwrap_or(UNBOUNDED),
            limit
        );
    }
}
