//! An S3 in this process: conditional puts, ranges, multipart, listing in pages, deletion one by
//! one and in batches, and the failures of a real one.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test helper fails the test"
)]

mod answer;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use parking_lot::Mutex;
use starlift::store::{Config, Secret};

pub(crate) const BUCKET: &str = "images";
/// S3 rejects a completion in which a part before the last is smaller.
const MIN_PART: usize = 5 << 20;

/// The failure of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// 503, S3's request to slow down; the operation does not happen.
    SlowDown,
    /// The operation happens, and the client gets only a 500.
    LoseAnswer,
    /// The body ends after this many bytes.
    CutBody(usize),
    /// The operation does not happen, and no answer comes.
    Silence,
}

/// A request as a fault rule sees it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Counts from zero since the rule was set.
    pub(crate) number: usize,
    pub(crate) method: Method,
    /// The key, empty for requests about the bucket.
    pub(crate) key: String,
    pub(crate) query: HashMap<String, String>,
}

type Rule = Arc<dyn Fn(&Asked) -> Fault + Send + Sync>;

#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    etag: String,
    modified: SystemTime,
}

struct Shelf {
    objects: BTreeMap<String, Stored>,
    uploads: HashMap<String, BTreeMap<u32, Bytes>>,
    /// The last number used in etags and upload ids.
    counter: u64,
    asked: usize,
    rule: Rule,
}

/// A running S3 with one empty bucket; dropping it ends the server.
pub(crate) struct S3 {
    pub(crate) endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
    server: tokio::task::JoinHandle<()>,
}

impl S3 {
    pub(crate) async fn start() -> Self {
        let shelf = Arc::new(Mutex::new(Shelf {
            objects: BTreeMap::new(),
            uploads: HashMap::new(),
            counter: 0,
            asked: 0,
            rule: Arc::new(|_| Fault::None),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shelf));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            endpoint,
            shelf,
            server,
        }
    }

    /// Returns a configuration of a store under `prefix`.
    pub(crate) fn config(&self, prefix: &str) -> Config {
        config(&self.endpoint, &format!("s3://{BUCKET}/{prefix}"))
    }

    /// Makes `rule` decide the failure of every request from now on.
    pub(crate) fn fail(&self, rule: impl Fn(&Asked) -> Fault + Send + Sync + 'static) {
        let mut shelf = self.shelf.lock();
        shelf.asked = 0;
        shelf.rule = Arc::new(rule);
    }

    /// Returns the number of requests since the rule was set.
    pub(crate) fn asked(&self) -> usize {
        self.shelf.lock().asked
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.shelf.lock().objects.keys().cloned().collect()
    }

    pub(crate) fn object(&self, key: &str) -> Option<Bytes> {
        self.shelf
            .lock()
            .objects
            .get(key)
            .map(|stored| stored.bytes.clone())
    }

    /// Replaces an object's bytes like rot: nothing else of the object changes.
    pub(crate) fn replace(&self, key: &str, content: Option<Vec<u8>>) {
        let objects = &mut self.shelf.lock().objects;
        match content {
            Some(content) => objects.get_mut(key).unwrap().bytes = content.into(),
            None => drop(objects.remove(key)),
        }
    }

