//! Authentication of clients by certificate, for `--client-ca-file`.
//!
//! The API server presents one only if its AdmissionConfiguration names a kubeconfig for webhooks. The CA can change while the server
//! runs; sessions are therefore not resumed, so that no client continues on an earlier verification.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::crypto;

/// CAs of clients that may call.
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa").finish_non_exhaustive()
    }
}

impl ClientCa {
    /// Parses the CAs, PEM.
    ///
    /// # Errors
    /// There is no certificate, or one that cannot be a root.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(pem) {
            let cert = cert.map_err(|error| format!("not PEM: {error}"))?;
            roots.add(cert).map_err(|error| format!("a certificate cannot be a root: {error}"))?;
        }
        if roots.is_empty() {
            return Err("no PEM block BEGIN CERTIFICATE found".to_owned());
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(crypto::provider()))
            .build()
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

/// Verifies clients against the current CAs, and against the allowed names.
pub struct ClientVerifier {
    ca: Arc<ArcSwap<ClientCa>>,
    /// Allowed common names or DNS names; empty for all.
    names: Vec<String>,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ClientVerifier {
    /// Accepts clients of `ca`; if `names` is not empty, only those with one of these names.
    pub fn new(ca: Arc<ArcSwap<ClientCa>>, names: Vec<String>) -> Self {
        Self { ca, names }
    }

    fn has_allowed_name(&self, cert: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Ok((_, cert)) = X509Certificate::from_der(cert) else { return false };
        let common = cert.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let alternative = cert.subject_alternative_name().ok().flatten();
        let dns =
            alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            });
        common.chain(dns).any(|name| self.names.iter().any(|allowed| allowed == name))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints are optional, and a borrowed list could not follow a changed CA.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.ca.load().0.verify_client_cert(end_entity, intermediates, now)?;
        if self.has_allowed_name(end_entity) {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ca.load().0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ca.load().0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ca.load().0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs;

    #[test]
    fn text_without_a_ca_is_rejected() {
        let generated = certs::generate(&["localhost".to_owned()], 1, std::time::SystemTime::now()).unwrap();
        for (pem, expected) in [("", "no PEM block"), (generated.key.as_str(), "no PEM block")] {
            let error = ClientCa::from_pem(pem.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(ClientCa::from_pem(generated.ca.as_bytes()).is_ok());
    }

    #[test]
    fn clients_are_named_by_common_name_or_dns_name() {
        let generated = certs::generate(&["api.example.org".to_owned()], 1, std::time::SystemTime::now()).unwrap();
        let cert = CertificateDer::from_pem_slice(generated.cert.as_bytes()).unwrap();
        let ca = Arc::new(ArcSwap::from_pointee(ClientCa::from_pem(generated.ca.as_bytes()).unwrap()));
        let named = |names: &[&str]| {
            ClientVerifier::new(Arc::clone(&ca), names.iter().map(|name| (*name).to_owned()).collect())
                .has_allowed_name(&cert)
        };
        assert!(named(&[]) && named(&["weir-webhook"]) && named(&["x", "api.example.org"]));
        assert!(!named(&["example.org"]) && !named(&[""]));
    }
}
