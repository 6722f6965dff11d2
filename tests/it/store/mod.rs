//! The store's promises with each backend.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed unwrap in a test helper fails the test"
)]

mod contract;
mod faults;
mod folder;
mod leases;
mod s3;

use starlift::store::Store;

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    contract::all(&Store::in_memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_the_contract() {
    let (_dir, config) = folder::folder();
    contract::all(&Store::open(&config).await.unwrap()).await;
}
