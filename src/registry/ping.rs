//! Asks the hosts of a registry whether they are one, whether they accept the credentials, and what
//! time they have. Nothing of it counts as a pull.

use std::time::SystemTime;

use reqwest::StatusCode;
use reqwest::header::DATE;

use super::client::Registry;
use super::endpoint::Endpoint;
use super::error::Error;

/// The answer of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    pub login: LoginState,
    /// The host's time, in whole seconds.
    pub date: Option<SystemTime>,
}

/// What a host thinks of the credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginState {
    /// It answers without any.
    NotAsked,
    /// It wants some, and there are none.
    None,
    Accepted,
}

impl Registry {
    /// Asks the registry and each of its mirrors. Returns `host[:port]` with the outcome.
    pub(crate) async fn ping(&self) -> Vec<(String, Result<Ping, Error>)> {
        let mut pings = Vec::new();
        for endpoint in self.mirrors.iter().chain([&self.own]) {
            pings.push((endpoint.host(), ping(endpoint).await));
        }
        pings
    }
}

async fn ping(endpoint: &Endpoint) -> Result<Ping, Error> {
    let answer = endpoint.root(false).await?;
    let date = answer.header(DATE);
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let login = match answer.status() {
        StatusCode::UNAUTHORIZED if endpoint.has_login().await? => {
            // A token without a scope, or a password.
            endpoint.root(true).await?;
            LoginState::Accepted
        }
        StatusCode::UNAUTHORIZED => LoginState::None,
        _ => {
            answer.accepted()?;
            LoginState::NotAsked
        }
    };
    Ok(Ping { login, date })
}
