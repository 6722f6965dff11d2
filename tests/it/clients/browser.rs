//! The pages in a real browser: at the widths of a desk and of a phone, light and dark, by keys,
//! and behind a sign-in.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::Stage;
use crate::server::access::own_users;
use crate::server::profiles::{quick, stack_of};
use crate::support::chromium::Chromium;
use crate::support::eventually::eventually_async;
use crate::support::image::ImageBuilder;
use crate::support::place::Place;
use crate::support::registry::{Gate, Registry};

const LOOKS: [(u32, &str); 4] = [
    (1280, "light"),
    (1280, "dark"),
    (390, "light"),
    (390, "dark"),
];

/// Returns the faults of a page: parts that stick out, text that is hard to read, controls without
/// a name, missing landmarks. The least contrast is that of WCAG 2.2, level AA.
const FAULTS: &str = r##"(() => {
    const faults = [];
    const root = document.documentElement;
    if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} of ${root.clientWidth} wide`);
    for (const element of document.querySelectorAll('body *')) {
        const box = element.getBoundingClientRect();
        if (box.width > 0 && box.right > root.clientWidth + 1 && !element.closest('pre'))
            faults.push(`sticks out: ${element.outerHTML.slice(0, 120)}`);
    }
    const parts = (color) => color.match(/[\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = parts(color).slice(0, 3).map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            const alpha = parts(color)[3];
            if (alpha === undefined || alpha === 1) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const seen = new Set();
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || element.getClientRects().length === 0 || element.closest('svg')) continue;
        const pair = [getComputedStyle(element).color, paper(element)];
        if (seen.has(pair.join())) continue;
        seen.add(pair.join());
        const [one, other] = pair.map(light).sort((a, b) => b - a);
        const ratio = (one + 0.05) / (other + 0.05);
        if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)}: ${element.outerHTML.slice(0, 120)}`);
    }
    for (const control of document.querySelectorAll('a, button, input, progress, meter, [role=img]')) {
        const name = control.getAttribute('aria-label') || control.textContent || (control.labels && control.labels[0]);
        if (!name || (typeof name === 'string' && !name.trim())) faults.push(`no name: ${control.outerHTML.slice(0, 120)}`);
    }
    for (const [what, selector] of [['main', 'main'], ['header', 'body > header'], ['heading', 'h1']])
        if (document.querySelectorAll(selector).length !== 1) faults.push(`not one ${what}`);
    const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
    if (new Set(ids).size !== ids.length) faults.push(`an id twice: ${ids}`);
    if (document.scripts.length) faults.push('a script');
    return faults;
})()"##;

/// Writes a picture of the page if `STARLIFT_SCREENSHOTS` names a folder.
fn keep(browser: &mut Chromium, name: &str) {
    let picture = browser.screenshot();
    assert!(picture.len() > 5000, "{name}: an empty picture");
    if let Some(folder) = std::env::var_os("STARLIFT_SCREENSHOTS") {
        std::fs::write(
            std::path::Path::new(&folder).join(format!("{name}.png")),
            picture,
        )
        .unwrap();
    }
}

/// Returns the tar of a small system, with files of many sizes.
fn system(seed: u64) -> Vec<u8> {
    let mut random = crate::support::image::Random::new(seed);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(if kind == tar::EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_mtime(1_790_000_000);
        tar.append_data(&mut header, name, content).unwrap();
    };
    for folder in [
        "etc",
        "etc/nginx",
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/share",
        "var",
        "var/log",
    ] {
        add(folder, tar::EntryType::Directory, b"");
        for file in 0..12 {
            let length = random.index(20_000);
            let content = random.bytes(length);
            let name = format!("{folder}/{}-{file}.so.1", folder.replace('/', "-"));
            add(&name, tar::EntryType::Regular, &content);
        }
    }
    tar.into_inner().unwrap()
}

