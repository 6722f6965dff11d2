//! Faults of the registry. A rule names the requests that it applies to, how often, and the effect
//! on their answers.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use futures::StreamExt as _;
use tokio::sync::watch;

use super::Registry;

/// A gate that holds answers back until the test opens it. Clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    /// The number of requests that may pass.
    allowed: Arc<watch::Sender<usize>>,
    requests: Arc<watch::Sender<Requests>>,
}

/// The requests at a gate so far.
#[derive(Debug, Default)]
struct Requests {
    reached: usize,
    passed: usize,
    most_held: usize,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            allowed: Arc::new(watch::Sender::new(0)),
            requests: Arc::default(),
        }
    }

    /// Lets all waiting and all later answers through.
    pub(crate) fn open(&self) {
        self.allowed.send_replace(usize::MAX);
    }

    /// Lets one more answer through.
    pub(crate) fn open_for_one(&self) {
        self.allowed.send_modify(|allowed| *allowed += 1);
    }

    /// Waits until `count` requests have reached the gate.
    pub(crate) async fn reached(&self, count: usize) {
        self.requests
            .subscribe()
            .wait_for(|requests| requests.reached >= count)
            .await
            .unwrap();
    }

    /// Returns the most requests that the gate has held at once.
    pub(crate) fn most_held(&self) -> usize {
        self.requests.borrow().most_held
    }

    pub(super) async fn pass(&self) {
        let mut before = 0;
        self.requests.send_modify(|requests| {
            before = requests.reached;
            requests.reached += 1;
            requests.most_held = requests.most_held.max(requests.reached - requests.passed);
        });
        let mut allowed = self.allowed.subscribe();
        allowed.wait_for(|allowed| *allowed > before).await.unwrap();
        self.requests.send_modify(|requests| requests.passed += 1);
    }
}

#[derive(Debug, Clone)]
pub(super) enum Fault {
    Answer {
        status: StatusCode,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    },
    CutAfter(usize),
    WrongBytes,
    Gate {
        gate: Gate,
        after: usize,
    },
    WithoutHeader(HeaderName),
    WithHeader(HeaderName, HeaderValue),
}

#[derive(Debug)]
pub(super) struct Rule {
    path: String,
    method: Option<&'static str>,
    skip: usize,
    times: usize,
    pub(super) fault: Fault,
}

impl Rule {
    /// Whether the rule applies to this request, which is then counted.
    pub(super) fn meets(&mut self, method: &str, path_and_query: &str) -> bool {
        let fits =
            path_and_query.contains(&self.path) && self.method.is_none_or(|mine| mine == method);
        if !fits || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// The requests to which a fault applies. The last call of the chain names the fault.
#[must_use]
#[derive(Debug)]
pub(crate) struct On<'a> {
    registry: &'a Registry,
    path: String,
    method: Option<&'static str>,
    skip: usize,
    times: usize,
}

impl<'a> On<'a> {
    pub(super) fn new(registry: &'a Registry, path: &str) -> Self {
        Self {
            registry,
            path: path.to_owned(),
            method: None,
            skip: 0,
            times: usize::MAX,
        }
    }

    pub(crate) fn method(self, method: &'static str) -> Self {
        Self {
            method: Some(method),
            ..self
        }
    }

    /// Excludes the first `skip` requests.
    pub(crate) fn skip(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// Limits the fault to `times` requests; by default it applies to all.
    pub(crate) fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Answers with this status and these headers and no body.
    pub(crate) fn answer(self, status: u16, headers: &[(&str, &str)]) {
        self.reply(status, headers, Bytes::new());
    }

    /// The same with a body.
    pub(crate) fn reply(self, status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        self.fault(Fault::Answer {
            status,
            headers,
            body: body.into(),
        });
    }

    pub(crate) fn redirect(self, location: &str) {
        self.answer(307, &[("location", location)]);
    }

    /// Breaks the connection after the first `bytes` bytes of the body.
    pub(crate) fn cut_after(self, bytes: usize) {
        self.fault(Fault::CutAfter(bytes));
    }

    /// Flips one bit of the body's last byte.
    pub(crate) fn wrong_bytes(self) {
        self.fault(Fault::WrongBytes);
    }

    /// Holds the answer back until `gate` is opened.
    pub(crate) fn gate(self, gate: &Gate) {
        self.gate_after(gate, 0);
    }

    /// Sends the headers and `bytes` bytes of the body, and the rest once `gate` is opened. With 0
    /// the headers are held back too.
    pub(crate) fn gate_after(self, gate: &Gate, bytes: usize) {
        self.fault(Fault::Gate {
            gate: gate.clone(),
            after: bytes,
        });
    }

    pub(crate) fn without_header(self, name: &'static str) {
        self.fault(Fault::WithoutHeader(HeaderName::from_static(name)));
    }

    pub(crate) fn with_header(self, name: &'static str, value: &'static str) {
        self.fault(Fault::WithHeader(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        ));
    }

    fn fault(self, fault: Fault) {
        let rule = Rule {
            path: self.path,
            method: self.method,
            skip: self.skip,
            times: self.times,
            fault,
        };
        self.registry.shared.state().rules.push(rule);
    }
}

/// Applies the faults to an answer whose body is complete.
pub(super) fn apply(mut response: Response<Bytes>, faults: Vec<Fault>) -> Response<Body> {
    let mut interruption = None;
    for fault in faults {
        match fault {
            Fault::WrongBytes => {
                let mut bytes = response.body().to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                *response.body_mut() = bytes.into();
            }
            Fault::WithoutHeader(name) => drop(response.headers_mut().remove(name)),
            Fault::WithHeader(name, value) => drop(response.headers_mut().insert(name, value)),
            Fault::Answer { .. } => {}
            Fault::CutAfter(_) | Fault::Gate { .. } => interruption = Some(fault),
        }
    }
    let (mut parts, body) = response.into_parts();
    let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
    let body = match interruption {
        Some(Fault::CutAfter(after)) if after < body.len() => cut(body.slice(..after)),
        Some(Fault::Gate { gate, after }) if after > 0 && after < body.len() => {
            gated(gate, body, after)
        }
        // The server would add the length of a complete body.
        _ if length.is_none() => Body::from_stream(futures::stream::once(async {
            Ok::<_, std::io::Error>(body)
        })),
        _ => return Response::from_parts(parts, Body::from(body)),
    };
    if let Some(length) = length {
        parts.headers.insert(header::CONTENT_LENGTH, length);
    }
    Response::from_parts(parts, body)
}

fn cut(head: Bytes) -> Body {
    let broken = futures::stream::once(async {
        // The server flushes its buffer when the body is pending for a moment.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        Err(std::io::Error::other("cut on purpose"))
    });
    Body::from_stream(futures::stream::once(async { Ok(head) }).chain(broken))
}

fn gated(gate: Gate, body: Bytes, after: usize) -> Body {
    let head = body.slice(..after);
    let tail = async move {
        gate.pass().await;
        Ok::<_, std::io::Error>(body.slice(after..))
    };
    Body::from_stream(futures::stream::once(async { Ok(head) }).chain(futures::stream::once(tail)))
}
