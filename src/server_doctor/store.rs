//! The store: rights, conditional writes, clock.

use crate::doctor::Check;
use crate::failure::Failure;
use crate::store::{Config, Operation, Probe, ProbeError, probe};

use super::clock;

/// The checks, in the order of the operations.
pub(super) async fn check(config: &Config) -> Vec<Check> {
    const WHAT: &str = "store";
    let shown = &config.location;
    let Probe { outcomes, written } = match probe(config).await {
        Ok(probe) => probe,
        Err(error) => {
            let told = format!("{shown}: {}", Failure::from_error(error));
            let mend = "store.location: a folder that this user can write, or s3://BUCKET, gs://… or az://…";
            return vec![Check::bad(WHAT, told, mend)];
        }
    };
    let mut checks: Vec<_> = outcomes
        .into_iter()
        .map(|(operation, outcome)| judged(operation, outcome, config))
        .collect();
    if let Some((there, sent, confirmed)) = written {
        checks.push(clock::skew(
            "clock of the store",
            shown,
            there,
            (sent, confirmed),
        ));
    }
    checks
}

fn judged(operation: Operation, outcome: Result<(), ProbeError>, config: &Config) -> Check {
    let (what, done) = match operation {
        Operation::Write => ("store: write", "an object was written"),
        Operation::Read => ("store: read", "it was read"),
        Operation::List => ("store: list", "it was listed"),
        Operation::WriteIfAbsent => ("store: write if absent", "the condition holds"),
        Operation::WriteIfUnchanged => ("store: write if unchanged", "the condition holds"),
        Operation::Parts => (
            "store: upload in parts",
            "an upload was begun and cancelled",
        ),
        Operation::Delete => ("store: delete", "the objects were deleted"),
    };
    let shown = &config.location;
    match outcome {
        Ok(()) => Check::good(what, format!("{shown}: {done}")),
        Err(error) => {
            let mend = mend(operation, &error, shown.contains("://"));
            Check::bad(
                what,
                format!("{shown}: {}", Failure::from_error(error)),
                mend,
            )
        }
    }
}

fn mend(operation: Operation, error: &ProbeError, is_bucket: bool) -> &'static str {
    let is_wrong = matches!(error, ProbeError::Wrong(_));
    match operation {
        Operation::Write if is_bucket => {
            "check store.location, endpoint, region and credentials (AWS_ACCESS_KEY_ID …); the rights \
             s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload are needed"
        }
        Operation::Write => "make the folder writable for this user, or free space on its disk",
        Operation::Read => "give the right to read objects (s3:GetObject)",
        Operation::List => "give the right to list the bucket (s3:ListBucket): the sweep needs it",
        Operation::WriteIfAbsent | Operation::WriteIfUnchanged if is_wrong => {
            "without conditions, two replicas convert the same layer and may overwrite records: use a \
             store that has conditional writes (AWS S3, MinIO, Ceph since Squid, GCS, Azure), and no proxy \
             that removes If-None-Match and If-Match"
        }
        Operation::WriteIfAbsent | Operation::WriteIfUnchanged => {
            "use a store with conditional writes (If-None-Match, If-Match)"
        }
        Operation::Parts => {
            "give the rights for uploads in parts (s3:PutObject, s3:AbortMultipartUpload): layers need them"
        }
        Operation::Delete => {
            "give the right to delete objects (s3:DeleteObject): the sweep needs it"
        }
    }
}
