//! The EROFS driver: the tests of the other driver once more, and its own.

#[expect(
    clippy::duplicate_mod,
    reason = "the same tests run over another driver"
)]
#[path = "../merged.rs"]
mod merged;
#[expect(
    clippy::duplicate_mod,
    reason = "the same tests run over another driver"
)]
#[path = "../model.rs"]
mod model;
#[expect(
    clippy::duplicate_mod,
    reason = "the same tests run over another driver"
)]
#[path = "../mount.rs"]
mod mount;
mod native;
#[expect(
    clippy::duplicate_mod,
    reason = "the same tests run over another driver"
)]
#[path = "../profiles.rs"]
mod profiles;
#[expect(
    clippy::duplicate_mod,
    reason = "the same tests run over another driver"
)]
#[path = "../pull.rs"]
mod pull;
#[expect(
    clippy::duplicate_mod,
    reason = "the same tests run over another driver"
)]
#[path = "../reads.rs"]
mod reads;
mod restored;
