//! The ways for an image to come to a node that are compared.

/// One way.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// Whether the agent asks the server for a profile.
    pub(super) profiles: bool,
    /// Starts that the server has learned from.
    pub(super) learned: u64,
}

/// What the registry has of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As it was built, to be unpacked.
    Original,
    /// Converted as it is asked for.
    Twin,
    /// Optimised before, by `starlift optimize`.
    ByStarlift,
    /// Optimised before, by `ctr-remote image optimize`.
    ByReference,
}

pub(super) const PLAIN: &str = "plain pull";
pub(super) const NO_PROFILE: &str = "no profile";
pub(super) const STATIC: &str = "static profile";
/// After few starts, and after more.
pub(super) const LEARNED: [&str; 2] = ["learned, 1 start", "learned, 3 starts"];
/// What people do by hand; the better of them is the optimum that rows are put in relation to.
pub(super) const BY_HAND: [&str; 2] = ["starlift optimize", "ctr-remote optimize"];

pub(super) const ROWS: [Row; 7] = [
    Row {
        name: PLAIN,
        form: Form::Original,
        profiles: false,
        learned: 0,
    },
    Row {
        name: NO_PROFILE,
        form: Form::Twin,
        profiles: false,
        learned: 0,
    },
    Row {
        name: STATIC,
        form: Form::Twin,
        profiles: true,
        learned: 0,
    },
    Row {
        name: LEARNED[0],
        form: Form::Twin,
        profiles: true,
        learned: 1,
    },
    Row {
        name: LEARNED[1],
        form: Form::Twin,
        profiles: true,
        learned: 3,
    },
    Row {
        name: BY_HAND[0],
        form: Form::ByStarlift,
        profiles: false,
        learned: 0,
    },
    Row {
        name: BY_HAND[1],
        form: Form::ByReference,
        profiles: false,
        learned: 0,
    },
];
