//! The provider of cryptography for TLS.

use rustls::crypto::CryptoProvider;

/// Returns the provider. It is passed to every TLS configuration, because a library must not install one for the whole process.
pub(crate) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}
