//! Verifies one layer: the blob in a file against its TOC, the manifest's claims and the source's
//! tar.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use estargz::footer::FooterError;
use estargz::verify::{self, Expected, Report, VerifyError};
use sha2::{Digest as _, Sha256};

use super::Part;
use crate::failure::Failure;
use crate::inspect::report::Kind;
use crate::layers::inflate::Inflate;
use crate::telemetry::log;

/// Bytes hashed at once.
const HASH_PIECE: usize = 1 << 20;

/// The claims about a layer, all of which must hold.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) toc_digest: Option<estargz::Digest>,
    pub(crate) diff_id: Option<estargz::Digest>,
    pub(crate) source: Option<Source>,
    pub(crate) external_toc: Option<Vec<u8>>,
    /// The source layer. Its file tree must be the same if its tar is not a prefix of the layer's.
    pub(crate) against: Option<File>,
}

/// The tar of the source layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) diff_id: estargz::Digest,
    pub(crate) size: u64,
}

impl Source {
    /// Inflates the source layer in `file`, and returns the digest and size of its tar.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let (diff_id, size) = digest_of_tar(file)?;
        Ok(Self { diff_id, size })
    }
}

/// The file of a layer, and the files to verify it against.
#[derive(Debug)]
pub(crate) struct LayerFile<'a> {
    pub(crate) path: &'a str,
    /// The file of the source layer.
    pub(crate) against: Option<&'a str>,
    /// The file with the blob of its external TOC.
    pub(crate) external_toc: Option<&'a str>,
}

impl LayerFile<'_> {
    /// Verifies the layer in the file.
    pub(crate) async fn verify(&self) -> Result<Part, Failure> {
        let cannot = |path: &str| Failure::when(format!("{path} cannot be read"));
        let file = File::open(self.path).map_err(cannot(self.path))?;
        let mut claims = Claims::default();
        if let Some(path) = self.external_toc {
            claims.external_toc = Some(std::fs::read(path).map_err(cannot(path))?);
        }
        if let Some(path) = self.against {
            let source = File::open(Path::new(path)).map_err(cannot(path))?;
            claims.source = Some(Source::of(&source).map_err(cannot(path))?);
            claims.against = Some(source);
        }
        verify_blob(self.path.to_owned(), file, claims).await
    }
}

/// Verifies the blob in `file`. Of a layer without a TOC, only the digest of its tar is verified.
pub(crate) async fn verify_blob(name: String, file: File, claims: Claims) -> Result<Part, Failure> {
    let checked = tokio::task::spawn_blocking(move || check(&file, &claims))
        .await
        .map_err(Failure::from_error)?;
    let (what, findings) = checked.map_err(Failure::when(name.clone()))?;
    Ok(Part {
        name,
        what,
        findings,
    })
}

fn check(file: &File, claims: &Claims) -> Result<(String, Vec<String>), VerifyError> {
    let expected = Expected::default()
        .with_toc_digest(claims.toc_digest)
        .with_external_toc(claims.external_toc.as_deref())
        .with_diff_id(claims.diff_id)
        .with_source_diff_id(claims.source.map(|source| source.diff_id))
        .with_source_size(claims.source.map(|source| source.size));
    match verify::blob(file, &expected) {
        Ok(report) => match claims
            .against
            .as_ref()
            .filter(|_| !begins_with_source(&report, claims))
        {
            None => Ok((described(&report), found(&report))),
            Some(source) => {
                let report = verify::blob(
                    file,
                    &expected.with_source_diff_id(None).with_source_size(None),
                )?;
                let what = format!("{}, its tree against the source's", described(&report));
                Ok((
                    what,
                    [found(&report), against(file, claims, source)].concat(),
                ))
            }
        },
        Err(VerifyError::Footer(FooterError::NotAFooter)) if claims.toc_digest.is_none() => {
            plain(file, claims)
        }
        Err(error @ (VerifyError::Footer(_) | VerifyError::Toc(_))) => {
            Ok(("broken".to_owned(), vec![log::chain(&error)]))
        }
        Err(error) => Err(error),
    }
}

/// Whether the layer's tar begins with the source's tar. Classic and reordered layers keep only the
/// source's files.
fn begins_with_source(report: &Report, claims: &Claims) -> bool {
    claims
        .source
        .is_none_or(|source| report.source_diff_id == Some(source.diff_id))
}

/// Returns the differences between the file trees of the layer and its source.
fn against(file: &File, claims: &Claims, mut source: &File) -> Vec<String> {
    let expected = Expected::default().with_external_toc(claims.external_toc.as_deref());
    let tar = io::Seek::rewind(&mut source)
        .and_then(|()| Inflate::new(BufReader::with_capacity(HASH_PIECE, source)));
    let compared = match tar {
        Ok(tar) => verify::against(file, &expected, tar),
        Err(error) => return vec![format!("the source cannot be read: {error}")],
    };
    match compared {
        Ok(findings) => findings.iter().map(ToString::to_string).collect(),
        Err(error) => vec![log::chain(&error)],
    }
}

fn described(report: &Report) -> String {
    format!(
        "{}, {} entries, {} chunks",
        Kind::of_form(Some(report.form)).name(),
        report.entries,
        report.chunks
    )
}

fn found(report: &Report) -> Vec<String> {
    let mut findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    if report.truncated {
        findings.push("and more".to_owned());
    }
    findings
}

/// Verifies a layer without a TOC by the digest of its tar.
fn plain(file: &File, claims: &Claims) -> Result<(String, Vec<String>), VerifyError> {
    let (actual, size) = digest_of_tar(file).map_err(VerifyError::Read)?;
    let wanted = claims.source.map(|source| ("the source's", source.diff_id));
    let wanted = claims
        .diff_id
        .map(|diff_id| ("the configuration's diff-id", diff_id))
        .into_iter()
        .chain(wanted);
    let findings = wanted
        .filter(|(_, expected)| *expected != actual)
        .map(|(what, expected)| format!("the tar's digest is {actual}, but {what} is {expected}"))
        .collect();
    Ok((format!("plain, {size} bytes of tar"), findings))
}

fn digest_of_tar(mut file: &File) -> io::Result<(estargz::Digest, u64)> {
    io::Seek::rewind(&mut file)?;
    let mut tar = Inflate::new(BufReader::with_capacity(HASH_PIECE, file))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; HASH_PIECE];
    let mut size = 0;
    loop {
        match tar.read(&mut piece)? {
            0 => return Ok((hasher.into(), size)),
            read => {
                hasher.update(&piece[..read]);
                size += read as u64;
            }
        }
    }
}
