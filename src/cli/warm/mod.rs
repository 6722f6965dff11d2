//! `starlift warm`: makes a server convert images before the first pull, and waits for the
//! conversions. The images come from the command line, from a list, or from a cluster's pods, once
//! or again and again.

mod list;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget};
use url::Url;

use super::{Global, output};
use crate::api_client::{ApiClient, Job, Started, State};
use crate::config::Config;
use crate::failure::Failure;
use crate::pods::{Api, Cluster, Kubectl, reference};
use crate::signals::{interruptible, interruption};

/// Conversions that are started before the first of them is awaited.
const AT_ONCE: usize = 64;
/// How often a server without room is asked again for one image.
const MAX_BUSY: u32 = 600;
/// The shortest time between two rounds.
const LEAST_EVERY: Duration = Duration::from_secs(1);

/// Make a server convert images before the first pull, and wait for the conversions
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images as clients of the server name them: docker.io/library/nginx:1.21.1, local/app:1
    #[arg(required_unless_present_any = ["from", "from_kubernetes"], value_name = "REF")]
    references: Vec<String>,
    /// Images of a list, one reference a line, comments behind #; - is standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Images of the pods of a cluster, those of init containers too. In a pod with a service
    /// account the API is asked, elsewhere kubectl
    #[arg(long)]
    from_kubernetes: bool,
    /// Only pods of this namespace (repeatable)
    #[arg(long, value_name = "NAME", requires = "from_kubernetes")]
    namespace: Vec<String>,
    /// kubectl's configuration file
    #[arg(long, value_name = "FILE", requires = "from_kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// kubectl's context
    #[arg(long, value_name = "NAME", requires = "from_kubernetes")]
    context: Option<String>,
    /// Ask the API at this address, without kubectl
    #[arg(long, value_name = "URL", requires = "from_kubernetes", conflicts_with_all = ["kubeconfig", "context"])]
    kubernetes_api: Option<Url>,
    /// A file with a bearer token for that API
    #[arg(long, value_name = "FILE", requires = "kubernetes_api")]
    kubernetes_token: Option<PathBuf>,
    /// The PEM certificates of the authority of that API
    #[arg(long, value_name = "FILE", requires = "kubernetes_api")]
    kubernetes_ca: Option<PathBuf>,
    /// The host by which pods name the server, in front of the image: HOST/docker.io/library/nginx
    /// (repeatable) [default: serve.hosts of the configuration]
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// The server's API [default: that of this machine's configuration, else http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    server: Option<Url>,
    /// A file with a bearer token for the server
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Repeat it at this interval (1h, 30m) until a signal
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    every: Option<Duration>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Do not wait for the conversions to end
    #[arg(long)]
    no_wait: bool,
}

