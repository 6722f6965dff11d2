//! The account of one request: who sent it, which budgets and which place it uses until it is
//! answered, and its line in the audit log.
//!
//! The middleware opens and closes it. Access fills it in while the request is handled, through the
//! task that serves it.

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;

use crate::convert;
use crate::oci::route::{Location, Operation};
use crate::oci::{Digest, Reference};
use crate::store;
use crate::transport::{Requester, Source};

use super::access::{Action, Admission, Identity, Reader};
use super::app::App;
use super::audit::{Decision, Entry, Image};
use super::budgets::{Budgets, Held, Kind, NotNow, OverBudget, Owner};
use super::places::Place;

tokio::task_local! {
    /// The account of the request that this task serves.
    static ACCOUNT: Arc<Account>;
}

/// The actions that read a blob and convert nothing.
const BLOB: &str = "pull-blob";

/// The account of one request.
#[derive(Debug, Default)]
pub(crate) struct Account {
    id: String,
    address: Option<IpAddr>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sender: Sender,
    action: Option<&'static str>,
    location: Option<Location>,
    reference: Option<Reference>,
    digest: Option<Digest>,
    /// The reason why the request was admitted.
    by: &'static str,
    owners: Vec<(Kind, Owner)>,
    held: Vec<Held>,
    place: Option<Place>,
}

/// The sender of a request, as far as it is known.
#[derive(Debug, Clone)]
enum Sender {
    /// The request was refused before.
    Unknown,
    /// An operator whom the listener makes one.
    Local,
    /// Nobody has judged the client's credentials yet. People type passwords in place of names.
    Unjudged(&'static str),
    Judged(Identity),
}

impl Sender {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Local => "local",
            Self::Unjudged(kind) => kind,
            Self::Judged(identity) => identity.kind(),
        }
    }
}

/// The answer to a request, as the audit log shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered<'a> {
    pub(crate) method: &'a str,
    pub(crate) digest: Option<&'a str>,
    /// The reason of a refusal.
    pub(crate) refused: Option<&'a str>,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
}

/// An image of which a registry announced a push.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announcement<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) location: &'a Location,
    pub(crate) reference: &'a Reference,
}

/// A conversion that a request asks for.
#[derive(Debug)]
pub(crate) struct Conversion {
    owners: Vec<(Kind, Owner)>,
}

impl Conversion {
    /// Takes it from all budgets of the request. It runs or waits while the ticket is held.
    pub(crate) async fn take(
        self,
        app: &App,
    ) -> Result<Result<convert::Ticket, OverBudget>, store::Error> {
        let mut held = Vec::new();
        for (kind, owner) in self.owners {
            if let Err(over) = app.budgets.check_stored(kind, &owner, &app.store).await? {
                return Ok(Err(over));
            }
            match app.budgets.convert(kind, &owner) {
                Ok(more) => held.extend(more),
                Err(over) => return Ok(Err(over)),
            }
        }
        Ok(Ok(convert::Ticket::new(held)))
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            sender: Sender::Unknown,
            action: None,
            location: None,
            reference: None,
            digest: None,
            by: "rule",
            owners: Vec::new(),
            held: Vec::new(),
            place: None,
        }
    }
}

impl Account {
    /// Opens the account of a request to an endpoint of this kind.
    pub(crate) fn open(id: &str, address: Option<IpAddr>, endpoint: &'static str) -> Arc<Self> {
        let action = match endpoint {
            "manifest" => Some("pull-manifest"),
            "blob" => Some(BLOB),
            "referrers" => Some("pull-referrers"),
            "tags" => Some("pull-tags"),
            "token" | "ping" => Some("login"),
            "notification" => Some("notify"),
            "api" | "page" | "health" => Some("admin"),
            _ => None,
        };
        Arc::new(Self {
            id: id.to_owned(),
            address,
            state: Mutex::new(State {
                action,
                ..State::default()
            }),
        })
    }

    /// The account of the request that this task serves; an empty one elsewhere.
    pub(crate) fn current() -> Arc<Self> {
        ACCOUNT.try_with(Arc::clone).unwrap_or_default()
    }

    /// Serves a request as a task with this account.
    pub(crate) async fn during<T>(self: Arc<Self>, served: impl Future<Output = T>) -> T {
        ACCOUNT.scope(self, served).await
    }

    /// Takes from the budgets of the address, before anything else is known.
    pub(crate) fn enter_by_address(&self, budgets: &Budgets) -> Result<(), OverBudget> {
        let owner = self.by_address();
        let held = budgets.enter(Kind::Address, &owner)?;
        let mut state = self.state.lock();
        state.held.extend(held);
        state.owners.push((Kind::Address, owner));
        Ok(())
    }

    pub(crate) fn hold_place(&self, place: Option<Place>) {
        self.state.lock().place = place;
    }

    fn by_address(&self) -> Owner {
        let client = self.address.map(|address| Owner::Address(address.into()));
        client.unwrap_or(Owner::Others)
    }

    /// Notes the image that the request is about.
    pub(crate) fn asks_for(&self, action: Action, location: &Location) {
        let mut state = self.state.lock();
        match action {
            Action::Pull => {}
            Action::Profiles => state.action = Some("profiles"),
            Action::Warm => state.action = Some("warm"),
            Action::Admin => state.action = Some("admin"),
        }
        state.location = Some(location.clone());
    }

    /// Notes that the request is about the profile of any image.
    pub(crate) fn asks_for_profiles(&self) {
        self.state.lock().action = Some("profiles");
    }

