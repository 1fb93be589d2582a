//! Who may call: the certificate of the client, where one is asked for.
//!
//! The API server shows one only where its AdmissionConfiguration gives it a kubeconfig for webhooks. The CA and the names it is checked
//! against can change while the server runs; so that nobody goes on with what was checked before, sessions are not resumed then.

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

use super::tls;

/// CAs whose clients may call.
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa").finish_non_exhaustive()
    }
}

impl ClientCa {
    /// Reads the CAs, PEM.
    ///
    /// # Errors
    /// No certificate in it, or one that cannot be a root, in words.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(pem) {
            let cert = cert.map_err(|error| format!("it is not PEM: {error}"))?;
            roots.add(cert).map_err(|error| format!("a certificate in it cannot be a root: {error}"))?;
        }
        if roots.is_empty() {
            return Err("no certificate (BEGIN CERTIFICATE) is in it".to_owned());
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(tls::provider()))
            .build()
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

/// The CAs of the moment, and who of their clients may call.
pub struct Clients {
    ca: Arc<ArcSwap<ClientCa>>,
    /// Common names or DNS names; none for all.
    names: Vec<String>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Clients {
    /// Clients of `ca`; of those with one of `names` if there are any.
    pub fn new(ca: Arc<ArcSwap<ClientCa>>, names: Vec<String>) -> Self {
        Self { ca, names }
    }

    fn is_named(&self, cert: &CertificateDer<'_>) -> bool {
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

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints are optional, and these would be the ones of another moment.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.ca.load().0.verify_client_cert(end_entity, intermediates, now)?;
        if self.is_named(end_entity) {
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
    use super::super::certs;
    use super::*;

    #[test]
    fn refuses_what_is_no_ca_saying_why() {
        let made = certs::make(&["localhost".to_owned()], 1, std::time::SystemTime::now()).unwrap();
        for (pem, expected) in [("", "no certificate"), (made.key.as_str(), "no certificate")] {
            let refused = ClientCa::from_pem(pem.as_bytes()).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        assert!(ClientCa::from_pem(made.ca.as_bytes()).is_ok());
    }

    #[test]
    fn knows_clients_by_their_common_name_or_a_dns_name() {
        let made = certs::make(&["api.example.org".to_owned()], 1, std::time::SystemTime::now()).unwrap();
        let cert = CertificateDer::from_pem_slice(made.cert.as_bytes()).unwrap();
        let ca = Arc::new(ArcSwap::from_pointee(ClientCa::from_pem(made.ca.as_bytes()).unwrap()));
        let named = |names: &[&str]| {
            Clients::new(Arc::clone(&ca), names.iter().map(|name| (*name).to_owned()).collect()).is_named(&cert)
        };
        assert!(named(&[]) && named(&["weir-webhook"]) && named(&["x", "api.example.org"]));
        assert!(!named(&["example.org"]) && !named(&[""]));
    }
}
