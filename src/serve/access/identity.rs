//! Who sent a request.

use std::fmt;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use crate::registry::{ClientLogin, Login, Secret};

/// Who sent a request, as far as it is known.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    /// No credentials were sent.
    Anonymous,
    /// A user of this server.
    User(String),
    /// A client with credentials that only an upstream can judge.
    Client(Client),
}

/// A client by the credentials that it sends for an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) login: ClientLogin,
    id: [u8; 32],
}

/// The owner of the credentials with which an upstream is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reader {
    /// This server's own credentials.
    Server,
    /// The client with these credentials.
    Client([u8; 32]),
}

impl Client {
    pub(crate) fn new(login: ClientLogin) -> Self {
        let (kind, name, secret) = match &login {
            ClientLogin::Password { user, password } => ("password", user.as_str(), password),
            ClientLogin::Token(token) => ("token", "", token),
        };
        // No user's name has a line feed.
        let id = Sha256::new()
            .chain_update(format!("{kind}\n{name}\n"))
            .chain_update(secret.expose())
            .finalize();
        Self {
            login,
            id: id.into(),
        }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::Client(self.id)
    }
}

impl Identity {
    /// The kind of client, in the audit log.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::User(_) => "user",
            Self::Client(_) => "upstream",
        }
    }

    /// The name under which the client's requests are counted together; `None` if it has none.
    pub(crate) fn user(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::User(name) => Some(name),
            Self::Client(client) => match &client.login {
                ClientLogin::Password { user, .. } => Some(user),
                ClientLogin::Token(_) => None,
            },
        }
    }
}

impl fmt::Display for Identity {
    /// Without secrets, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Client(client) => match &client.login {
                ClientLogin::Password { user, .. } => write!(f, "upstream:{}", user.escape_debug()),
                ClientLogin::Token(_) => f.write_str("upstream:token"),
            },
        }
    }
}

/// An identity, and how long it is known.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) identity: Identity,
    /// The end of the token or certificate that shows it, in seconds since 1970.
    pub(super) until: Option<u64>,
}

impl From<Identity> for Known {
    fn from(identity: Identity) -> Self {
        Self {
            identity,
            until: None,
        }
    }
}

/// The credentials in a request, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password { user: String, password: Secret },
    Bearer(Secret),
}

/// An `Authorization` header that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Credentials {
    /// The credentials in the headers; `None` without any.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Malformed> {
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        match (lines.next(), lines.next()) {
            (None, _) => Ok(None),
            (Some(line), None) => Self::parse(line).map(Some).ok_or(Malformed),
            (Some(_), Some(_)) => Err(Malformed),
        }
    }

    fn parse(line: &HeaderValue) -> Option<Self> {
        let (scheme, value) = line.to_str().ok()?.split_once(' ')?;
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !value.is_empty() {
            return Some(Self::Bearer(Secret::new(value)));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        match Login::from_basic(value)? {
            Login::Password { user, password } if !user.contains(['\n', '\r']) => {
                Some(Self::Password { user, password })
            }
            Login::Password { .. } | Login::Anonymous | Login::Identity(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(lines: &[&str]) -> Result<Option<Credentials>, Malformed> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AUTHORIZATION, line.parse().unwrap());
        }
        Credentials::from_headers(&headers)
    }

    #[test]
    fn one_header_of_a_known_scheme_is_read() {
        assert_eq!(credentials(&[]), Ok(None));
        let password = Credentials::Password {
            user: "me".to_owned(),
            password: Secret::new("a:b"),
        };
        for line in ["Basic bWU6YTpi", "basic  bWU6YTpi"] {
            assert_eq!(credentials(&[line]), Ok(Some(password.clone())), "{line}");
        }
        let token = Credentials::Bearer(Secret::new("x.y.z"));
        assert_eq!(credentials(&["bearer x.y.z"]), Ok(Some(token)));
        for lines in [
            &["Basic bWU6YTpi", "Basic bWU6YTpi"][..],
            &["Negotiate x"],
            &["Basic ?"],
            &["Bearer "],
            &["bWU6YTpi"],
            &[""],
        ] {
            assert_eq!(credentials(lines), Err(Malformed), "{lines:?}");
        }
    }

    #[test]
    fn clients_differ_by_their_credentials_and_show_none() {
        let password = |user: &str, password: &str| {
            Client::new(ClientLogin::Password {
                user: user.to_owned(),
                password: Secret::new(password),
            })
        };
        let token = Client::new(ClientLogin::Token(Secret::new("hush")));
        let readers = [
            password("a", "hush").reader(),
            password("b", "hush").reader(),
            password("a", "other").reader(),
            token.reader(),
            Reader::Server,
        ];
        for (at, reader) in readers.iter().enumerate() {
            assert!(!readers[at + 1..].contains(reader), "{at}");
        }
        assert_eq!(password("a", "hush").reader(), readers[0]);
        for client in [password("a", "hush"), token] {
            let identity = Identity::Client(client);
            assert!(!format!("{identity:?} {identity}").contains("hush"));
        }
    }
}
