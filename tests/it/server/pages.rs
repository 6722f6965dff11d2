//! The pages for people: how to use the server, its images, and the files of layers.

use reqwest::Method;
use serde_json::json;
use starlift::oci::media_type;

use super::access::{basic, own_users};
use super::profiles::{quick, stack_of};
use super::{Answer, Stage};
use crate::support::eventually::{eventually_async, eventually_some};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::Gate;

impl Stage {
    /// Returns the text of a page, which must be one.
    async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        text_of(&answer)
    }

    /// Waits until the list of images, which may be some seconds old, contains `part`.
    async fn list_with(&self, part: &str) -> String {
        eventually_some(&format!("the list has {part}"), async || {
            let list = self.page("/images").await;
            list.contains(part).then_some(list)
        })
        .await
    }
}

/// Returns the text of a page and checks what every page has.
fn text_of(answer: &Answer) -> String {
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let policy = answer.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-"),
        "{policy}"
    );
    assert!(policy.contains("form-action 'self'") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(answer.header("cache-control"), "no-store");
    assert!(answer.header("content-type").starts_with("text/html"));
    for part in [
        "<html lang=\"en\">",
        "<main id=\"content\"",
        "<h1",
        "name=\"viewport\"",
        "<title>",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    for part in ["<script", "javascript:", " style=", " onload", " src="] {
        assert!(!text.contains(part), "{part} is in {text}");
    }
    text
}

/// Returns the first link of the page that contains `part`, as an address.
fn link<'a>(page: &'a str, part: &str) -> &'a str {
    let links = page.split("href=\"").skip(1);
    let mut links = links.filter_map(|rest| rest.split('"').next());
    let found = links.find(|link| link.contains(part));
    found.unwrap_or_else(|| panic!("no link with {part} in {page}"))
}

/// Returns a tar of these files; a name that ends in `/` is a folder, and content that begins with
/// `->` the target of a link.
fn tar_of(files: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        let bytes = header.as_gnu_mut().unwrap();
        bytes.name[..name.len()].copy_from_slice(name);
        let target = content.strip_prefix(b"->");
        if let Some(target) = target {
            bytes.linkname[..target.len()].copy_from_slice(target);
        }
        let kind = match target {
            Some(_) => tar::EntryType::Symlink,
            None if name.ends_with(b"/") => tar::EntryType::Directory,
            None => tar::EntryType::Regular,
        };
        let content = if target.is_some() { &[][..] } else { content };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(if kind == tar::EntryType::Directory {
            0o755
        } else {
            0o4755
        });
        header.set_mtime(1_600_000_000);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend_from_slice(&[0; 1024]);
    tar
}

#[tokio::test]
async fn the_start_page_says_how_to_use_this_host_by_the_readers_name_for_it() {
    let stage = Stage::new().await;
    let host = format!("mirror.localhost:{}", stage.server.address.port());
    let answer = stage.ask(Method::GET, "/", &[("host", &host)]).await;
    let page = text_of(&answer);
    for part in [
        format!("docker pull {host}/docker.io/library/nginx:1.27"),
        format!("&quot;registry-mirrors&quot;: [&quot;http://{host}&quot;]"),
        format!("[host.&quot;http://{host}&quot;]"),
        format!("starlift agent install --server http://{host}"),
        format!("image: {host}/docker.io/library/nginx:1.27"),
        format!("podman pull --tls-verify=false {host}/docker.io/library/nginx:1.27"),
        format!("location = &quot;{host}/docker.io&quot;"),
        format!("starlift warm --server http://{host}"),
    ] {
        assert!(page.contains(&part), "{part} is not in {page}");
    }
    for tab in ["docker", "containerd", "kubernetes", "podman"] {
        assert!(
            page.contains(&format!("href=\"#{tab}\"")) && page.contains(&format!("id=\"{tab}\""))
        );
    }
}

