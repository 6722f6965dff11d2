//! `starlift warm`: makes a server convert images before the first pull, and waits for the
//! conversions.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget};
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Global, output};
use crate::failure::Failure;
use crate::serve;

/// Interval between requests for the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Time limit of a response. The server does not wait for a conversion before it responds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Polls in a row that may fail, for instance while the server restarts, before the command fails.
const MAX_FAILED_POLLS: u32 = 10;

/// Make a server convert images before the first pull, and wait for the conversions
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images as clients of the server name them: docker.io/library/nginx:1.21.1, local/app:1
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// The server's API [default: that of this machine's configuration, else http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    server: Option<Url>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Do not wait for the conversions to end
    #[arg(long)]
    no_wait: bool,
}

/// A conversion in the server's API. Its other fields are ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    id: String,
    reference: String,
    state: State,
    source: Option<String>,
    converted: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Resolving,
    Converting,
    Done,
    Failed,
}

#[derive(Deserialize)]
struct Answer {
    conversion: Job,
    #[serde(default)]
    progress: Vec<Progress>,
}

/// The progress of one image of the reference.
#[derive(Deserialize)]
struct Progress {
    layers: Vec<Layer>,
}

/// A source layer, with its bytes read so far and in total.
#[derive(Deserialize)]
struct Layer {
    source: String,
    done: u64,
    total: u64,
}

impl Answer {
    /// Returns the bytes read so far and in total. A layer of several images counts once.
    fn bytes(&self) -> (u64, u64) {
        let layers = self.progress.iter().flat_map(|image| &image.layers);
        let layers: BTreeMap<_, _> = layers.map(|layer| (&layer.source, layer)).collect();
        layers.values().fold((0, 0), |(done, total), layer| {
            (done + layer.done, total + layer.total)
        })
    }
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(Vec::new())?;
    let server = match &args.server {
        Some(server) => server.clone(),
        None => local(&loaded.config.serve)
            .parse()
            .map_err(Failure::from_error)?,
    };
    // This fails if a provider is installed already, which is then the same one.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .timeout(ANSWER_LIMIT)
        .build()
        .map_err(Failure::from_error)?;
    let conversions = server
        .join("api/v1/conversions")
        .map_err(Failure::from_error)?;
    let mut jobs = Vec::new();
    for reference in &args.references {
        jobs.push(start(&client, &conversions, reference).await?.conversion);
    }
    if !args.no_wait {
        wait(&client, &conversions, &mut jobs, args.json).await?;
    }
    report(&jobs, args.json)?;
    let has_failed = jobs.iter().any(|job| job.state == State::Failed);
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns the address of the API of the server that this machine's configuration describes.
fn local(config: &serve::Config) -> String {
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut address = if config.has_api_listener() {
        config.api_listen
    } else {
        config.listen
    };
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    format!("{scheme}://{address}")
}

async fn start(client: &Client, conversions: &Url, reference: &str) -> Result<Answer, Failure> {
    let request = client
        .post(conversions.clone())
        .json(&serde_json::json!({ "reference": reference }));
    let response = request
        .send()
        .await
        .map_err(Failure::when(format!("{conversions} does not answer")))?;
    answer(response, reference).await
}

async fn answer(response: Response, reference: &str) -> Result<Answer, Failure> {
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

async fn wait(
    client: &Client,
    conversions: &Url,
    jobs: &mut [Job],
    quiet: bool,
) -> Result<(), Failure> {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let spinner = ProgressBar::with_draw_target(None, target);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let mut failed_polls = 0;
    let mut bytes = (0, 0);
    while let Some(running) = jobs.iter_mut().find(|job| !job.has_ended()) {
        spinner.set_message(shown(running, bytes));
        tokio::time::sleep(POLL_INTERVAL).await;
        let address = format!("{conversions}/{}", running.id);
        match client.get(address).send().await {
            Ok(response) => {
                let answer = answer(response, &running.reference).await?;
                bytes = if answer.conversion.has_ended() {
                    (0, 0)
                } else {
                    answer.bytes()
                };
                *running = answer.conversion;
                failed_polls = 0;
            }
            Err(_) if failed_polls < MAX_FAILED_POLLS => failed_polls += 1,
            Err(error) => return Err(Failure::when("the server does not answer any more")(error)),
        }
    }
    spinner.finish_and_clear();
    Ok(())
}

fn shown(job: &Job, (done, total): (u64, u64)) -> String {
    let state = format!("{} is {}", job.reference, job.state.name());
    if total == 0 {
        state
    } else {
        format!("{state}: {} of {}", HumanBytes(done), HumanBytes(total))
    }
}

fn report(jobs: &[Job], json: bool) -> Result<(), Failure> {
    if json {
        return output::print_json(&jobs);
    }
    for job in jobs {
        let rest = job
            .error
            .as_deref()
            .or(job.converted.as_deref())
            .unwrap_or_default();
        output::print(&format!(
            "{}  {}  {rest}\n",
            job.reference,
            job.state.name()
        ))?;
    }
    Ok(())
}

impl Job {
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Done | State::Failed)
    }
}

impl State {
    fn name(self) -> &'static str {
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
        let answer: Answer = serde_json::from_value(answer).unwrap();
        assert_eq!(
            shown(&answer.conversion, answer.bytes()),
            "app:1 is being converted: 512 B of 2.00 KiB"
        );
        assert_eq!(
            shown(&answer.conversion, (0, 0)),
            "app:1 is being converted"
        );
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
