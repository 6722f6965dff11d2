//! Logins that a caller knows: a flag of the command line, or what a kubelet sent with a pull.

use std::fmt;
use std::sync::Arc;

use super::login::Login;
use crate::oci::Repository;

/// Tells a login by the registry's name, as images are named by it (`docker.io`, `127.0.0.1:5000`), and the repository.
///
/// Asked for each login anew, so what it knows may change; it must not block.
#[derive(Clone)]
pub struct Logins(Arc<Find>);

type Find = dyn Fn(&str, &Repository) -> Option<Login> + Send + Sync;

impl Logins {
    pub fn new(find: impl Fn(&str, &Repository) -> Option<Login> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// `login` for everything at `host`, and none elsewhere.
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
    /// What images call the registry.
    pub(in crate::registry) names: Vec<String>,
    /// What the registry has in front of the repository that images name; ends with `/` or is empty.
    pub(in crate::registry) prefix: String,
}

impl Given {
    /// The login for a repository by its name at the registry.
    pub(super) fn login(&self, repository: &str) -> Option<Login> {
        let repository = repository.strip_prefix(&self.prefix)?.parse().ok()?;
        self.names
            .iter()
            .find_map(|name| (self.logins.0)(name, &repository))
    }
}
