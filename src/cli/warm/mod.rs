//! `starlift warm`: makes a server convert images before the first pull, and waits for the
//! conversions.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget};
use url::Url;

use super::{Global, output};
use crate::api_client::{ApiClient, Job, State};
use crate::failure::Failure;

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

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(Vec::new())?;
    let server = match &args.server {
        Some(server) => server.clone(),
        None => loaded
            .config
            .serve
            .local_api_url()
            .parse()
            .map_err(Failure::from_error)?,
    };
    let client = ApiClient::new(&server)?;
    let mut jobs = Vec::new();
    for reference in &args.references {
        jobs.push(client.start(reference).await?);
    }
    if !args.no_wait {
        wait(&client, &mut jobs, args.json).await?;
    }
    report(&jobs, args.json)?;
    let has_failed = jobs.iter().any(|job| job.state == State::Failed);
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
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
