//! The store's promises over each of its backends.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what a test's helper unwraps is asserted"
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
