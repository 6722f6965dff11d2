//! The store's promises over each of its backends.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test's helper unwraps is asserted")]

mod contract;
mod faults;
mod leases;

use starlift::store::{Config, Error, Store};

fn folder() -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let location = dir.path().join("store").display().to_string();
    (dir, Config { location, ..Config::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    contract::all(&Store::in_memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_the_contract() {
    let (_dir, config) = folder();
    contract::all(&Store::open(&config).await.unwrap()).await;
}

#[tokio::test]
async fn a_folder_outlives_its_store() {
    let (_dir, config) = folder();
    let image = contract::put_image(&Store::open(&config).await.unwrap(), 1, 5 << 20).await.unwrap();
    let reopened = Store::open(&config).await.unwrap();
    assert_eq!(reopened.image(&contract::generation(), &image.source).await.unwrap().as_ref(), Some(&image));
    for digest in &image.objects {
        let object = reopened.find(digest).await.unwrap().unwrap();
        let bytes = contract::read(&reopened, &object, 0..object.size).await.unwrap();
        assert_eq!(starlift::oci::Digest::sha256_of(&bytes), *digest);
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for location in [file.clone(), file.join("below")] {
        let config = Config { location: location.display().to_string(), ..Config::default() };
        let error = Store::open(&config).await.unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains(&config.location), "{error}");
    }
}
