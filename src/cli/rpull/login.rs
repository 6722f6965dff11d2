//! The flags with the login for the registry of the image.

use std::io::{BufRead as _, IsTerminal as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::cli::output;
use crate::failure::Failure;
use crate::registry::{Login, Logins, Secret};
use crate::signals::interruption;

/// Login flags. Without them, the configuration's and Docker's credentials are used.
#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    /// User and password; without a password it is read from standard input
    #[arg(long, short, value_name = "USER[:PASSWORD]")]
    user: Option<String>,
    /// A refresh token for the registry's token endpoint
    #[arg(long, value_name = "TOKEN", conflicts_with = "user")]
    refresh: Option<String>,
}

impl LoginArgs {
    /// Returns the login of the flags, which counts only for `host`. May prompt for a password.
    pub(super) async fn logins(&self, host: &str) -> Result<Option<Logins>, Failure> {
        let login = match (&self.user, &self.refresh) {
            (Some(user), _) => with_password(user).await?,
            (None, Some(token)) => Login::Identity(Secret::new(token)),
            (None, None) => return Ok(None),
        };
        Ok(Some(Logins::for_host(host.to_owned(), login)))
    }
}

async fn with_password(user: &str) -> Result<Login, Failure> {
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Secret::new(password)),
        None => (user, read_password(user).await?),
    };
    Ok(Login::Password {
        user: user.to_owned(),
        password,
    })
}

/// Reads a password from a line of standard input. A terminal does not show it.
async fn read_password(user: &str) -> Result<Secret, Failure> {
    let hidden = std::io::stdin()
        .is_terminal()
        .then(HiddenInput::new)
        .transpose()?;
    if hidden.is_some() {
        output::say(&format!("password of {user}:"));
    }
    let line = tokio::select! {
        line = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next().transpose()) => line,
        interruption = interruption() => return Err(interruption),
    };
    drop(hidden);
    let line = line
        .map_err(Failure::from_error)?
        .map_err(Failure::when("the password cannot be read"))?;
    let line = line.unwrap_or_default();
    let password = line.trim_end_matches('\r');
    if password.is_empty() {
        Err(Failure::new("no password was given"))
    } else {
        Ok(Secret::new(password))
    }
}

/// A guard that keeps the terminal from showing typed text until it is dropped.
struct HiddenInput(Termios);

impl HiddenInput {
    fn new() -> Result<Self, Failure> {
        let before = tcgetattr(std::io::stdin()).map_err(Failure::from_error)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &hidden)
            .map_err(Failure::from_error)?;
        Ok(Self(before))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}
