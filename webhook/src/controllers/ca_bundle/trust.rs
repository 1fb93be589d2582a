//! The CAs that clients of the webhook are to trust.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::verify::parse_certificates;

/// A bundle of CA certificates. Two are equal if they hold the same certificates, in whatever order and with whatever text between them.
#[derive(Clone)]
pub struct TrustBundle {
    pem: String,
    certs: BTreeSet<Vec<u8>>,
}

/// Reads the trust bundle from its source, just before it is written somewhere.
pub type TrustFetcher =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Arc<TrustBundle>, String>> + Send>> + Send + Sync>;

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.certs == other.certs
    }
}

impl Eq for TrustBundle {}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustBundle").field("certificates", &self.certs.len()).finish_non_exhaustive()
    }
}

fn to_set(certs: Vec<CertificateDer<'static>>) -> BTreeSet<Vec<u8>> {
    certs.into_iter().map(|cert| cert.as_ref().to_vec()).collect()
}

impl TrustBundle {
    /// Parses a bundle.
    ///
    /// # Errors
    /// It holds no certificate, or something that is not one.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let (certs, clean) = parse_certificates(pem.as_bytes());
        if certs.is_empty() {
            return Err("no PEM block BEGIN CERTIFICATE found".to_owned());
        }
        if !clean {
            return Err("holds a PEM block that is not a certificate".to_owned());
        }
        Ok(Self { pem: pem.to_owned(), certs: to_set(certs) })
    }

    /// Returns the bundle as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns whether `bundle` holds these certificates and nothing else.
    pub fn has_same_certs(&self, bundle: &[u8]) -> bool {
        let (certs, clean) = parse_certificates(bundle);
        clean && to_set(certs) == self.certs
    }

    /// Returns whether `bundle` holds all of these certificates.
    pub fn is_subset_of(&self, bundle: &[u8]) -> bool {
        self.certs.is_subset(&to_set(parse_certificates(bundle).0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::certs;

    #[test]
    fn bundles_compare_by_their_certificates() {
        let ca = || certs::generate(&["localhost".to_owned()], 1, SystemTime::now()).unwrap().ca;
        let (a, b) = (ca(), ca());
        let both = TrustBundle::parse(&format!("{a}{b}")).unwrap();
        assert!(both.has_same_certs(format!("# b\n{b}\n# a\n{a}").as_bytes()));
        assert!(!both.has_same_certs(a.as_bytes()) && !both.is_subset_of(a.as_bytes()) && !both.has_same_certs(b""));
        let one = TrustBundle::parse(&a).unwrap();
        assert!(one.is_subset_of(both.pem().as_bytes()) && !one.has_same_certs(both.pem().as_bytes()));
        assert_eq!(both, TrustBundle::parse(&format!("{b}{a}")).unwrap());
    }

    #[test]
    fn text_without_certificate_is_rejected() {
        for pem in ["", "text"] {
            assert!(TrustBundle::parse(pem).unwrap_err().contains("no PEM block"));
        }
    }
}
