//! Lists the pods of a cluster, in pages, and collects the images of their containers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::{Certificate, Client, StatusCode};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::failure::Failure;
use crate::tls_provider;

/// Pods of a page. A pod has some 10 KiB.
const PAGE: usize = 250;
/// The longest page.
const MAX_PAGE: u64 = 64 << 20;
/// The most pages: a cluster of 250,000 pods has a thousand.
const MAX_PAGES: usize = 4000;
/// The most different images.
const MAX_IMAGES: usize = 50_000;
/// The longest name of an image, and the longest token of a page.
const MAX_NAME: usize = 1 << 10;
const MAX_TOKEN: usize = 64 << 10;
/// How long a page may take.
const WITHIN: Duration = Duration::from_secs(60);

/// The place of a service account's files in a pod.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A way to ask a cluster's API.
#[derive(Debug)]
pub(crate) enum Cluster {
    Api(Api),
    Kubectl(Kubectl),
}

/// The API itself.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    server: Url,
    /// Read at each page, because the kubelet renews it.
    token_file: Option<PathBuf>,
}

/// The program `kubectl`.
#[derive(Debug, Default)]
pub(crate) struct Kubectl {
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) context: Option<String>,
}

/// A page that cannot be read.
enum PageError {
    /// The token of the page is too old: the list has to begin again.
    Expired,
    Failed(Failure),
}

#[derive(Deserialize)]
struct PodList {
    kind: String,
    #[serde(default)]
    metadata: ListMetadata,
    items: Option<Vec<Pod>>,
}

#[derive(Default, Deserialize)]
struct ListMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Container {
    image: Option<String>,
}

impl Api {
    /// The API at `server`, with a bearer token and the authority of its certificate.
    ///
    /// # Errors
    /// If the authority's file cannot be used.
    pub(crate) fn new(
        server: Url,
        token_file: Option<PathBuf>,
        ca_file: Option<&Path>,
    ) -> Result<Self, Failure> {
        tls_provider::install();
        let mut client = Client::builder().timeout(WITHIN);
        if let Some(file) = ca_file {
            let unusable = || format!("{} has no usable certificates", file.display());
            let pem = std::fs::read(file).map_err(Failure::when(unusable()))?;
            let authorities =
                Certificate::from_pem_bundle(&pem).map_err(Failure::when(unusable()))?;
            client = client.tls_certs_only(authorities);
        }
        Ok(Self {
            client: client.build().map_err(Failure::from_error)?,
            server,
            token_file,
        })
    }

    /// The API of the cluster in which this pod runs, at the address that the kubelet has put into
    /// the environment. `None` outside of a pod with a service account.
    pub(crate) fn of_pod(host: &str, port: &str) -> Option<Result<Self, Failure>> {
        let account = Path::new(ACCOUNT);
        let token = account.join("token");
        if host.is_empty() || !token.exists() {
            return None;
        }
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        let server = format!("https://{host}:{port}").parse();
        let server = server.map_err(Failure::when("KUBERNETES_SERVICE_HOST is no host"));
        let ca = account.join("ca.crt");
        Some(server.and_then(|server| Self::new(server, Some(token), Some(&ca))))
    }

    async fn get(&self, path: &str) -> Result<Vec<u8>, PageError> {
        let failed = PageError::Failed;
        let url = self
            .server
            .join(path)
            .map_err(|error| failed(Failure::from_error(error)))?;
        let mut request = self.client.get(url);
        if let Some(file) = &self.token_file {
            let token = tokio::fs::read_to_string(file).await;
            let token = token.map_err(|error| {
                failed(Failure::when(format!("{} cannot be read", file.display()))(
                    error,
                ))
            })?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let mut response = request.send().await.map_err(|error| {
            failed(Failure::when(format!("{} does not answer", self.server))(
                error,
            ))
        })?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return Err(PageError::Expired),
            status => return Err(failed(refused(status))),
        }
        let mut bytes = Vec::new();
        loop {
            let piece = response
                .chunk()
                .await
                .map_err(|error| failed(Failure::when("the list of pods broke off")(error)))?;
            let Some(piece) = piece else { return Ok(bytes) };
            if (bytes.len() + piece.len()) as u64 > MAX_PAGE {
                return Err(failed(too_long()));
            }
            bytes.extend_from_slice(&piece);
        }
    }
}

