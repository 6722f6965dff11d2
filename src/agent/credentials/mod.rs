//! Credentials of pods: a proxy in front of containerd's CRI image service reads the credentials
//! that kubelets send with each pull.
//!
//! ```text
//! kubelet ─ --image-service-endpoint ▶ ImageService ▶ containerd's CRI socket
//!                                      │ PullImage: auth
//!                                      ▼
//!                                      CriCredentials ◀ Upstreams::with_logins, at each login
//! ```
//!
//! They are held only in memory. If another process keeps that memory, they outlive a restart of
//! the agent. Otherwise they come again with the next pull.

mod frame;
mod kept;
mod logins;
mod service;

pub use self::logins::CriCredentials;
pub use self::service::ImageService;