/// Fills a server with images, one of which was started on a node.
async fn filled() -> (Stage, Registry, String) {
    let hub = Registry::start().await;
    let store = starlift::store::Store::in_memory();
    let stage = Stage::beside(store, &[("docker.io", &hub)], quick).await;
    let mut nginx = String::new();
    for (seed, name) in [
        (1, "library/redis"),
        (2, "library/postgres"),
        (3, "grafana/grafana"),
        (4, "library/nginx"),
    ] {
        let image = ImageBuilder::new(seed)
            .layers(1)
            .build()
            .with_layer(&system(seed));
        let digest = hub.push(name, "v1", &image);
        let manifest = stage
            .get(&format!("/v2/docker.io/{name}/manifests/v1"))
            .await;
        assert_eq!(manifest.status, 200);
        nginx = format!("/images/{digest}");
        let file = |at: u32| {
            let at = u64::from(at);
            let folder = ["usr-lib", "etc-nginx", "usr-bin"][usize::try_from(at).unwrap() % 3];
            json!({"layer": 0, "path": format!("{}/{folder}-{}.so.1", folder.replace('-', "/"), at / 3),
                "after_ms": at * at * 3, "extents": [[0, 2000 + at * 400]]})
        };
        let files: Vec<Value> = (0..30).map(file).collect();
        let told = json!({"version": 1, "files": files}).to_string();
        assert_eq!(
            stage.tell(&stack_of(&manifest.json()), told).await.status,
            202
        );
    }
    let artifact = ImageBuilder::new(9).build().changed(|document| {
        document["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    });
    stage.registry.push("charts/app", "v1", &artifact);
    stage.get("/v2/local/charts/app/manifests/v1").await;
    eventually_async("the start is drawn", async || {
        let page = stage.get(&nginx).await;
        String::from_utf8_lossy(&page.body).contains("<svg")
    })
    .await;
    eventually_async("all images are listed", async || {
        let page = stage.get("/images").await;
        String::from_utf8_lossy(&page.body).contains("5 images")
    })
    .await;
    (stage, hub, nginx)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pages_fit_desk_and_phone_and_are_readable_in_light_and_dark() {
    let Some(place) = Place::with(&["chromium"]) else {
        return;
    };
    let (stage, _hub, image) = filled().await;
    let gate = Gate::new();
    let slow = ImageBuilder::new(77).files(60).build();
    stage.registry.push("team/slow", "v1", &slow);
    stage
        .registry
        .on("/blobs/")
        .skip(1)
        .gate_after(&gate, 20_000);
    let warm = stage.request(reqwest::Method::POST, "/api/v1/conversions");
    let warm = warm.header("content-type", "application/json");
    let started = warm
        .body(r#"{"reference": "local/team/slow:v1"}"#)
        .send()
        .await;
    assert_eq!(started.unwrap().status(), 202);
    gate.reached(1).await;
    let url = |path: &str| format!("http://{}{path}", stage.server.address);
    let mut browser = Chromium::start(&place);
    browser.open(&url(&image));
    let folder =
        browser.value("document.querySelector('a[href*=\"/layers/\"]').getAttribute('href')");
    let folder = folder.as_str().unwrap();
    let pages = [
        ("start", "/?pause=1".to_owned(), "docker pull"),
        ("podman", "/?pause=1#podman".to_owned(), "podman pull"),
        ("images", "/images".to_owned(), "docker.io/library/nginx"),
        (
            "none",
            "/images?q=nothing-has-this-name".to_owned(),
            "No image has this",
        ),
        ("image", image.clone(), "What a start reads"),
        (
            "folder",
            format!("{folder}?in=etc/nginx"),
            "etc-nginx-0.so.1",
        ),
        ("unknown", "/images/unknown".to_owned(), "No such image"),
    ];
    let mut faults = Vec::new();
    for (width, scheme) in LOOKS {
        browser.look(width, scheme);
        for (name, path, content) in &pages {
            browser.open("about:blank");
            browser.open(&url(path));
            let text = browser.value("document.body.innerText");
            assert!(text.as_str().unwrap().contains(content), "{name}: {text}");
            let found = browser.value(FAULTS);
            for fault in found.as_array().unwrap() {
                faults.push(format!("{name} at {width}, {scheme}: {fault}"));
            }
            let paper = browser.value("getComputedStyle(document.body).backgroundColor");
            let is_dark = paper.as_str().unwrap().starts_with("rgb(1");
            assert_eq!(is_dark, scheme == "dark", "{name}: {paper}");
            keep(&mut browser, &format!("{name}-{width}-{scheme}"));
        }
    }
    gate.open();
    browser.close(&place);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_page_works_by_keys_and_keeps_the_chosen_client() {
    let Some(place) = Place::with(&["chromium"]) else {
        return;
    };
    let stage = Stage::with(|config| config.wait = Duration::ZERO).await;
    let gate = Gate::new();
    stage.push_app();
    stage.registry.on("/blobs/").skip(1).gate(&gate);
    stage.get("/v2/local/app/manifests/v1").await;
    gate.reached(1).await;
    let url = |path: &str| format!("http://{}{path}", stage.server.address);
    let mut browser = Chromium::start(&place);
    browser.look(1280, "light");
    browser.open(&url("/"));
    browser.press("Tab", 9, "");
    let focused = browser.value(
        "(() => { const at = document.activeElement; return [at.className, at.getBoundingClientRect().left >= 0]; })()",
    );
    assert_eq!(
        focused,
        json!(["skip", true]),
        "the first stop leads to the content"
    );
    let shown = "[...document.querySelectorAll('.panels > section')].filter((panel) => panel.offsetHeight > 0).map((panel) => panel.id)";
    assert_eq!(browser.value(shown), json!(["docker"]));
    // The conversion is held, so that the page loads itself again.
    browser.loaded();
    browser.value("document.querySelector('.tabs a[href$=\"#podman\"]').focus()");
    browser.press("Enter", 13, "\r");
    browser.loaded();
    assert_eq!(browser.value("location.hash"), "#podman");
    assert_eq!(browser.value(shown), json!(["podman"]));
    let refreshes = browser.value("document.querySelectorAll('meta[http-equiv]').length");
    assert_eq!(refreshes, 0, "the choice is not forgotten");
    gate.open();
    browser.close(&place);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_browser_signs_in_with_a_password() {
    let Some(place) = Place::with(&["chromium"]) else {
        return;
    };
    let (stage, _dir) = own_users().await;
    let url = format!("http://{}/images", stage.server.address);
    let mut browser = Chromium::start(&place);
    browser.look(390, "light");
    let heading = "document.querySelector('h1').innerText";
    // Nobody answers the challenge.
    browser.sign_in_as("carol", "wrong");
    browser.open(&url);
    assert_eq!(browser.value(heading), "Sign in");
    assert_eq!(browser.value(FAULTS), json!([]));
    browser.sign_in_as("carol", "carol-secret");
    browser.open(&url);
    assert_eq!(browser.value(heading), "Images");
    browser.close(&place);
}
