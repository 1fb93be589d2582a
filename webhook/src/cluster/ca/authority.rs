//! One CA: what is told of it in a Secret, checked, and the leaves it signs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::server::certs::{self, CertsError, Validity};
use crate::server::tls::{self, ServerCert};

/// The certificate of a CA. Two are equal when they are the same certificate.
#[derive(Clone)]
pub struct CaCert(Arc<Parsed>);

struct Parsed {
    pem: String,
    der: CertificateDer<'static>,
    validity: Validity,
}

/// A CA that can sign. Two are equal when their certificates are.
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

/// Never the key, not even in a debug log.
impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ca").field(&self.cert).finish()
    }
}

impl CaCert {
    /// Reads the one certificate of a PEM text.
    ///
    /// # Errors
    /// None, several, no X.509, or the certificate of no CA, in words.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("it is not PEM: {error}"))?;
        let [der] =
            <[_; 1]>::try_from(all).map_err(|all| format!("it holds {} certificates instead of one", all.len()))?;
        let validity = tls::validity(&der).map_err(|error| error.to_string())?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if !parsed.is_ca() {
            return Err("it is not the certificate of a CA".to_owned());
        }
        let pem = format!("{}\n", pem.trim());
        Ok(Self(Arc::new(Parsed { pem, der, validity })))
    }

    /// As PEM.
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    /// As DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// From when until when it is valid.
    pub fn validity(&self) -> Validity {
        self.0.validity
    }
}

impl Ca {
    /// Makes a new one.
    ///
    /// # Errors
    /// A failing random source.
    pub fn make(now: SystemTime, life: Duration) -> Result<Self, CertsError> {
        // A name of its own for each: whoever looks into a bundle can tell them apart.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let made = certs::new_ca(&format!("Weir webhook CA {seconds}"), Validity::starting(now, life))?;
        let der = made.der().clone();
        let validity = tls::validity(&der).unwrap_or(Validity::starting(now, life));
        let cert = CaCert(Arc::new(Parsed { pem: made.pem(), der, validity }));
        Ok(Self { cert, key: made.key().serialize_pem().into() })
    }

    /// Reads a certificate and its key, both PEM.
    ///
    /// # Errors
    /// Whatever keeps them from signing, in words.
    pub fn parse(cert: &str, key: &str) -> Result<Self, String> {
        let cert = CaCert::parse(cert).map_err(|reason| format!("the certificate cannot be used: {reason}"))?;
        let pair = KeyPair::from_pem(key).map_err(|_| "the key is not a private key in PEM (PKCS #8)".to_owned())?;
        let (_, parsed) = X509Certificate::from_der(cert.der()).map_err(|error| error.to_string())?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err("the key does not belong to the certificate".to_owned());
        }
        Ok(Self { cert, key: key.into() })
    }

    /// Its certificate.
    pub fn cert(&self) -> &CaCert {
        &self.cert
    }

    /// Its key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Signs a server certificate for `names`, valid for `life` from `now` on, but never outside of the CA's own time.
    ///
    /// # Errors
    /// A name that is none, a failing random source, or a CA that is not valid now, in words.
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
    fn reads_what_it_made_and_signs_within_its_own_time() {
        let now = SystemTime::now();
        let made = Ca::make(now, DAY).unwrap();
        let read = Ca::parse(made.cert().pem(), made.key()).unwrap();
        assert_eq!(read, made);
        assert_eq!(read.cert().validity(), made.cert().validity());
        let leaf = read.sign(&["web.ns.svc".to_owned()], now, 10 * DAY).unwrap();
        assert_eq!(leaf.validity(), read.cert().validity(), "as long as the CA, and no longer");
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn refuses_what_cannot_sign_saying_why() {
        let now = SystemTime::now();
        let (one, other) = (Ca::make(now, DAY).unwrap(), Ca::make(now, DAY).unwrap());
        let leaf = certs::make(&["localhost".to_owned()], 1, now).unwrap();
        let two = format!("{}{}", one.cert().pem(), other.cert().pem());
        for (cert, key, expected) in [
            (one.cert().pem(), other.key(), "does not belong"),
            (one.cert().pem(), "", "not a private key"),
            ("", one.key(), "0 certificates"),
            (two.as_str(), one.key(), "2 certificates"),
            (&leaf.cert, &leaf.key, "not the certificate of a CA"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", one.key(), "not X.509"),
        ] {
            let refused = Ca::parse(cert, key).unwrap_err();
            assert!(refused.contains(expected), "{refused:?} should contain {expected:?}");
        }
    }
}
