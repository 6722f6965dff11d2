//! The cryptography of all TLS connections: rustls takes one provider for the process.

/// Names the provider, before the first connection. Further calls change nothing.
pub(crate) fn install() {
    // An error says that it is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
}