/// An image to convert, and whether the server may refuse it: pods use images of registries too
/// that the server does not pull from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    reference: String,
    is_optional: bool,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(Vec::new())?;
    let Some(every) = args.every else {
        return interruptible(Box::pin(round(args, &loaded.config))).await;
    };
    if every < LEAST_EVERY {
        return Err(Failure::new("--every is under 1s"));
    }
    if args
        .from
        .as_ref()
        .is_some_and(|from| from.as_os_str() == "-")
    {
        return Err(Failure::new(
            "standard input cannot be read again: --every needs a file",
        ));
    }
    loop {
        let rest = async {
            if let Err(failure) = Box::pin(round(args, &loaded.config)).await {
                // The next round may succeed.
                output::error_line(&failure.to_string());
            }
            tokio::time::sleep(every).await;
        };
        tokio::select! {
            () = rest => {}
            _signal = interruption() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Converts all images once.
async fn round(args: &Args, config: &Config) -> Result<ExitCode, Failure> {
    let server = match &args.server {
        Some(server) => server.clone(),
        None => config
            .serve
            .local_api_url()
            .parse()
            .map_err(Failure::from_error)?,
    };
    let client = ApiClient::new(&server, args.token_file.as_deref())?;
    let wanted = wanted(args, config).await?;
    let mut jobs = Vec::new();
    for some in wanted.chunks(AT_ONCE) {
        let begun = jobs.len();
        for wanted in some {
            jobs.push(start(&client, args, wanted).await?);
        }
        if !args.no_wait {
            wait(&client, &mut jobs[begun..], args.json).await?;
        }
    }
    report(&jobs, args.json)?;
    let is_optional = |job: &Job| {
        let found = wanted
            .iter()
            .find(|wanted| wanted.reference == job.reference);
        found.is_some_and(|wanted| wanted.is_optional)
    };
    let has_failed = jobs.iter().any(|job| match job.state {
        State::Failed => true,
        State::Refused => !is_optional(job),
        State::Resolving | State::Converting | State::Done => false,
    });
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The images of all sources, each once.
async fn wanted(args: &Args, config: &Config) -> Result<Vec<Wanted>, Failure> {
    let mut references = args.references.clone();
    if let Some(from) = &args.from {
        references.extend(list::read(from)?);
    }
    let mut seen = BTreeSet::new();
    let named = references
        .into_iter()
        .filter(|one| seen.insert(one.clone()));
    let mut wanted: Vec<_> = named
        .map(|reference| Wanted {
            reference,
            is_optional: false,
        })
        .collect();
    if args.from_kubernetes {
        let hosts = if args.host.is_empty() {
            &config.serve.hosts
        } else {
            &args.host
        };
        for image in cluster(args)?.images(&args.namespace).await? {
            match reference(&image, hosts) {
                Some(reference) if seen.insert(reference.clone()) => wanted.push(Wanted {
                    reference,
                    is_optional: true,
                }),
                Some(_again) => {}
                None => output::say(&format!("left out, because it names no image: {image:?}")),
            }
        }
    }
    Ok(wanted)
}

fn cluster(args: &Args) -> Result<Cluster, Failure> {
    if let Some(server) = &args.kubernetes_api {
        let (token, ca) = (args.kubernetes_token.clone(), args.kubernetes_ca.as_deref());
        return Api::new(server.clone(), token, ca).map(Cluster::Api);
    }
    if args.kubeconfig.is_none() && args.context.is_none() {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let host = variable("KUBERNETES_SERVICE_HOST");
        if let Some(api) = Api::of_pod(&host, &variable("KUBERNETES_SERVICE_PORT_HTTPS")) {
            return api.map(Cluster::Api);
        }
    }
    Ok(Cluster::Kubectl(Kubectl {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
    }))
}

/// Starts a conversion. A refusal ends the command if the image was named on the command line.
async fn start(client: &ApiClient, args: &Args, wanted: &Wanted) -> Result<Job, Failure> {
    let reference = &wanted.reference;
    for _ in 0..MAX_BUSY {
        match client.start(reference).await? {
            Started::Job(job) => return Ok(job),
            Started::Busy(pause) => tokio::time::sleep(pause).await,
            Started::Refused(refusal) if args.references.contains(reference) => {
                return Err(Failure::new(format!(
                    "the server rejects {reference}: {refusal}"
                )));
            }
            Started::Refused(refusal) => return Ok(Job::refused(reference, refusal)),
        }
    }
    Err(Failure::new(format!(
        "the server has no room for {reference}"
    )))
}

async fn wait(client: &ApiClient, jobs: &mut [Job], quiet: bool) -> Result<(), Failure> {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let spinner = ProgressBar::with_draw_target(None, target);
    spinner.enable_steady_tick(Duration::from_millis(100));
    for job in jobs {
        client
            .wait(job, |job, bytes| spinner.set_message(shown(job, bytes)))
            .await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_is_shown_once_there_are_bytes() {
        let job = Job {
            id: "1".to_owned(),
            reference: "app:1".to_owned(),
            state: State::Converting,
            source: None,
            converted: None,
            error: None,
        };
        assert_eq!(
            shown(&job, (512, 2048)),
            "app:1 is being converted: 512 B of 2.00 KiB"
        );
        assert_eq!(shown(&job, (0, 0)), "app:1 is being converted");
    }
}
