//! The registries in which locations are opened.

use super::destination::Destination;
use super::endpoint::Endpoint;
use super::location::Location;
use crate::failure::Failure;
use crate::registry;

/// The configured registries, and whether an unconfigured one is reached over plain HTTP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registries<'a> {
    pub(crate) config: &'a registry::Config,
    pub(crate) plain_http: bool,
}

impl Registries<'_> {
    /// Opens the image at `location` for reading.
    pub(crate) fn endpoint(&self, location: &Location) -> Result<Endpoint, Failure> {
        Endpoint::open(self.config, location, self.plain_http)
    }

    /// Opens `location` for writing.
    pub(crate) fn destination(&self, location: &Location) -> Result<Destination, Failure> {
        Destination::open(self.config, location, self.plain_http)
    }
}
