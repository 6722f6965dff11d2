//! The ways for an image to come to a node that are compared.

/// One way.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) form: Form,
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
/// What others do by hand; the better of them is the optimum that rows are put in relation to.
pub(super) const BY_HAND: [&str; 2] = ["starlift optimize", "ctr-remote optimize"];

pub(super) const ROWS: [Row; 4] = [
    Row { name: PLAIN, form: Form::Original },
    Row { name: NO_PROFILE, form: Form::Twin },
    Row { name: BY_HAND[0], form: Form::ByStarlift },
    Row { name: BY_HAND[1], form: Form::ByReference },
];
