//! The serving certificate: checked when it is loaded, swapped as a whole when it changes.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weir_runtime::listen::ALPN;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use crate::certs::Validity;
use crate::client_auth::ClientVerifier;
use crate::crypto;

/// A certificate chain whose leaf belongs to its key and is valid.
#[derive(Clone)]
pub struct ServerCert {
    key: Arc<CertifiedKey>,
    validity: Validity,
}

impl fmt::Debug for ServerCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCert").field("chain", &self.key.cert.len()).field("validity", &self.validity).finish()
    }
}

/// Error of a certificate and key that cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyPairError {
    /// The certificate is not PEM.
    #[error("the certificate is not PEM: {0}")]
    CertPem(String),
    /// The PEM text holds no certificate.
    #[error("no PEM block BEGIN CERTIFICATE found")]
    NoCert,
    /// The first certificate is not X.509.
    #[error("the first certificate is not X.509: {0}")]
    NotX509(String),
    /// The key is missing or corrupt.
    #[error("the key is not a private key in PEM (PKCS #8, SEC1 or PKCS #1): {0}")]
    KeyPem(String),
    /// The key's algorithm is not supported.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The key is another certificate's.
    #[error("the private key does not match the certificate")]
    Mismatch,
    /// The leaf has expired.
    #[error("the certificate expired {} ago", days(*.0))]
    Expired(Duration),
}

fn days(time: Duration) -> String {
    let hours = time.as_secs() / 3600;
    if hours < 48 { format!("{hours} hours") } else { format!("{} days", hours / 24) }
}

impl ServerCert {
    /// Checks a certificate chain and its key, both PEM.
    ///
    /// # Errors
    /// The first reason that keeps it from serving.
    pub fn from_pem(cert: &[u8], key: &[u8], now: SystemTime) -> Result<Self, KeyPairError> {
        let chain = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| KeyPairError::CertPem(error.to_string()))?;
        let leaf = chain.first().ok_or(KeyPairError::NoCert)?;
        let validity = validity(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| KeyPairError::KeyPem(error.to_string()))?;
        let key = CertifiedKey::from_der(chain, key, &crypto::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => KeyPairError::Mismatch,
            other => KeyPairError::Key(other.to_string()),
        })?;
        if let Ok(ago) = now.duration_since(validity.not_after) {
            return Err(KeyPairError::Expired(ago));
        }
        Ok(Self { key: Arc::new(key), validity })
    }

    /// Returns when the leaf expires.
    pub fn not_after(&self) -> SystemTime {
        self.validity.not_after
    }

    /// Returns the validity of the leaf.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Returns the chain that clients get, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }
}

/// The certificate that is served now; `None` before the first.
pub type ServedCertificate = Arc<ArcSwap<Option<ServerCert>>>;

/// Returns the validity of a certificate.
///
/// # Errors
/// It is not X.509.
pub(crate) fn validity(cert: &CertificateDer<'_>) -> Result<Validity, KeyPairError> {
    let (_, parsed) = X509Certificate::from_der(cert).map_err(|error| KeyPairError::NotX509(error.to_string()))?;
    let time = |at: ASN1Time| UNIX_EPOCH + Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0));
    let validity = parsed.validity();
    Ok(Validity { not_before: time(validity.not_before), not_after: time(validity.not_after) })
}

/// Gives every handshake the certificate that is served now.
#[derive(Debug)]
struct CertificateResolver(ServedCertificate);

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().as_ref().map(|cert| Arc::clone(&cert.key))
    }
}

/// Returns the configuration for TLS 1.2 and 1.3, with client authentication if `clients` is given.
///
/// # Errors
/// None that input could cause: the provider supports both versions.
pub fn server_config(
    served: ServedCertificate,
    clients: Option<ClientVerifier>,
) -> Result<ServerConfig, rustls::Error> {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder =
        ServerConfig::builder_with_provider(Arc::new(crypto::provider())).with_protocol_versions(&versions)?;
    let resume_sessions = clients.is_none();
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::new(clients)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(CertificateResolver(served)));
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    if !resume_sessions {
        // A session would outlive the CA that its client was verified against.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs;

    fn pair(days: u16, now: SystemTime) -> certs::GeneratedCerts {
        certs::generate(&["localhost".to_owned()], days, now).unwrap()
    }

    #[test]
    fn generated_pair_is_accepted_with_its_expiry() {
        let now = SystemTime::now();
        let generated = pair(30, now);
        let loaded = ServerCert::from_pem(generated.cert.as_bytes(), generated.key.as_bytes(), now).unwrap();
        let left = loaded.not_after().duration_since(now).unwrap().as_secs();
        assert!((30 * 86_400 - 2..=30 * 86_400).contains(&left), "{left}");
    }

    #[test]
    fn chain_keeps_its_intermediates_in_order() {
        let generated = pair(1, SystemTime::now());
        let chain = format!("{}{}", generated.cert, generated.ca);
        let loaded = ServerCert::from_pem(chain.as_bytes(), generated.key.as_bytes(), SystemTime::now()).unwrap();
        assert_eq!(loaded.key.cert.len(), 2);
    }

    #[test]
    fn unusable_pairs_are_rejected_with_the_reason() {
        let now = SystemTime::now();
        let (one, other) = (pair(1, now), pair(1, now));
        let old = pair(1, now - Duration::from_hours(240));
        let cases: [(&str, &str, &str); 7] = [
            (&one.cert, &other.key, "does not match"),
            ("", &one.key, "no PEM block"),
            (&one.key, &one.key, "no PEM block"),
            (&one.cert, "", "not a private key"),
            (&one.cert, &one.cert, "not a private key"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &one.key, "not X.509"),
            (&old.cert, &old.key, "expired 9 days ago"),
        ];
        for (cert, key, expected) in cases {
            let text = ServerCert::from_pem(cert.as_bytes(), key.as_bytes(), now).unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} should contain {expected:?}");
        }
    }
}