fn refused(status: StatusCode) -> Failure {
    let hint = match status {
        StatusCode::UNAUTHORIZED => ": the token is missing, wrong or expired",
        StatusCode::FORBIDDEN => ": the account needs the right to list pods",
        StatusCode::NOT_FOUND => ": this is not the address of a Kubernetes API",
        _ => "",
    };
    Failure::new(format!("pods cannot be listed: {status}{hint}"))
}

fn too_long() -> Failure {
    Failure::new(format!("a page of pods is over {MAX_PAGE} bytes"))
}

impl Kubectl {
    async fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let mut kubectl = Command::new("kubectl");
        if let Some(file) = &self.kubeconfig {
            kubectl.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &self.context {
            kubectl.args(["--context", context]);
        }
        kubectl.args(["get", "--raw", path]);
        // Its messages are for the person at the terminal.
        kubectl.stdin(Stdio::null()).stderr(Stdio::inherit());
        let started = kubectl.stdout(Stdio::piped()).kill_on_drop(true).spawn();
        let mut started = started.map_err(Failure::when(
            "kubectl cannot be run; install it, run in a pod, or name --kubernetes-api",
        ))?;
        let output = started.stdout.take();
        let output = output.ok_or_else(|| Failure::new("kubectl has no output"))?;
        let mut bytes = Vec::new();
        let read = async {
            let broken = Failure::when("the output of kubectl broke off");
            output
                .take(MAX_PAGE + 1)
                .read_to_end(&mut bytes)
                .await
                .map_err(broken)?;
            if bytes.len() as u64 > MAX_PAGE {
                return Err(too_long());
            }
            let status = started.wait().await.map_err(Failure::from_error)?;
            if status.success() {
                Ok(())
            } else {
                Err(Failure::new(format!("kubectl get --raw {path}: {status}")))
            }
        };
        match tokio::time::timeout(WITHIN, read).await {
            Ok(read) => read.map(|()| bytes),
            Err(elapsed) => Err(Failure::when("kubectl does not end")(elapsed)),
        }
    }
}

impl Cluster {
    /// Returns the images of all pods of these namespaces, or of the cluster, as the pods name them.
    ///
    /// # Errors
    /// If the API does not answer, refuses the credentials, or answers something else than pods.
    pub(crate) async fn images(&self, namespaces: &[String]) -> Result<BTreeSet<String>, Failure> {
        let mut images = BTreeSet::new();
        if namespaces.is_empty() {
            self.list("/api/v1/pods", &mut images).await?;
        }
        for namespace in namespaces {
            if !is_label(namespace) {
                return Err(Failure::new(format!("{namespace:?} is no namespace")));
            }
            let path = format!("/api/v1/namespaces/{namespace}/pods");
            self.list(&path, &mut images).await?;
        }
        Ok(images)
    }

    async fn list(&self, path: &str, images: &mut BTreeSet<String>) -> Result<(), Failure> {
        let mut next = String::new();
        let mut has_begun_again = false;
        for _ in 0..MAX_PAGES {
            let mut query = Serializer::new(String::new());
            query.append_pair("limit", &PAGE.to_string());
            if !next.is_empty() {
                query.append_pair("continue", &next);
            }
            let page = match self.get(&format!("{path}?{}", query.finish())).await {
                Ok(page) => page,
                // Tokens live for some minutes. What was read before stays.
                Err(PageError::Expired) if !has_begun_again => {
                    (has_begun_again, next) = (true, String::new());
                    continue;
                }
                Err(PageError::Expired) => {
                    return Err(Failure::new("pods cannot be listed: the pages expire"));
                }
                Err(PageError::Failed(failure)) => return Err(failure),
            };
            match collect(&page, images)? {
                Some(token) if token == next => {
                    return Err(Failure::new("the list of pods has the same page twice"));
                }
                Some(token) => next = token,
                None => return Ok(()),
            }
        }
        Err(Failure::new(format!(
            "the list of pods has more than {MAX_PAGES} pages"
        )))
    }