#[tokio::test]
async fn the_start_page_refreshes_itself_only_while_something_is_converted() {
    let stage = Stage::with(|config| config.wait = std::time::Duration::ZERO).await;
    let gate = Gate::new();
    let image = stage.push_app();
    let size = image.layers()[0].len();
    stage
        .registry
        .on("/blobs/")
        .skip(1)
        .times(1)
        .gate_after(&gate, size / 2);
    let refresh = "http-equiv=\"refresh\"";
    assert!(!stage.page("/").await.contains(refresh));
    stage.get("/v2/local/app/manifests/v1").await;
    let running = eventually_some("the progress is shown", async || {
        let page = stage.page("/").await;
        page.contains("<progress max=\"100\" value=")
            .then_some(page)
    })
    .await;
    assert!(
        running.contains(refresh) && running.contains("local/app"),
        "{running}"
    );
    let paused = stage.page(link(&running, "pause")).await;
    assert!(
        !paused.contains(refresh) && paused.contains("<progress"),
        "{paused}"
    );
    gate.open();
    eventually_async("the conversion ends", async || {
        let page = stage.page("/").await;
        !page.contains(refresh) && page.contains(">converted<")
    })
    .await;
}

#[tokio::test]
async fn images_are_listed_with_their_numbers_and_found_by_name_and_digest() {
    let stage = Stage::new().await;
    assert!(
        stage
            .page("/images")
            .await
            .contains("No image was converted yet")
    );
    let image = stage.push_app();
    stage
        .registry
        .push("team/other", "v1", &ImageBuilder::new(2).layers(3).build());
    let index = Image::index(
        vec![
            ("linux/amd64", ImageBuilder::new(3).build()),
            (
                "linux/arm64",
                ImageBuilder::new(4).architecture("arm64").build(),
            ),
        ],
        false,
    );
    stage.registry.push("multi", "v1", &index);
    for name in ["app", "team/other", "multi"] {
        let answer = stage.get(&format!("/v2/local/{name}/manifests/v1")).await;
        assert_eq!(answer.status, 200, "{name}");
    }
    let list = stage.list_with("local/multi").await;
    for part in [
        "local/app",
        "local/team/other",
        "2 of 2",
        "3 of 3",
        "linux/amd64",
    ] {
        assert!(list.contains(part), "{part} is not in {list}");
    }
    assert!(
        list.contains("3 images"),
        "the parts of an index are no rows: {list}"
    );
    let found = stage.page("/images?q=OTHER").await;
    assert!(
        found.contains("local/team/other") && !found.contains("local/app<"),
        "{found}"
    );
    let digest = image.digest();
    let found = stage
        .page(&format!("/images?q={}", &digest.hex()[..10]))
        .await;
    assert!(
        found.contains("local/app") && !found.contains("local/multi<"),
        "{found}"
    );
    let none = stage.page("/images?q=%22%3E%3Cscript%3E&page=99").await;
    assert!(
        none.contains("No image has this") && none.contains("&lt;script&gt;"),
        "{none}"
    );
    // The index leads to its platforms.
    let page = stage.page(&format!("/images/{}", index.digest())).await;
    assert!(
        page.contains("linux/arm64") && page.contains("4 of 4"),
        "{page}"
    );
    let children = index.children.iter();
    for child in children {
        let path = format!("/images/{}", child.digest());
        let child = stage.page(link(&page, &path)).await;
        assert!(
            child.contains("Layer 2") && child.contains("local/multi"),
            "{child}"
        );
    }
}

#[tokio::test]
async fn long_lists_of_images_come_in_pages() {
    let stage = Stage::new().await;
    for seed in 0..30 {
        let image = ImageBuilder::new(100 + seed).layers(1).files(1).build();
        let name = format!("many/app{seed:02}");
        stage.registry.push(&name, "v1", &image);
        stage.get(&format!("/v2/local/{name}/manifests/v1")).await;
    }
    let first = stage.list_with("30 images").await;
    assert_eq!(first.matches("local/many/app").count(), 25);
    let second = stage
        .page(&link(&first, "page=2").replace("&amp;", "&"))
        .await;
    assert_eq!(second.matches("local/many/app").count(), 5, "{second}");
    assert!(
        second.contains("Page 2 of 2") && second.contains("start=\"26\""),
        "{second}"
    );
}

