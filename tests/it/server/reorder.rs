//! Images that are converted again with their files in reading order.

use estargz::toc::Limits;
use estargz::{Footer, UnverifiedToc, footer};
use serde_json::Value;
use starlift::convert;
use starlift::store::Store;

use super::Stage;
use super::profiles::{FILES, path_of, quick, seen, stack_of};
use crate::support::eventually::eventually_some;
use crate::support::image::{Image, ImageBuilder};

impl Stage {
    /// Returns a server with reordering over `store`, whose upstream has `image`.
    async fn reordering(store: &Store, image: &Image) -> Self {
        let config = convert::Config {
            reorder: true,
            ..convert::Config::default()
        };
        let stage = Self::converting(store.clone(), &config, quick).await;
        stage.registry.push("app", "v1", image);
        stage
    }

    /// Sends the observations of three nodes for the image with manifest `path`, and waits until
    /// they are merged.
    async fn learned(&self, path: &str) {
        let stack = stack_of(&self.get(path).await.json());
        for node in 1..4 {
            let answer = self
                .tell_as(
                    [127, 0, 0, node],
                    &path_of(&stack),
                    seen(&FILES).to_string(),
                )
                .await;
            assert_eq!(answer.status, 202);
        }
        self.profile_when(&path_of(&stack), |profile| profile["observers"] == 3)
            .await;
    }

    /// Waits until the manifest differs from `before`, and returns it.
    async fn changed(&self, path: &str, before: &str) -> Value {
        eventually_some("the manifest has changed", async || {
            let answer = self.get(path).await;
            assert_eq!(answer.status, 200);
            (answer.digest() != before).then(|| answer.json())
        })
        .await
    }

    /// Returns the names in the TOC of a layer, up to its landmark.
    async fn front(&self, layer: &Value) -> Vec<String> {
        let path = format!("/v2/local/app/blobs/{}", layer["digest"].as_str().unwrap());
        let blob = self.get(&path).await.body;
        let size = blob.len() as u64;
        let tail = footer::tail_range(size);
        let footer = Footer::parse(&blob[usize::try_from(tail.start).unwrap()..], size).unwrap();
        let section = footer.toc_range().unwrap();
        let section =
            &blob[usize::try_from(section.start).unwrap()..usize::try_from(section.end).unwrap()];
        let toc = UnverifiedToc::parse(section, &footer, &Limits::default()).unwrap();
        let toc: Value = serde_json::from_slice(toc.json()).unwrap();
        let files = toc["entries"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["type"] == "reg");
        let names: Vec<_> = files
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect();
        let landmark = names
            .iter()
            .position(|name| name.ends_with(".prefetch.landmark"))
            .unwrap();
        names[..=landmark].to_vec()
    }
}

const MANIFEST: &str = "/v2/local/app/manifests/v1";

#[tokio::test]
async fn files_that_nodes_read_first_move_to_the_front_and_old_digests_stay() {
    let (store, image) = (Store::in_memory(), ImageBuilder::new(1).build());
    let stage = Stage::reordering(&store, &image).await;
    let before = stage.get(MANIFEST).await;
    let (before, layers) = (before.digest().to_owned(), before.json()["layers"].clone());
    stage.learned(MANIFEST).await;

    // Another replica, which has not looked up the new order yet.
    let stage = Stage::reordering(&store, &image).await;
    let converted = stage.changed(MANIFEST, &before).await;
    assert_eq!(
        stage.front(&converted["layers"][0]).await,
        [FILES[0].1, ".prefetch.landmark"]
    );
    assert_eq!(
        stage.front(&converted["layers"][1]).await,
        [FILES[1].1, FILES[2].1, ".prefetch.landmark"]
    );
    assert_eq!(
        converted["annotations"]["dev.starlift.source.digest"],
        image.digest().to_string()
    );

    for path in [
        format!("manifests/{before}"),
        format!("blobs/{}", layers[0]["digest"].as_str().unwrap()),
    ] {
        assert_eq!(
            stage.get(&format!("/v2/local/app/{path}")).await.status,
            200,
            "{path}"
        );
    }
    let again = Stage::reordering(&store, &image).await.get(MANIFEST).await;
    assert_eq!(
        stack_of(&again.json()),
        stack_of(&converted),
        "the new order stays"
    );
    let profile = stage
        .profile_when(&path_of(&stack_of(&converted)), |_| true)
        .await;
    assert_eq!(
        profile["observers"], 3,
        "the new layers belong to the same image"
    );
}

#[tokio::test]
async fn an_index_follows_the_image_that_was_made_anew() {
    let (store, child) = (Store::in_memory(), ImageBuilder::new(1).build());
    let index = Image::index(vec![("linux/amd64", child)], false);
    let stage = Stage::reordering(&store, &index).await;
    let before = stage.get(MANIFEST).await;
    let child_of = |index: &Value| {
        format!(
            "/v2/local/app/manifests/{}",
            index["manifests"][0]["digest"].as_str().unwrap()
        )
    };
    stage.learned(&child_of(&before.json())).await;

    let other = Stage::reordering(&store, &index).await;
    other.get(MANIFEST).await;
    other.get(&child_of(&before.json())).await;
    let after = other.changed(MANIFEST, before.digest()).await;
    let converted = other.get(&child_of(&after)).await.json();
    assert_eq!(
        other.front(&converted["layers"][0]).await,
        [FILES[0].1, ".prefetch.landmark"]
    );
    assert_eq!(other.get(&child_of(&before.json())).await.status, 200);
}