    async fn get(&self, path: &str) -> Result<Vec<u8>, PageError> {
        match self {
            Self::Api(api) => api.get(path).await,
            Self::Kubectl(kubectl) => kubectl.get(path).await.map_err(PageError::Failed),
        }
    }
}

/// RFC 1123, as names of namespaces are.
fn is_label(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(is_inner) && !name.starts_with('-')
}

/// Adds the images of a page, and returns the token of the next one.
fn collect(page: &[u8], images: &mut BTreeSet<String>) -> Result<Option<String>, Failure> {
    let list: PodList = serde_json::from_slice(page)
        .map_err(Failure::when("the answer is no list of pods of Kubernetes"))?;
    if list.kind != "PodList" {
        return Err(Failure::new("the answer is no list of pods of Kubernetes"));
    }
    for Pod { spec } in list.items.into_iter().flatten() {
        let kinds = [
            spec.init_containers,
            spec.containers,
            spec.ephemeral_containers,
        ];
        let containers = kinds.into_iter().flatten().flatten();
        let named = containers.filter_map(|container| container.image);
        images.extend(named.filter(|image| (1..=MAX_NAME).contains(&image.len())));
        if images.len() > MAX_IMAGES {
            return Err(Failure::new(format!(
                "the pods have more than {MAX_IMAGES} images"
            )));
        }
    }
    let next = list.metadata.next.filter(|token| !token.is_empty());
    match next {
        Some(token) if token.len() > MAX_TOKEN => {
            Err(Failure::new("the token of a page is too long"))
        }
        next => Ok(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_all_containers_are_collected_and_nonsense_is_an_error() {
        let mut images = BTreeSet::new();
        let page = br#"{"kind": "PodList", "apiVersion": "v1", "metadata": {"continue": "t", "resourceVersion": "1"},
            "items": [{"metadata": {"name": "a"}, "spec": {"initContainers": [{"name": "i", "image": "i:1"}],
            "containers": [{"name": "c", "image": "c:1"}, {"name": "d"}, {"image": ""}],
            "ephemeralContainers": [{"image": "e:1"}]}}, {"spec": {"containers": null}}, {}]}"#;
        assert_eq!(collect(page, &mut images).unwrap().as_deref(), Some("t"));
        assert_eq!(images.iter().collect::<Vec<_>>(), ["c:1", "e:1", "i:1"]);
        let last = br#"{"kind": "PodList", "metadata": {"continue": ""}, "items": null}"#;
        assert_eq!(collect(last, &mut images).unwrap(), None);
        for nonsense in [
            &b""[..],
            b"<html>",
            b"[]",
            br#"{"kind": "Status", "status": "Failure"}"#,
            br#"{"kind": "PodList", "items": [7]}"#,
        ] {
            assert!(collect(nonsense, &mut images).is_err());
        }
        let long = format!(
            r#"{{"kind": "PodList", "metadata": {{"continue": "{}"}}}}"#,
            "t".repeat(MAX_TOKEN + 1)
        );
        assert!(collect(long.as_bytes(), &mut images).is_err());
    }

    #[test]
    fn namespaces_are_labels() {
        assert!(is_label("kube-system") && is_label("a1"));
        for name in ["", "A", "a/b", "..", "a?b", "-a", &"a".repeat(64)] {
            assert!(!is_label(name), "{name}");
        }
    }
}
