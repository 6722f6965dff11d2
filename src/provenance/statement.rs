//! The statement: in-toto's Statement v1 with SLSA's provenance v1 as its predicate.
//!
//! It follows from the converted manifest, the digest of its source and the generation only. It has
//! no time and no version of the program, so that every replica makes the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest, stream};

/// The type of a payload (in-toto attestation, `spec/v1/envelope.md`).
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// in-toto attestation, `spec/v1/statement.md`.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// SLSA, `provenance/v1`.
pub(super) const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// The meaning of the parameters, which docs/SPECIFICATION.md describes.
const BUILD_TYPE: &str = "https://starlift.dev/conversion/v1";
const BUILDER: &str = "https://starlift.dev/converter";
/// Most layers of an image that gets a statement. No runtime mounts half as many.
const MAX_LAYERS: usize = 1024;

/// A statement on a converted image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Resource>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

/// The origin of a converted image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Provenance {
    /// The digest of the source image's manifest.
    pub source: Digest,
    /// The generation of the conversion.
    pub generation: String,
    /// The digests of everything that the statement is about.
    #[serde(skip)]
    pub subjects: Vec<Subject>,
}

/// A part of a converted image, by its name in the statement: `manifest`, or `layer/N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    pub digest: Digest,
}

/// The document is not a statement on a conversion.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("not an in-toto statement")]
    Json(#[source] serde_json::Error),
    #[error("{field} of the statement is {found:?}, not {expected:?}")]
    Type {
        field: &'static str,
        found: String,
        expected: &'static str,
    },
    #[error("statement names no source image")]
    NoSource,
    #[error("statement names {0:?} as its source image, and another one as its dependency")]
    Source(String),
    #[error("image has more than {MAX_LAYERS} layers")]
    TooManyLayers,
    #[error("converted manifest cannot be read")]
    Manifest(#[source] serde_json::Error),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Resource {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Predicate {
    build_definition: BuildDefinition,
    run_details: RunDetails,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildDefinition {
    build_type: String,
    external_parameters: ExternalParameters,
    internal_parameters: InternalParameters,
    resolved_dependencies: Vec<Resource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ExternalParameters {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct InternalParameters {
    generation: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RunDetails {
    builder: Builder,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Builder {
    id: String,
}

impl Resource {
    fn new(name: impl Into<String>, digest: &Digest) -> Self {
        let sum = (
            digest.algorithm().name().to_owned(),
            digest.hex().to_owned(),
        );
        Self {
            name: name.into(),
            digest: BTreeMap::from([sum]),
        }
    }

    fn digests(&self) -> impl Iterator<Item = Digest> {
        let sums = self.digest.iter();
        // Other programs may add sums of kinds that no image has.
        sums.filter_map(|(algorithm, hex)| format!("{algorithm}:{hex}").parse().ok())
    }
}

impl Statement {
    /// Returns the statement that `converted`, an image or an index, was made from `source`.
    ///
    /// # Errors
    /// If it is not a manifest, or names more layers than any runtime can mount.
    pub fn on(
        converted: &Manifest,
        source: &Digest,
        generation: &str,
    ) -> Result<Self, StatementError> {
        let mut subject = vec![Resource::new("manifest", &converted.digest)];
        if manifest_kind(&converted.media_type) == Some(ManifestKind::Image) {
            let layers = layers(converted)?.into_iter().enumerate();
            subject.extend(layers.map(|(n, layer)| Resource::new(format!("layer/{n}"), &layer)));
        }
        Ok(Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                build_definition: BuildDefinition {
                    build_type: BUILD_TYPE.to_owned(),
                    external_parameters: ExternalParameters {
                        source: source.to_string(),
                    },
                    internal_parameters: InternalParameters {
                        generation: generation.to_owned(),
                    },
                    resolved_dependencies: vec![Resource::new("manifest", source)],
                },
                run_details: RunDetails {
                    builder: Builder {
                        id: BUILDER.to_owned(),
                    },
                },
            },
        })
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Only maps whose keys are not strings fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a statement. Unknown fields are ignored, as in-toto demands.
    ///
    /// # Errors
    /// If it is not a statement, or is one of another kind: the key may sign those too.
    pub(super) fn parse(json: &[u8]) -> Result<Self, StatementError> {
        /// Read first: the predicate of another type has other fields.
        #[derive(Deserialize)]
        struct Types {
            #[serde(rename = "_type")]
            kind: String,
            #[serde(rename = "predicateType")]
            predicate_type: String,
        }
        let types: Types = serde_json::from_slice(json).map_err(StatementError::Json)?;
        expect("_type", &types.kind, STATEMENT_TYPE)?;
        expect("predicateType", &types.predicate_type, PREDICATE_TYPE)?;
        let statement: Self = serde_json::from_slice(json).map_err(StatementError::Json)?;
        let build_type = &statement.predicate.build_definition.build_type;
        expect("buildType", build_type, BUILD_TYPE)?;
        Ok(statement)
    }

    /// Returns the origin that the statement names.
    pub(super) fn provenance(&self) -> Result<Provenance, StatementError> {
        let definition = &self.predicate.build_definition;
        let named = &definition.external_parameters.source;
        let source: Digest = named.parse().map_err(|_other| StatementError::NoSource)?;
        let mut dependencies = definition
            .resolved_dependencies
            .iter()
            .flat_map(Resource::digests);
        if !dependencies.any(|digest| digest == source) {
            return Err(StatementError::Source(named.clone()));
        }
        let subjects = self.subject.iter().flat_map(|subject| {
            let name = subject.name.clone();
            subject.digests().map(move |digest| Subject {
                name: name.clone(),
                digest,
            })
        });
        Ok(Provenance {
            source,
            generation: definition.internal_parameters.generation.clone(),
            subjects: subjects.collect(),
        })
    }
}

impl Provenance {
    /// Whether the statement is about this manifest or layer.
    pub fn names(&self, digest: &Digest) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject.digest == *digest)
    }
}

fn layers(manifest: &Manifest) -> Result<Vec<Digest>, StatementError> {
    let mut layers = Vec::new();
    let read = stream::for_each_descriptor(&manifest.bytes, "layers", |layer| {
        // One more than allowed is enough to know.
        if layers.len() <= MAX_LAYERS {
            layers.push(layer.digest);
        }
    });
    read.map_err(StatementError::Manifest)?;
    if layers.len() > MAX_LAYERS {
        return Err(StatementError::TooManyLayers);
    }
    Ok(layers)
}

fn expect(field: &'static str, found: &str, expected: &'static str) -> Result<(), StatementError> {
    if found == expected {
        return Ok(());
    }
    Err(StatementError::Type {
        field,
        found: found.to_owned(),
        expected,
    })
}
