//! Which manifest types a client accepts (RFC 9110, section 12.5.1), and how to answer if it does
//! not accept the document's type.

use http::HeaderMap;
use http::header::ACCEPT;

use crate::oci::media_type::{
    DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, ManifestKind, OCI_INDEX, OCI_MANIFEST, manifest_kind,
};

/// The union of all `Accept` lines: skopeo sends one line for each type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accept {
    /// Lower-case media ranges. Empty if the client accepts everything.
    types: Vec<String>,
}

/// How to answer with a document of a given type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    AsIs,
    /// The same document under the other family's type.
    Translate(&'static str),
    /// One image of the index, because the client does not accept indexes.
    Child,
}

impl Accept {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let types = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .filter_map(media_range)
            .collect();
        Self { types }
    }

    fn takes(&self, media_type: &str) -> bool {
        let fits = |range: &String| {
            range == "*/*"
                || range == media_type
                || range
                    .strip_suffix('*')
                    .is_some_and(|kind| media_type.starts_with(kind))
        };
        self.types.is_empty() || self.types.iter().any(fits)
    }

    /// Chooses the answer for a document of type `media_type`. A client that accepts no known type
    /// gets the document unchanged: docker-registry does so, and some clients send `Accept:
    /// application/json`.
    pub(crate) fn choose(&self, media_type: &str) -> Choice {
        if self.takes(media_type) {
            return Choice::AsIs;
        }
        let other = match media_type {
            DOCKER_MANIFEST => OCI_MANIFEST,
            OCI_MANIFEST => DOCKER_MANIFEST,
            DOCKER_MANIFEST_LIST => OCI_INDEX,
            OCI_INDEX => DOCKER_MANIFEST_LIST,
            _ => return Choice::AsIs,
        };
        let takes_images = self.takes(DOCKER_MANIFEST) || self.takes(OCI_MANIFEST);
        match manifest_kind(media_type) {
            _ if self.takes(other) => Choice::Translate(other),
            Some(ManifestKind::Index) if takes_images => Choice::Child,
            _ => Choice::AsIs,
        }
    }
}

/// The media range of one element, without parameters. `None` if its weight is zero.
fn media_range(element: &str) -> Option<String> {
    let mut parts = element.split(';').map(str::trim);
    let range = parts
        .next()
        .filter(|range| !range.is_empty())?
        .to_ascii_lowercase();
    let is_refused =
        parts
            .filter_map(|parameter| parameter.split_once('='))
            .any(|(name, value)| {
                name.trim().eq_ignore_ascii_case("q") && value.trim().parse::<f32>() == Ok(0.0)
            });
    (!is_refused).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(lines: &[&str]) -> Accept {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, line.parse().unwrap());
        }
        Accept::from_headers(&headers)
    }

    #[test]
    fn lines_and_elements_are_merged() {
        let one = accept(&[&format!("{DOCKER_MANIFEST}, {OCI_INDEX};q=0.5")]);
        let two = accept(&[DOCKER_MANIFEST, OCI_INDEX]);
        assert_eq!(one, two);
    }

    #[test]
    fn the_answer_has_a_type_that_the_client_accepts() {
        let cases = [
            (vec![], OCI_INDEX, Choice::AsIs),
            (vec!["*/*"], OCI_INDEX, Choice::AsIs),
            (vec!["application/*"], DOCKER_MANIFEST, Choice::AsIs),
            (
                vec![OCI_MANIFEST, DOCKER_MANIFEST],
                DOCKER_MANIFEST,
                Choice::AsIs,
            ),
            (
                vec![DOCKER_MANIFEST],
                OCI_MANIFEST,
                Choice::Translate(DOCKER_MANIFEST),
            ),
            (
                vec![OCI_MANIFEST],
                DOCKER_MANIFEST,
                Choice::Translate(OCI_MANIFEST),
            ),
            (
                vec![DOCKER_MANIFEST, DOCKER_MANIFEST_LIST],
                OCI_INDEX,
                Choice::Translate(DOCKER_MANIFEST_LIST),
            ),
            (vec![DOCKER_MANIFEST], OCI_INDEX, Choice::Child),
            (vec!["application/json"], OCI_INDEX, Choice::AsIs),
            (
                vec!["*/*;q=0", OCI_MANIFEST],
                DOCKER_MANIFEST,
                Choice::Translate(OCI_MANIFEST),
            ),
        ];
        for (lines, media_type, expected) in cases {
            assert_eq!(
                accept(&lines).choose(media_type),
                expected,
                "{lines:?} for {media_type}"
            );
        }
    }
}
