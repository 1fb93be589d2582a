//! Whether a client that trusts a bundle takes what is served: as the API server checks it.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::server::tls;

/// Certificates of a PEM text, and whether there was anything else in it. Go's reader, which is the API server's, leaves out what it
/// cannot read.
pub fn certificates(pem: &[u8]) -> (Vec<CertificateDer<'static>>, bool) {
    let mut clean = true;
    let mut all = Vec::new();
    for section in CertificateDer::pem_slice_iter(pem) {
        match section {
            Ok(cert) if tls::validity(&cert).is_ok() => all.push(cert),
            _ => clean = false,
        }
    }
    (all, clean)
}

/// Whether whoever trusts `bundle` takes the chain for a server called `host` at `now`.
///
/// # Errors
/// Why not.
pub fn verify(
    bundle: &[CertificateDer<'static>],
    chain: &[CertificateDer<'static>],
    host: &str,
    now: SystemTime,
) -> Result<(), String> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Err("nothing is served".to_owned()) };
    let Ok(name) = ServerName::try_from(host) else { return Err(format!("{host:?} is no name of a server")) };
    // An expired root is no root: Go looks at its time too, and the library here does not.
    let valid = |cert: &&CertificateDer<'_>| tls::validity(cert).is_ok_and(|validity| validity.contains(now));
    let mut roots = RootCertStore::empty();
    for cert in bundle.iter().filter(valid) {
        // One that is no root leaves the others as they are.
        let _ = roots.add(cert.clone());
    }
    if roots.is_empty() {
        return Err(if bundle.is_empty() {
            "it holds no certificate".to_owned()
        } else {
            "none of its certificates is a valid root now".to_owned()
        });
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(tls::provider()))
        .build()
        .map_err(|error| error.to_string())?;
    match verifier.verify_server_cert(leaf, intermediates, &name, &[], UnixTime::since_unix_epoch(now)) {
        Ok(_) => Ok(()),
        // One certificate that is its own root: Go takes it, and people do that.
        Err(_) if bundle.contains(leaf) && is_named(leaf, &name) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn is_named(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    rustls::server::ParsedCertificate::try_from(leaf)
        .is_ok_and(|cert| rustls::client::verify_server_name(&cert, name).is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::certs::{self, Bundle};
    use crate::server::tls::ServerCert;

    const HOST: &str = "weir-webhook.weir-system.svc";

    fn made(now: SystemTime) -> (Bundle, ServerCert) {
        let made = certs::make(&[HOST.to_owned()], 1, now).unwrap();
        let cert = ServerCert::from_pem(made.cert.as_bytes(), made.key.as_bytes(), now).unwrap();
        (made, cert)
    }

    fn roots(pem: &str) -> Vec<CertificateDer<'static>> {
        certificates(pem.as_bytes()).0
    }

    #[test]
    fn takes_a_leaf_of_any_ca_of_the_bundle() {
        let now = SystemTime::now();
        let ((one, cert), (other, _)) = (made(now), made(now));
        for bundle in [one.ca.clone(), format!("{}{}", other.ca, one.ca), format!("{}{}", one.ca, other.ca)] {
            assert_eq!(verify(&roots(&bundle), cert.chain(), HOST, now), Ok(()));
        }
    }

    #[test]
    fn says_why_it_does_not() {
        let now = SystemTime::now();
        let ((one, cert), (other, _)) = (made(now), made(now));
        let late = now + Duration::from_hours(48);
        for (bundle, host, at, expected) in [
            ("", HOST, now, "holds no certificate"),
            (other.ca.as_str(), HOST, now, "invalid peer certificate"),
            (one.ca.as_str(), "other.weir-system.svc", now, "not valid for name"),
            (one.ca.as_str(), HOST, late, "none of its certificates is a valid root"),
            (one.ca.as_str(), "no name", now, "no name of a server"),
        ] {
            let refused = verify(&roots(bundle), cert.chain(), host, at).unwrap_err();
            assert!(refused.contains(expected), "{refused:?} should contain {expected:?}");
        }
    }

    #[test]
    fn takes_a_certificate_that_is_its_own_root() {
        let now = SystemTime::now();
        let own = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let cert =
            ServerCert::from_pem(own.cert.pem().as_bytes(), own.signing_key.serialize_pem().as_bytes(), now).unwrap();
        assert_eq!(verify(&roots(&own.cert.pem()), cert.chain(), HOST, now), Ok(()));
        assert!(verify(&roots(&own.cert.pem()), cert.chain(), "other.svc", now).is_err());
    }

    #[test]
    fn reads_a_bundle_as_the_api_server_does() {
        let (one, _) = made(SystemTime::now());
        let (all, clean) = certificates(one.ca.as_bytes());
        assert_eq!((all.len(), clean), (1, true));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let (all, clean) = certificates(format!("{broken}{}", one.ca).as_bytes());
        assert_eq!((all.len(), clean), (1, false));
        assert_eq!(certificates(b"Cg=="), (Vec::new(), true));
    }
}
