//! Verifies the serving certificate against a bundle, as the API server does.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{crypto, tls};

/// Parses the certificates of a PEM text; also returns whether every block was one. Go's parser, which the API server uses, skips what
/// it cannot parse.
pub(super) fn parse_certificates(pem: &[u8]) -> (Vec<CertificateDer<'static>>, bool) {
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

/// Verifies the chain of the server `host` at `now`, with `bundle` as roots.
///
/// # Errors
/// The reason for which a client would reject the chain.
pub(super) fn verify(
    bundle: &[CertificateDer<'static>],
    chain: &[CertificateDer<'static>],
    host: &str,
    now: SystemTime,
) -> Result<(), String> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Err("no certificate is served".to_owned()) };
    let Ok(name) = ServerName::try_from(host) else { return Err(format!("{host:?} is not a valid server name")) };
    // Go checks the validity of roots; the library here does not.
    let valid = |cert: &&CertificateDer<'_>| tls::validity(cert).is_ok_and(|validity| validity.contains(now));
    let mut roots = RootCertStore::empty();
    for cert in bundle.iter().filter(valid) {
        // A certificate that cannot be a root does not affect the others.
        let _ = roots.add(cert.clone());
    }
    if roots.is_empty() {
        return Err(if bundle.is_empty() {
            "it holds no certificate".to_owned()
        } else {
            "none of its certificates is a valid root".to_owned()
        });
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(crypto::provider()))
        .build()
        .map_err(|error| error.to_string())?;
    match verifier.verify_server_cert(leaf, intermediates, &name, &[], UnixTime::since_unix_epoch(now)) {
        Ok(_) => Ok(()),
        // A self-signed leaf as its own root: Go accepts it, and people use it.
        Err(_) if bundle.contains(leaf) && has_name(leaf, &name) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn has_name(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    rustls::server::ParsedCertificate::try_from(leaf)
        .is_ok_and(|cert| rustls::client::verify_server_name(&cert, name).is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certs::{self, GeneratedCerts};
    use crate::tls::ServerCert;

    const HOST: &str = "weir-webhook.weir-system.svc";

    fn generate(now: SystemTime) -> (GeneratedCerts, ServerCert) {
        let generated = certs::generate(&[HOST.to_owned()], 1, now).unwrap();
        let cert = ServerCert::from_pem(generated.cert.as_bytes(), generated.key.as_bytes(), now).unwrap();
        (generated, cert)
    }

    fn roots(pem: &str) -> Vec<CertificateDer<'static>> {
        parse_certificates(pem.as_bytes()).0
    }

    #[test]
    fn leaf_of_any_ca_of_the_bundle_is_accepted() {
        let now = SystemTime::now();
        let ((one, cert), (other, _)) = (generate(now), generate(now));
        for bundle in [one.ca.clone(), format!("{}{}", other.ca, one.ca), format!("{}{}", one.ca, other.ca)] {
            assert_eq!(verify(&roots(&bundle), cert.chain(), HOST, now), Ok(()));
        }
    }

    #[test]
    fn rejected_chain_names_the_reason() {
        let now = SystemTime::now();
        let ((one, cert), (other, _)) = (generate(now), generate(now));
        let late = now + Duration::from_hours(48);
        for (bundle, host, at, expected) in [
            ("", HOST, now, "holds no certificate"),
            (other.ca.as_str(), HOST, now, "invalid peer certificate"),
            (one.ca.as_str(), "other.weir-system.svc", now, "not valid for name"),
            (one.ca.as_str(), HOST, late, "none of its certificates is a valid root"),
            (one.ca.as_str(), "no name", now, "not a valid server name"),
        ] {
            let error = verify(&roots(bundle), cert.chain(), host, at).unwrap_err();
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        }
    }

    #[test]
    fn self_signed_leaf_is_its_own_root() {
        let now = SystemTime::now();
        let own = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let cert =
            ServerCert::from_pem(own.cert.pem().as_bytes(), own.signing_key.serialize_pem().as_bytes(), now).unwrap();
        assert_eq!(verify(&roots(&own.cert.pem()), cert.chain(), HOST, now), Ok(()));
        assert!(verify(&roots(&own.cert.pem()), cert.chain(), "other.svc", now).is_err());
    }

    #[test]
    fn broken_blocks_of_a_bundle_are_skipped() {
        let (one, _) = generate(SystemTime::now());
        let (all, clean) = parse_certificates(one.ca.as_bytes());
        assert_eq!((all.len(), clean), (1, true));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let (all, clean) = parse_certificates(format!("{broken}{}", one.ca).as_bytes());
        assert_eq!((all.len(), clean), (1, false));
        assert_eq!(parse_certificates(b"Cg=="), (Vec::new(), true));
    }
}
