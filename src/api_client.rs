//! A client of a server's API: starts conversions and asks for their progress.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::failure::Failure;
use crate::tls_provider;

/// Time limit of a response. The server does not wait for a conversion before it responds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Interval between requests for the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Polls in a row that may fail, for instance while the server restarts, before the wait fails.
const MAX_FAILED_POLLS: u32 = 10;

/// The code of an answer about an image whose upstream the server does not pull from.
const UNKNOWN: &str = "NAME_UNKNOWN";

/// The longest pause before a server without room is asked again, in seconds.
const MAX_PAUSE: u64 = 60;

/// The conversions of a server, by its API.
#[derive(Debug)]
pub(crate) struct ApiClient {
    client: Client,
    conversions: Url,
}

/// A conversion in the server's API. Its other fields are ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) reference: String,
    pub(crate) state: State,
    pub(crate) source: Option<String>,
    pub(crate) converted: Option<String>,
    pub(crate) error: Option<String>,
}

/// The state of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Resolving,
    Converting,
    Done,
    Failed,
    /// The server did not start it.
    Refused,
}

/// The answer to a request to convert an image.
#[derive(Debug)]
pub(crate) enum Started {
    /// The conversion, which may have run already.
    Job(Job),
    /// The server does not convert this image, for this reason.
    Refused(String),
    /// The server has no room, and may have some after this time.
    Busy(Duration),
}

/// A conversion and its progress.
#[derive(Debug, Deserialize)]
struct JobProgress {
    conversion: Job,
    #[serde(default)]
    progress: Vec<ImageProgress>,
}

/// The progress of one image of the reference.
#[derive(Debug, Deserialize)]
struct ImageProgress {
    layers: Vec<Layer>,
}

/// A source layer, with its bytes read so far and in total.
#[derive(Debug, Deserialize)]
struct Layer {
    source: String,
    done: u64,
    total: u64,
}

impl ApiClient {
    /// Creates a client of the server at `server`, with a bearer token from a file.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no token.
    pub(crate) fn new(server: &Url, token_file: Option<&Path>) -> Result<Self, Failure> {
        tls_provider::install();
        let mut headers = HeaderMap::new();
        if let Some(file) = token_file {
            let unusable = format!("{} has no usable token", file.display());
            let token = std::fs::read_to_string(file).map_err(Failure::when(&unusable))?;
            let token = format!("Bearer {}", token.trim()).parse::<HeaderValue>();
            let mut token = token.map_err(Failure::when(&unusable))?;
            token.set_sensitive(true);
            headers.insert(AUTHORIZATION, token);
        }
        let client = Client::builder()
            .timeout(ANSWER_LIMIT)
            .default_headers(headers)
            .build()
            .map_err(Failure::from_error)?;
        let conversions = server
            .join("api/v1/conversions")
            .map_err(Failure::from_error)?;
        Ok(Self {
            client,
            conversions,
        })
    }

    /// Starts the conversion of `reference`, unless it runs already.
    ///
    /// # Errors
    /// If the server does not answer, or there is no API at this address for this client.
    pub(crate) async fn start(&self, reference: &str) -> Result<Started, Failure> {
        let request = self
            .client
            .post(self.conversions.clone())
            .json(&serde_json::json!({ "reference": reference }));
        let response = request.send().await;
        let response = response.map_err(Failure::when(format!(
            "{} does not answer",
            self.conversions
        )))?;
        match response.status() {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Started::Busy(retry_after(&response)));
            }
            status @ (StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
                let text = response.text().await.unwrap_or_default();
                return if status == StatusCode::NOT_FOUND && !is_unknown(&text) {
                    Err(rejected(reference, status, &text))
                } else {
                    Ok(Started::Refused(refusal(status, &text)))
                };
            }
            _ => {}
        }
        let answer = answer(response, reference).await?;
        Ok(Started::Job(answer.conversion))
    }

    /// Waits until the conversion ends. `show` gets the job with its bytes read so far and in total
    /// before each poll.
    ///
    /// # Errors
    /// If several polls in a row fail, or the server does not know the job any more.
    pub(crate) async fn wait(
        &self,
        job: &mut Job,
        show: impl Fn(&Job, (u64, u64)),
    ) -> Result<(), Failure> {
        let address = format!("{}/{}", self.conversions, job.id);
        let mut failed_polls = 0;
        let mut bytes = (0, 0);
        while !job.has_ended() {
            show(job, bytes);
            tokio::time::sleep(POLL_INTERVAL).await;
            match self.client.get(&address).send().await {
                Ok(response) => {
                    let progress = answer(response, &job.reference).await?;
                    bytes = progress.bytes();
                    *job = progress.conversion;
                    failed_polls = 0;
                }
                Err(_) if failed_polls < MAX_FAILED_POLLS => failed_polls += 1,
                Err(error) => {
                    return Err(Failure::when("the server does not answer any more")(error));
                }
            }
        }
        Ok(())
    }
}

