//! A CA: its certificate and key as stored in a Secret, and the certificates it issues.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certs::{self, CertsError, Validity};
use crate::tls::{self, ServerCert};

/// The certificate of a CA.
#[derive(Clone)]
pub struct CaCert(Arc<Parsed>);

struct Parsed {
    pem: String,
    der: CertificateDer<'static>,
    validity: Validity,
}

/// A CA with its key. Two are equal if their certificates are.
#[derive(Clone)]
pub struct Ca {
    cert: CaCert,
    key: Arc<str>,
}

impl PartialEq for CaCert {
    fn eq(&self, other: &Self) -> bool {
        self.0.der == other.0.der
    }
}

impl Eq for CaCert {}

impl PartialEq for Ca {
    fn eq(&self, other: &Self) -> bool {
        self.cert == other.cert
    }
}

impl Eq for Ca {}

impl fmt::Debug for CaCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaCert").field("validity", &self.0.validity).finish_non_exhaustive()
    }
}

/// Leaves out the key.
impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ca").field(&self.cert).finish()
    }
}

impl CaCert {
    /// Parses a PEM text that holds one certificate.
    ///
    /// # Errors
    /// It does not hold exactly one X.509 certificate of a CA.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("not PEM: {error}"))?;
        let [der] =
            <[_; 1]>::try_from(all).map_err(|all| format!("holds {} certificates instead of one", all.len()))?;
        let validity = tls::validity(&der).map_err(|error| error.to_string())?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if !parsed.is_ca() {
            return Err("not the certificate of a CA".to_owned());
        }
        let pem = format!("{}\n", pem.trim());
        Ok(Self(Arc::new(Parsed { pem, der, validity })))
    }

    /// Returns the certificate as PEM.
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    /// Returns the certificate as DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// Returns when it is valid.
    pub fn validity(&self) -> Validity {
        self.0.validity
    }
}

impl Ca {
    /// Generates a CA that is valid for `life`.
    ///
    /// # Errors
    /// A failing random source.
    pub fn generate(now: SystemTime, life: Duration) -> Result<Self, CertsError> {
        // The name differs for each, to tell them apart in a bundle.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ca = certs::new_ca(&format!("Weir webhook CA {seconds}"), Validity::starting(now, life))?;
        let der = ca.der().clone();
        let validity = tls::validity(&der).unwrap_or(Validity::starting(now, life));
        let cert = CaCert(Arc::new(Parsed { pem: ca.pem(), der, validity }));
        Ok(Self { cert, key: ca.key().serialize_pem().into() })
    }

    /// Parses a certificate and its key, both PEM.
    ///
    /// # Errors
    /// The reason that keeps them from signing.
    pub fn parse(cert: &str, key: &str) -> Result<Self, String> {
        let cert = CaCert::parse(cert).map_err(|reason| format!("unusable certificate: {reason}"))?;
        let pair = KeyPair::from_pem(key).map_err(|_| "the key is not a private key in PEM (PKCS #8)".to_owned())?;
        let (_, parsed) = X509Certificate::from_der(cert.der()).map_err(|error| error.to_string())?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err("the private key does not match the certificate".to_owned());
        }
        Ok(Self { cert, key: key.into() })
    }

    /// Returns the certificate.
    pub fn cert(&self) -> &CaCert {
        &self.cert
    }

    /// Returns the key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Issues a serving certificate for `names`, valid for `life` from `now` on, within the CA's own validity.
    ///
    /// # Errors
    /// An invalid name, a failing random source, or a CA that is not valid now.
    pub fn sign(&self, names: &[String], now: SystemTime, life: Duration) -> Result<ServerCert, String> {
        let signed = || -> Result<_, CertsError> {
            let issuer = Issuer::from_ca_cert_der(self.cert.der(), KeyPair::from_pem(&self.key)?)?;
            certs::new_leaf(names, Validity::starting(now, life).within(self.cert.validity()), &issuer)
        };
        let (cert, key) = signed().map_err(|error| error.to_string())?;
        ServerCert::from_pem(cert.as_bytes(), key.as_bytes(), now).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn stored_ca_signs_within_its_own_validity() {
        let now = SystemTime::now();
        let ca = Ca::generate(now, DAY).unwrap();
        let read = Ca::parse(ca.cert().pem(), ca.key()).unwrap();
        assert_eq!(read, ca);
        assert_eq!(read.cert().validity(), ca.cert().validity());
        let leaf = read.sign(&["web.ns.svc".to_owned()], now, 10 * DAY).unwrap();
        assert_eq!(leaf.validity(), read.cert().validity(), "as long as the CA, and no longer");
        assert!(!format!("{ca:?}").contains("PRIVATE"));
    }

    #[test]
    fn unusable_ca_is_rejected_with_the_reason() {
        let now = SystemTime::now();
        let (one, other) = (Ca::generate(now, DAY).unwrap(), Ca::generate(now, DAY).unwrap());
        let leaf = certs::generate(&["localhost".to_owned()], 1, now).unwrap();
        let two = format!("{}{}", one.cert().pem(), other.cert().pem());
        for (cert, key, expected) in [
            (one.cert().pem(), other.key(), "does not match"),
            (one.cert().pem(), "", "not a private key"),
            ("", one.key(), "0 certificates"),
            (two.as_str(), one.key(), "2 certificates"),
            (&leaf.cert, &leaf.key, "not the certificate of a CA"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", one.key(), "not X.509"),
        ] {
            let error = Ca::parse(cert, key).unwrap_err();
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        }
    }
}