#[tokio::test]
async fn an_image_shows_its_layers_and_why_some_were_not_converted() {
    let stage = Stage::new().await;
    let image = ImageBuilder::new(5).build().changed(|document| {
        let encrypted = format!("{}+encrypted", media_type::OCI_LAYER_GZIP);
        document["layers"][1]["mediaType"] = json!(encrypted);
    });
    stage.registry.push("part", "v1", &image);
    let converted = stage.get("/v2/local/part/manifests/v1").await.json();
    let path = format!("/images/{}", image.digest());
    let page = stage.page(&path).await;
    assert!(
        page.contains("1 of 2") && page.contains("Not converted: encrypted"),
        "{page}"
    );
    for layer in converted["layers"].as_array().unwrap() {
        assert!(page.contains(layer["digest"].as_str().unwrap()), "{layer}");
    }
    // Nothing of an artifact is converted, and the reason is foreign text.
    let artifact = ImageBuilder::new(6).build().changed(|document| {
        document["config"]["mediaType"] = json!("application/<script>x");
    });
    stage.registry.push("artifact", "v1", &artifact);
    stage.get("/v2/local/artifact/manifests/v1").await;
    let page = stage.page(&format!("/images/{}", artifact.digest())).await;
    assert!(page.contains("Why it was not converted"), "{page}");
    assert!(page.contains("application/&lt;script&gt;x"), "{page}");
    for unknown in [
        "/images/nothing",
        &format!("/images/sha256:{}", "0".repeat(64)),
    ] {
        let answer = stage.get(unknown).await;
        assert_eq!(answer.status, 404, "{unknown}");
        assert!(text_of(&answer).contains("No such image"));
    }
}

#[tokio::test]
async fn files_of_a_layer_are_shown_by_folder_and_their_names_are_only_text() {
    let stage = Stage::new().await;
    let mut names: Vec<Vec<u8>> = (0..450)
        .map(|at| format!("usr/many/f{at:03}").into())
        .collect();
    names.insert(0, b"usr/".to_vec());
    names.insert(1, b"usr/many/".to_vec());
    let mut files: Vec<(&[u8], &[u8])> = vec![
        (b"<script>alert(1)</script>", b"x"),
        (b"\xff\xfe&?#/", b""),
        (b"\xff\xfe&?#/inner \"'", b"twelve bytes"),
        ("gnp.\u{202e}exe".as_bytes(), b"x"),
        (b"link", b"-></etc/\"><img/src=x>\xff"),
    ];
    files.extend(names.iter().map(|name| (name.as_slice(), &b""[..])));
    let image = ImageBuilder::new(7).build().with_layer(&tar_of(&files));
    stage.registry.push("files", "v1", &image);
    stage.get("/v2/local/files/manifests/v1").await;
    let image = stage.page(&format!("/images/{}", image.digest())).await;
    let layer = link(&image, "/layers/");
    let root = stage.page(layer).await;
    for part in [
        "&lt;script&gt;alert(1)",
        "-rwsr-xr-x",
        "drwxr-xr-x",
        "gnp.\\u{202e}exe",
        "\\xff\\xfe&amp;?#/",
    ] {
        assert!(root.contains(part), "{part} is not in {root}");
    }
    assert!(
        root.contains("→ &lt;/etc/&quot;&gt;&lt;img/src=x&gt;\\xff"),
        "{root}"
    );
    let odd = stage
        .page(&link(&root, "%FF%FE").replace("&amp;", "&"))
        .await;
    assert!(
        odd.contains("inner &quot;'") && odd.contains("12 B"),
        "{odd}"
    );
    let mut many = stage
        .page(&link(&root, "?in=usr").replace("&amp;", "&"))
        .await;
    many = stage
        .page(&link(&many, "?in=usr/many").replace("&amp;", "&"))
        .await;
    let mut seen = 0;
    loop {
        seen += many.matches(">f").count();
        let Some((_, next)) = many.split_once("rel=\"next\"") else {
            break;
        };
        many = stage.page(&link(next, "from=").replace("&amp;", "&")).await;
    }
    assert_eq!(seen, 450);
    for absent in ["?in=etc", "?in=link", "?in=usr/many/f001"] {
        let answer = stage.get(&format!("{layer}{absent}")).await;
        assert_eq!(answer.status, 404, "{absent}");
        text_of(&answer);
    }
    let beyond = stage.page(&format!("{layer}?in=usr/many&from=99999")).await;
    assert!(
        beyond.contains("401 to 450 of 450"),
        "the last ones: {beyond}"
    );
}