async fn answer(response: Response, reference: &str) -> Result<JobProgress, Failure> {
    let status = response.status();
    if !status.is_success() {
        let text = response.text().await.unwrap_or_default();
        return Err(rejected(reference, status, &text));
    }
    response
        .json()
        .await
        .map_err(Failure::when("malformed response of the server"))
}

fn rejected(reference: &str, status: StatusCode, text: &str) -> Failure {
    let reason = if status == StatusCode::NOT_FOUND {
        "no API at this address; a server beyond loopback has its API at serve.api_listen, 127.0.0.1:8081 by default".to_owned()
    } else {
        refusal(status, text)
    };
    Failure::new(format!("the server rejects {reference}: {reason}"))
}

/// Returns the seconds of `Retry-After`, within reason.
fn retry_after(response: &Response) -> Duration {
    let header = response.headers().get(RETRY_AFTER);
    let seconds = header.and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1).clamp(1, MAX_PAUSE))
}

/// Whether an error body says that the server does not pull from the image's upstream.
fn is_unknown(body: &str) -> bool {
    let body = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
    let code = body.pointer("/errors/0/code");
    code.is_some_and(|code| code == UNKNOWN)
}

/// Returns the status, with the message of an error body if there is one.
fn refusal(status: StatusCode, body: &str) -> String {
    let message = serde_json::from_str::<serde_json::Value>(body).ok();
    let message = message
        .as_ref()
        .and_then(|body| body.pointer("/errors/0/message")?.as_str());
    message.map_or_else(
        || status.to_string(),
        |message| format!("{status}: {message}"),
    )
}

impl JobProgress {
    /// Returns the bytes read so far and in total. A layer of several images counts once.
    fn bytes(&self) -> (u64, u64) {
        let layers = self.progress.iter().flat_map(|image| &image.layers);
        let layers: BTreeMap<_, _> = layers.map(|layer| (&layer.source, layer)).collect();
        layers.values().fold((0, 0), |(done, total), layer| {
            (done + layer.done, total + layer.total)
        })
    }
}

impl Job {
    /// A conversion that the server did not start.
    pub(crate) fn refused(reference: &str, reason: String) -> Self {
        Self {
            id: String::new(),
            reference: reference.to_owned(),
            state: State::Refused,
            source: None,
            converted: None,
            error: Some(reason),
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Done | State::Failed | State::Refused)
    }
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resolving => "being resolved",
            Self::Converting => "being converted",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_layer_count_once() {
        let layers =
            serde_json::json!({"layers": [{"source": "sha256:a", "done": 512, "total": 2048}]});
        let job = serde_json::json!({"id": "1", "reference": "app:1", "state": "converting", "source": null,
            "converted": null, "error": null, "upstream": "docker.io"});
        let answer = serde_json::json!({"conversion": job, "progress": [layers, layers]});
        let answer: JobProgress = serde_json::from_value(answer).unwrap();
        assert_eq!(answer.bytes(), (512, 2048));
        assert!(!answer.conversion.has_ended());
    }

    #[test]
    fn refusals_contain_the_servers_message() {
        let body = r#"{"errors":[{"code":"UNSUPPORTED","message":"that is no reference"}]}"#;
        assert_eq!(
            refusal(StatusCode::BAD_REQUEST, body),
            "400 Bad Request: that is no reference"
        );
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, "<html>"),
            "502 Bad Gateway"
        );
    }
}
