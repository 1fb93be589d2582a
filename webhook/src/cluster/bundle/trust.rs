//! What clients of the webhook are to trust.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::verify::certificates;

/// A bundle. Two are equal when they hold the same certificates, in whatever order and with whatever text between them.
#[derive(Clone)]
pub struct Trust {
    pem: String,
    certs: BTreeSet<Vec<u8>>,
}

/// Reads what is to be trusted at its source, just before it is written somewhere.
pub type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Arc<Trust>, String>> + Send>> + Send + Sync>;

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.certs == other.certs
    }
}

impl Eq for Trust {}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("certificates", &self.certs.len()).finish_non_exhaustive()
    }
}

fn set(certs: Vec<CertificateDer<'static>>) -> BTreeSet<Vec<u8>> {
    certs.into_iter().map(|cert| cert.as_ref().to_vec()).collect()
}

impl Trust {
    /// Reads a bundle.
    ///
    /// # Errors
    /// No certificate in it, or something that is none.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let (certs, clean) = certificates(pem.as_bytes());
        if certs.is_empty() {
            return Err("it holds no certificate (BEGIN CERTIFICATE)".to_owned());
        }
        if !clean {
            return Err("it holds something that is no certificate".to_owned());
        }
        Ok(Self { pem: pem.to_owned(), certs: set(certs) })
    }

    /// As PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether `bundle` is the same: these certificates and nothing else.
    pub fn is(&self, bundle: &[u8]) -> bool {
        let (certs, clean) = certificates(bundle);
        clean && set(certs) == self.certs
    }

    /// Whether `bundle` trusts all of it, and perhaps more.
    pub fn is_in(&self, bundle: &[u8]) -> bool {
        self.certs.is_subset(&set(certificates(bundle).0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::server::certs;

    #[test]
    fn compares_certificates_and_not_texts() {
        let ca = || certs::make(&["localhost".to_owned()], 1, SystemTime::now()).unwrap().ca;
        let (a, b) = (ca(), ca());
        let both = Trust::parse(&format!("{a}{b}")).unwrap();
        assert!(both.is(format!("# b\n{b}\n# a\n{a}").as_bytes()));
        assert!(!both.is(a.as_bytes()) && !both.is_in(a.as_bytes()) && !both.is(b""));
        let one = Trust::parse(&a).unwrap();
        assert!(one.is_in(both.pem().as_bytes()) && !one.is(both.pem().as_bytes()));
        assert_eq!(both, Trust::parse(&format!("{b}{a}")).unwrap());
    }

    #[test]
    fn refuses_what_is_no_bundle() {
        for (pem, expected) in [("", "no certificate"), ("text", "no certificate")] {
            assert!(Trust::parse(pem).unwrap_err().contains(expected));
        }
    }
}