    /// Notes the object that the request is about.
    pub(crate) fn asks_for_object(&self, operation: &Operation) {
        match operation {
            Operation::Manifest(reference) => self.asks_for_reference(reference),
            Operation::Blob(digest) | Operation::Referrers(digest) => {
                self.state.lock().digest = Some(digest.clone());
            }
            Operation::Tags => {}
        }
    }

    pub(crate) fn asks_for_reference(&self, reference: &Reference) {
        self.state.lock().reference = Some(reference.clone());
    }

    /// Notes who sent the request. A client that only an upstream can judge is named when that has
    /// happened.
    pub(crate) fn identified(&self, identity: &Identity) {
        self.state.lock().sender = match identity {
            Identity::Client(_) => Sender::Unjudged(identity.kind()),
            Identity::User(_) | Identity::Anonymous => Sender::Judged(identity.clone()),
        };
    }

    /// Notes an operator whom the listener makes one.
    pub(crate) fn is_local(&self) {
        let mut state = self.state.lock();
        state.by = "listener";
        state.sender = Sender::Local;
    }

    /// Takes from the budgets of the sender and of the upstream, and makes the place count for the
    /// sender.
    ///
    /// # Errors
    /// If one of them is used up.
    pub(crate) fn admit(
        &self,
        app: &App,
        identity: &Identity,
        admission: &Admission,
        upstream: &str,
    ) -> Result<(), NotNow> {
        let name: Option<Arc<str>> = identity.user().map(|user| match identity {
            Identity::Client(_) => format!("upstream:{user}@{upstream}").into(),
            Identity::User(_) | Identity::Anonymous => identity.to_string().into(),
        });
        {
            let mut state = self.state.lock();
            state.sender = Sender::Judged(identity.clone());
            if admission.reader != Reader::Server {
                state.by = "upstream";
            }
            if let (Some(name), Some(place)) = (&name, &mut state.place) {
                place.belongs_to(name)?;
            }
        }
        let sender = name.map_or_else(|| self.by_address(), Owner::Identity);
        for (kind, owner) in [
            (Kind::Identity, sender),
            (Kind::Upstream, Owner::Upstream(upstream.into())),
        ] {
            let held = app.budgets.enter(kind, &owner)?;
            let mut state = self.state.lock();
            state.held.extend(held);
            state.owners.push((kind, owner));
        }
        Ok(())
    }

    /// The same upstream, asked on behalf of the sender if that may start a conversion.
    pub(crate) fn on_behalf(&self, budgets: &Budgets, source: Source) -> Source {
        if self.state.lock().action == Some(BLOB) {
            return source;
        }
        let owners = self.owners();
        let sender = owners.iter().find(|(kind, _)| *kind == Kind::Identity);
        let accounts = owners
            .iter()
            .filter_map(|(kind, owner)| budgets.account(*kind, owner));
        source.on_behalf_of(Requester {
            name: sender.map_or_else(Arc::default, |(_, owner)| owner.name()),
            accounts: accounts.map(Into::into).collect(),
            ..Requester::default()
        })
    }

    fn owners(&self) -> Vec<(Kind, Owner)> {
        self.state.lock().owners.clone()
    }

    /// A conversion for this request, which may outlive it.
    pub(crate) fn conversion(&self) -> Conversion {
        Conversion {
            owners: self.owners(),
        }
    }

    /// Takes the bytes of the answer from all budgets of the request.
    pub(crate) fn send(&self, bytes: u64) -> Result<(), OverBudget> {
        let mut state = self.state.lock();
        let mut held = state.held.iter_mut();
        held.try_for_each(|held| held.send_bytes(bytes))
    }

    /// Writes the line of an announced image: its conversion was started, or refused. One request
    /// may announce several.
    pub(crate) fn announced(&self, app: &App, image: &Announcement<'_>, refused: Option<&str>) {
        let Some(audit) = &app.audit else { return };
        audit.write(&Entry {
            request: &self.id,
            address: self.address,
            identity: Some(image.identity),
            kind: image.identity.kind(),
            action: "warm",
            method: "POST",
            image: Image {
                location: Some(image.location),
                reference: Some(image.reference),
                ..Image::default()
            },
            decision: match refused {
                Some(_) => Decision::Refused,
                None => Decision::Allowed,
            },
            by: refused.unwrap_or("rule"),
            status: StatusCode::ACCEPTED.as_u16(),
            bytes: 0,
        });
    }

    /// Closes the account once the answer is sent or dropped: gives everything back, and writes the
    /// line of the decision.
    pub(crate) fn close(&self, app: &App, answered: &Answered<'_>) {
        let State {
            sender,
            action,
            location,
            reference,
            digest,
            by,
            held,
            place,
            ..
        } = std::mem::take(&mut *self.state.lock());
        drop((held, place));
        let (Some(audit), Some(action)) = (&app.audit, action) else {
            return;
        };
        let is_unknown = matches!(sender, Sender::Unknown);
        // Every client without credentials is sent to the token endpoint first.
        let is_challenge = action == "login" && answered.refused == Some("no-credentials");
        if is_challenge || answered.refused.is_none() && is_unknown {
            return;
        }
        audit.write(&Entry {
            request: &self.id,
            address: self.address,
            identity: match &sender {
                Sender::Judged(identity) => Some(identity),
                Sender::Unknown | Sender::Local | Sender::Unjudged(_) => None,
            },
            kind: sender.kind(),
            action,
            method: answered.method,
            image: Image {
                location: location.as_ref(),
                reference: reference.as_ref(),
                digest: digest.as_ref(),
                answered: answered.digest,
            },
            decision: match answered.refused {
                Some(_) => Decision::Refused,
                None => Decision::Allowed,
            },
            by: answered.refused.unwrap_or(by),
            status: answered.status,
            bytes: answered.bytes,
        });
    }
}
