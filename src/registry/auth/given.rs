//! Logins from the caller: a flag of the command line, or credentials that a kubelet sent with a
//! pull.

use std::fmt;
use std::sync::Arc;

use super::login::Login;
use crate::oci::Repository;

/// A function that returns a login for the registry's name, as image names spell it (`docker.io`,
/// `127.0.0.1:5000`), and the repository.
///
/// It is called for each login, so its answers may change. It must not block.
#[derive(Clone)]
pub struct Logins(Arc<Find>);

type Find = dyn Fn(&str, &Repository) -> Option<Login> + Send + Sync;

impl Logins {
    pub fn new(find: impl Fn(&str, &Repository) -> Option<Login> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// Returns `login` for every repository at `host`, and none elsewhere.
    pub fn for_host(host: String, login: Login) -> Self {
        Self::new(move |asked, _repository| (asked == host).then(|| login.clone()))
    }
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logins")
    }
}

/// The logins for one registry.
#[derive(Debug, Clone)]
pub(in crate::registry) struct Given {
    pub(in crate::registry) logins: Logins,
    /// The names of the registry in image names.
    pub(in crate::registry) names: Vec<String>,
    /// The prefix that the registry puts in front of the repository in an image's name; ends with
    /// `/` or is empty.
    pub(in crate::registry) prefix: String,
}

impl Given {
    /// Returns the login for a repository, given by its name at the registry.
    pub(super) fn login(&self, repository: &str) -> Option<Login> {
        let repository = repository.strip_prefix(&self.prefix)?.parse().ok()?;
        self.names
            .iter()
            .find_map(|name| (self.logins.0)(name, &repository))
    }
}