#[tokio::test]
async fn what_a_start_reads_is_drawn_with_the_sources_of_the_profile() {
    let stage = Stage::with(quick).await;
    let image = stage.push_app();
    let manifest = stage.get("/v2/local/app/manifests/v1").await.json();
    let read = json!({"version": 1, "files": [
        {"layer": 0, "path": "layer0/file1", "after_ms": 20, "extents": [[0, 10]]},
        {"layer": 1, "path": "layer1/file0", "after_ms": 400, "extents": [[0, 30]]},
    ]});
    let told = stage.tell(&stack_of(&manifest), read.to_string()).await;
    assert_eq!(told.status, 202);
    let path = format!("/images/{}", image.digest());
    let page = eventually_some("the start is drawn", async || {
        let page = stage.page(&path).await;
        page.contains("40 B in 2 files").then_some(page)
    })
    .await;
    for part in [
        "<svg ",
        "M0 300H50.0V225.0H1000.0V0.0",
        "1 start, 1 node",
        "layer1/file0",
        "400 ms",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
}

#[tokio::test]
async fn browsers_are_asked_for_a_password_and_nobody_sees_more_than_the_rules_allow() {
    let (stage, _dir) = own_users().await;
    let carol = basic("carol", "carol-secret");
    let wrong = basic("carol", "wrong");
    let machine = "Bearer 0123456789-0123456789";
    let ask = async |path: &str, authorization: Option<&str>| {
        let headers = authorization.map(|value| ("authorization", value));
        stage.ask(Method::GET, path, headers.as_slice()).await
    };
    let pulled = stage
        .ask(
            Method::GET,
            "/v2/local/team/x/app/manifests/v1",
            &[("authorization", &carol)],
        )
        .await;
    assert_eq!(pulled.status, 200);
    let source = ImageBuilder::new(4).build().digest();
    let layer = pulled.json()["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let paths = [
        "/".to_owned(),
        "/images".to_owned(),
        format!("/images/{source}"),
        format!("/images/{source}/layers/{layer}"),
    ];
    for path in &paths {
        for (authorization, status) in [(None, 401), (Some(&*wrong), 401), (Some(machine), 403)] {
            let answer = ask(path, authorization).await;
            assert_eq!(answer.status, status, "{path}");
            let challenge = answer.header("www-authenticate");
            assert_eq!(
                challenge.starts_with("Basic realm="),
                status == 401,
                "{path}"
            );
            let page = text_of(&answer);
            for secret in ["team/x", "generation", "layer0", source.hex()] {
                assert!(!page.contains(secret), "{path} shows {secret}: {page}");
            }
        }
        let answer = ask(path, Some(&carol)).await;
        assert_eq!(answer.status, 200, "{path}");
        text_of(&answer);
    }
    // A user without the right can come as another one.
    for (authorization, status) in [
        (None, 401),
        (Some(&*wrong), 401),
        (Some(machine), 401),
        (Some(&*carol), 303),
    ] {
        assert_eq!(ask("/sign-in", authorization).await.status, status);
    }
    // Other clients are led to the token endpoint as before.
    let answer = ask("/api/v1/status", None).await;
    assert!(answer.header("www-authenticate").starts_with("Bearer "));
}

#[tokio::test]
async fn a_page_of_a_store_that_fails_says_so_and_the_start_page_stays() {
    let dir = tempfile::tempdir().unwrap();
    let location = dir.path().join("store");
    let config = starlift::store::Config {
        location: location.display().to_string(),
        ..Default::default()
    };
    let store = starlift::store::Store::open(&config).await.unwrap();
    let stage = Stage::over(store, |_| {}).await;
    std::fs::remove_dir_all(&location).unwrap();
    std::fs::write(&location, "no folder").unwrap();
    let answer = stage.get("/images").await;
    assert_eq!(answer.status, 503);
    let page = text_of(&answer);
    assert!(
        page.contains("Not readable now") && !page.contains("os error"),
        "{page}"
    );
    assert!(stage.page("/").await.contains("docker pull"));
}