    /// Returns the number of multipart uploads that are neither completed nor aborted.
    pub(crate) fn open_uploads(&self) -> usize {
        self.shelf.lock().uploads.len()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Returns a configuration for any S3 at a plain HTTP endpoint.
pub(crate) fn config(endpoint: &str, location: &str) -> Config {
    Config {
        location: location.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        access_key_id: Some("key".to_owned()),
        secret_access_key: Some(Secret::new("secret")),
        ..Config::default()
    }
}

async fn serve(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    let query: HashMap<String, String> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let path = answer::percent_decoded(parts.uri.path());
    let Some(key) = path.strip_prefix(&format!("/{BUCKET}")) else {
        return answer::error(StatusCode::NOT_FOUND, "NoSuchBucket");
    };
    let key = key.trim_start_matches('/').to_owned();
    let has_header = parts.headers.contains_key(header::AUTHORIZATION);
    match (has_header, query.contains_key("X-Amz-Signature")) {
        (false, false) => return answer::error(StatusCode::FORBIDDEN, "AccessDenied"),
        // S3: "Only one auth mechanism allowed".
        (true, true) => return answer::error(StatusCode::BAD_REQUEST, "InvalidArgument"),
        _ => {}
    }
    let (asked, fault) = shelf.lock().count(parts.method.clone(), key.clone(), query);
    match fault {
        Fault::SlowDown => return answer::error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        Fault::Silence => std::future::pending().await,
        Fault::None | Fault::LoseAnswer | Fault::CutBody(_) => {}
    }
    let mut shelf = shelf.lock();
    let response = match (&asked.method, key.is_empty()) {
        (&Method::GET, true) => shelf.list(&asked.query),
        (&Method::POST, true) => shelf.delete_many(&body),
        (&Method::GET | &Method::HEAD, false) => shelf.get(&key, &parts.headers),
        (&Method::PUT, false) => shelf.put(&key, &asked.query, &parts.headers, body),
        (&Method::POST, false) => shelf.multipart(&key, &asked.query),
        (&Method::DELETE, false) => shelf.delete(&key, &asked.query),
        _ => answer::error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    };
    match fault {
        Fault::LoseAnswer => answer::error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Fault::CutBody(after) => answer::cut(response, after),
        Fault::None | Fault::SlowDown | Fault::Silence => response,
    }
}

impl Shelf {
    fn count(
        &mut self,
        method: Method,
        key: String,
        query: HashMap<String, String>,
    ) -> (Asked, Fault) {
        let asked = Asked {
            number: self.asked,
            method,
            key,
            query,
        };
        self.asked += 1;
        let fault = (self.rule)(&asked);
        (asked, fault)
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn store(&mut self, key: &str, bytes: Bytes) -> String {
        let etag = format!("\"{:032x}\"", self.next());
        self.objects.insert(
            key.to_owned(),
            Stored {
                bytes,
                etag: etag.clone(),
                modified: SystemTime::now(),
            },
        );
        etag
    }

    fn get(&self, key: &str, headers: &HeaderMap) -> Response {
        let Some(stored) = self.objects.get(key) else {
            return answer::error(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        let wanted = headers.get(header::IF_MATCH);
        if wanted.is_some_and(|etag| etag.as_bytes() != stored.etag.as_bytes()) {
            return answer::error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let answer = Response::builder()
            .header(header::ETAG, &stored.etag)
            .header(header::LAST_MODIFIED, answer::http_date(stored.modified));
        let Some(range) = headers.get(header::RANGE) else {
            return answer.body(Body::from(stored.bytes.clone())).unwrap();
        };
        let Some(range) = answer::range(range.to_str().unwrap(), stored.bytes.len()) else {
            return answer::error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
        };
        let content_range = format!(
            "bytes {}-{}/{}",
            range.start,
            range.end - 1,
            stored.bytes.len()
        );
        answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, content_range)
            .body(Body::from(stored.bytes.slice(range)))
            .unwrap()
    }

    fn put(
        &mut self,
        key: &str,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Response {
        if let Some(upload) = query.get("uploadId") {
            let number: u32 = query["partNumber"].parse().unwrap();
            let etag = format!("\"part-{:08x}\"", self.next());
            return match self.uploads.get_mut(upload) {
                Some(parts) => {
                    parts.insert(number, body);
                    Response::builder()
                        .header(header::ETAG, etag)
                        .body(Body::empty())
                        .unwrap()
                }
                None => answer::error(StatusCode::NOT_FOUND, "NoSuchUpload"),
            };
        }
        let there = self.objects.get(key).map(|stored| stored.etag.as_bytes());
        if headers.contains_key(header::IF_NONE_MATCH) && there.is_some() {
            return answer::error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        match (headers.get(header::IF_MATCH), there) {
            (Some(_), None) => return answer::error(StatusCode::NOT_FOUND, "NoSuchKey"),
            (Some(wanted), Some(etag)) if wanted.as_bytes() != etag => {
                return answer::error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
            }
            _ => {}
        }
        let etag = self.store(key, body);
        Response::builder()
            .header(header::ETAG, etag)
            .body(Body::empty())
            .unwrap()
    }

    /// Begins or completes an upload.
    fn multipart(&mut self, key: &str, query: &HashMap<String, String>) -> Response {
        let Some(upload) = query.get("uploadId") else {
            let upload = format!("upload-{}", self.next());
            self.uploads.insert(upload.clone(), BTreeMap::new());
            return answer::xml(&format!(
                "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
                 <UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            ));
        };
        let Some(parts) = self.uploads.get(upload) else {
            return answer::error(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        if parts
            .values()
            .rev()
            .skip(1)
            .any(|part| part.len() < MIN_PART)
        {
            return answer::error(StatusCode::BAD_REQUEST, "EntityTooSmall");
        }
        let whole: Vec<u8> = parts
            .values()
            .flat_map(|part| part.iter().copied())
            .collect();
        self.uploads.remove(upload);
        let etag = self.store(key, whole.into());
        answer::xml(&format!(
            "<CompleteMultipartUploadResult><Location>/</Location><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
             <ETag>{}</ETag></CompleteMultipartUploadResult>",
            etag.replace('"', "&quot;")
        ))
    }

    fn delete(&mut self, key: &str, query: &HashMap<String, String>) -> Response {
        match query.get("uploadId") {
            Some(upload) => drop(self.uploads.remove(upload)),
            None => drop(self.objects.remove(key)),
        }
        Response::builder()
            .status(StatusCode::NO_CONTENT)
            .body(Body::empty())
            .unwrap()
    }

    fn delete_many(&mut self, body: &Bytes) -> Response {
        let body = String::from_utf8_lossy(body);
        let mut deleted = String::new();
        for key in body
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split("</Key>").next())
        {
            self.objects.remove(key);
            deleted.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
        }
        answer::xml(&format!("<DeleteResult>{deleted}</DeleteResult>"))
    }

    /// Returns a page of the keys under a prefix. Pages are small, so that there are many.
    fn list(&self, query: &HashMap<String, String>) -> Response {
        const PAGE: usize = 3;
        let prefix = query.get("prefix").map_or("", String::as_str);
        let after = query
            .get("continuation-token")
            .or(query.get("start-after"))
            .map_or("", String::as_str);
        let mut matching = self
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after)
            .peekable();
        let page: Vec<_> = matching.by_ref().take(PAGE).collect();
        let more = matching.peek().is_some();
        let contents: String = page
            .iter()
            .map(|(key, stored)| answer::listed(key, stored))
            .collect();
        let next = match page.last() {
            Some((key, _)) if more => {
                format!("<NextContinuationToken>{key}</NextContinuationToken>")
            }
            _ => String::new(),
        };
        answer::xml(&format!(
            "<ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{}</KeyCount>\
             <MaxKeys>{PAGE}</MaxKeys><IsTruncated>{more}</IsTruncated>{contents}{next}</ListBucketResult>",
            page.len()
        ))
    }
}
