//! A client of a server's API: starts conversions and asks for their progress.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::failure::Failure;

/// Time limit of a response. The server does not wait for a conversion before it responds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Interval between requests for the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Polls in a row that may fail, for instance while the server restarts, before the wait fails.
const MAX_FAILED_POLLS: u32 = 10;

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
    /// Creates a client of the server at `server`.
    pub(crate) fn new(server: &Url) -> Result<Self, Failure> {
        // This fails if a provider is installed already, which is then the same one.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(ANSWER_LIMIT)
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
    /// If the server does not answer or rejects the reference.
    pub(crate) async fn start(&self, reference: &str) -> Result<Job, Failure> {
        let request = self
            .client
            .post(self.conversions.clone())
            .json(&serde_json::json!({ "reference": reference }));
        let response = request.send().await;
        let response = response.map_err(Failure::when(format!(
            "{} does not answer",
            self.conversions
        )))?;
        Ok(answer(response, reference).await?.conversion)
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
        if status == StatusCode::NOT_FOUND {
            let hint = "no API at this address; a server beyond loopback has its API at serve.api_listen, 127.0.0.1:8081 by default";
            return Err(Failure::new(format!(
                "the server rejects {reference}: {hint}"
            )));
        }
        return Err(Failure::new(format!(
            "the server rejects {reference}: {}",
            refusal(status, &text)
        )));
    }
    response
        .json()
        .await
        .map_err(Failure::when("malformed response of the server"))
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
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Done | State::Failed)
    }
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resolving => "being resolved",
            Self::Converting => "being converted",
            Self::Done => "done",
            Self::Failed => "failed",
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
