//! One check of the doctor, with its outcome.

use serde::Serialize;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) state: State,
    pub(crate) told: String,
    /// The repair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Good,
    /// Works, but not as well as it could.
    Fair,
    Bad,
}

impl Check {
    pub(crate) fn good(what: &'static str, told: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Good,
            told: told.into(),
            mend: None,
        }
    }

    pub(crate) fn fair(
        what: &'static str,
        told: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            what,
            state: State::Fair,
            told: told.into(),
            mend: Some(mend.into()),
        }
    }

    pub(crate) fn bad(
        what: &'static str,
        told: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            what,
            state: State::Bad,
            told: told.into(),
            mend: Some(mend.into()),
        }
    }
}

pub(crate) fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check {
        what,
        state,
        told,
        mend,
    } in checks
    {
        let mark = match state {
            State::Good => "ok  ",
            State::Fair => "fair",
            State::Bad => "BAD ",
        };
        text += &format!("{mark}  {what}: {told}\n");
        for line in mend.iter().flat_map(|mend| mend.lines()) {
            text += &format!("      {line}\n");
        }
    }
    text
}
