//! Credentials of pods: a proxy in front of containerd's CRI image service hears what kubelets send with each pull.
//!
//! ```text
//! kubelet ─ --image-service-endpoint ▶ ImageService ▶ containerd's CRI socket
//!                                      │ PullImage: auth
//!                                      ▼
//!                                      CriCredentials ◀ Upstreams::with_logins, at each login
//! ```
//!
//! They are held in memory alone. Where that memory is kept by another process, they outlive a restart of this one; else
//! they come again with the next pull.

mod credentials;
mod frame;
mod kept;
mod service;

pub use self::credentials::CriCredentials;
pub use self::service::ImageService;
