//! The compared ways in which an image reaches a node.

/// One way to start an image.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// Whether the agent asks the server for a profile.
    pub(super) profiles: bool,
    /// The number of starts from which the server learns before the measurement.
    pub(super) learned: u64,
    /// The snapshotter that mounts the image.
    pub(super) node: Daemon,
}

/// The snapshotter of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    /// containerd's own, which unpacks.
    Overlayfs,
    Starlift,
    /// The reference's, as the load tests of the agent start it.
    Reference,
}

/// The form of the image in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The source image, which the node unpacks.
    Source,
    /// Converted on request.
    Converted,
    /// Optimised in advance by `starlift optimize`.
    ByStarlift,
    /// Optimised in advance by `ctr-remote image optimize`.
    ByReference,
}

pub(super) const PLAIN: &str = "plain pull";
pub(super) const NO_PROFILE: &str = "no profile";
pub(super) const STATIC: &str = "static profile";
/// The rows after one start and after three.
pub(super) const LEARNED: [&str; 2] = ["learned, 1 start", "learned, 3 starts"];
/// The rows with images optimised by hand. The better of the two is the optimum to which the other
/// rows are compared.
pub(super) const BY_HAND: [&str; 2] = ["starlift optimize", "ctr-remote optimize"];

/// The rows with lazy images that are converted on request and need no work by hand.
const WITHOUT: Row = Row {
    name: NO_PROFILE,
    form: Form::Converted,
    profiles: false,
    learned: 0,
    node: Daemon::Starlift,
};
const PREDICTED: Row = Row {
    name: STATIC,
    form: Form::Converted,
    profiles: true,
    learned: 0,
    node: Daemon::Starlift,
};
const AFTER_ONE: Row = Row {
    name: LEARNED[0],
    form: Form::Converted,
    profiles: true,
    learned: 1,
    node: Daemon::Starlift,
};

pub(super) const ROWS: [Row; 7] = [
    Row {
        name: PLAIN,
        form: Form::Source,
        profiles: false,
        learned: 0,
        node: Daemon::Overlayfs,
    },
    WITHOUT,
    PREDICTED,
    AFTER_ONE,
    Row {
        name: LEARNED[1],
        form: Form::Converted,
        profiles: true,
        learned: 3,
        node: Daemon::Starlift,
    },
    Row {
        name: BY_HAND[0],
        form: Form::ByStarlift,
        profiles: false,
        learned: 0,
        node: Daemon::Starlift,
    },
    Row {
        name: BY_HAND[1],
        form: Form::ByReference,
        profiles: false,
        learned: 0,
        node: Daemon::Starlift,
    },
];

/// The rows that are compared for each chunk size.
pub(super) const CHUNK_ROWS: [Row; 4] = [
    WITHOUT,
    PREDICTED,
    AFTER_ONE,
    Row {
        name: "reference daemon",
        form: Form::Converted,
        profiles: false,
        learned: 0,
        node: Daemon::Reference,
    },
];
