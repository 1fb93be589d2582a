//! Generates a CA and a serving certificate, for installations without another source of certificates.
//!
//! The CA's key is discarded once the leaf is signed, so that nobody can issue another certificate that the API server would trust. A
//! new leaf therefore means a new CA, and a rollover puts both CAs into the `caBundle` for a while (`manifests/README.md`).

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SigningKey,
};

/// File names, as in a Secret of type `kubernetes.io/tls`.
pub const CERT_FILE: &str = "tls.crt";
/// See [`CERT_FILE`].
pub const KEY_FILE: &str = "tls.key";
/// See [`CERT_FILE`].
pub const CA_FILE: &str = "ca.crt";

/// Certificates are valid from a little before they are issued, because clocks of a cluster differ.
const BACKDATE: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// A serving certificate with its key and its CA, in PEM.
pub struct GeneratedCerts {
    /// CA certificate, for `caBundle`.
    pub ca: String,
    /// Serving certificate.
    pub cert: String,
    /// Private key of the serving certificate, PKCS #8.
    pub key: String,
}

/// Leaves out the key.
impl fmt::Debug for GeneratedCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeneratedCerts").field("ca", &self.ca).field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// Error of generating or writing certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A name that is not valid in a certificate.
    #[error("cannot generate a certificate for {names}: {reason}")]
    Names {
        /// All requested names.
        names: String,
        /// What is wrong.
        reason: String,
    },
    /// The crypto library failed.
    #[error("cannot generate a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
    /// Files exist, and `--force` is not given.
    #[error("{} already; pass --force to replace", list(.0))]
    Exists(Vec<PathBuf>),
    /// A file cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        reason: io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "exists" } else { "exist" })
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// First moment at which it is no longer valid.
    pub not_after: SystemTime,
}

impl fmt::Debug for Validity {
    /// Writes both times as in RFC 3339, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds;
        write!(f, "{} to {}", time(self.not_before), time(self.not_after))
    }
}

impl Validity {
    /// Returns `life` from `now` on, and a little before: at most an hour, and at most a quarter of `life`.
    pub fn starting(now: SystemTime, life: Duration) -> Self {
        let backdate = BACKDATE.min(life / 4);
        Self { not_before: now.checked_sub(backdate).unwrap_or(UNIX_EPOCH), not_after: now + life }
    }

    /// Returns the intersection with another validity.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self { not_before: self.not_before.max(other.not_before), not_after: self.not_after.min(other.not_after) }
    }

    /// Whether `now` is within it.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    fn set(self, params: &mut CertificateParams) {
        let date =
            |time: SystemTime| rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(UNIX_EPOCH).unwrap_or_default();
        (params.not_before, params.not_after) = (date(self.not_before), date(self.not_after));
    }
}

/// Creates a CA.
///
/// # Errors
/// A failing random source.
pub fn new_ca(name: &str, validity: Validity) -> Result<CertifiedIssuer<'static, KeyPair>, CertsError> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, name);
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity.set(&mut ca);
    Ok(CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?)
}

/// Issues a serving certificate; returns it with its key, both PEM.
///
/// # Errors
/// An invalid name, or a failing random source.
pub fn new_leaf(
    names: &[String],
    validity: Validity,
    ca: &Issuer<'_, impl SigningKey>,
) -> Result<(String, String), CertsError> {
    let mut leaf = CertificateParams::new(check_names(names)?)
        .map_err(|error| CertsError::Names { names: names.join(", "), reason: error.to_string() })?;
    leaf.distinguished_name.push(DnType::CommonName, "weir-webhook");
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    validity.set(&mut leaf);
    let key = KeyPair::generate()?;
    let cert = leaf.signed_by(&key, ca)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// Generates a CA and a leaf for `names` (DNS names or IP addresses), both valid for `days` from `now`.
///
/// # Errors
/// An invalid name, or a failing random source.
pub fn generate(names: &[String], days: u16, now: SystemTime) -> Result<GeneratedCerts, CertsError> {
    let validity = Validity::starting(now, DAY * u32::from(days));
    let ca = new_ca("Weir webhook CA", validity)?;
    let (cert, key) = new_leaf(names, validity, &ca)?;
    Ok(GeneratedCerts { ca: ca.pem(), cert, key })
}

/// Rejects names that no client would match; the crypto library accepts any ASCII text.
pub(crate) fn check_names(names: &[String]) -> Result<Vec<String>, CertsError> {
    let bad: Vec<_> =
        names.iter().filter(|name| rustls_pki_types::ServerName::try_from(name.as_str()).is_err()).collect();
    if bad.is_empty() && !names.is_empty() {
        return Ok(names.to_vec());
    }
    let reason = if names.is_empty() {
        "no name given".to_owned()
    } else {
        let bad: Vec<_> = bad.iter().map(|name| format!("{name:?}")).collect();
        format!("{} is neither a DNS name nor an IP address", bad.join(", "))
    };
    Err(CertsError::Names { names: names.join(", "), reason })
}

impl GeneratedCerts {
    /// Writes `ca.crt`, `tls.crt` and `tls.key` (mode 0600) into a directory, each one atomically.
    ///
    /// # Errors
    /// A file exists, unless `force`; a file cannot be written.
    pub fn write(&self, dir: &Path, force: bool) -> Result<[PathBuf; 3], CertsError> {
        let files = [CA_FILE, CERT_FILE, KEY_FILE].map(|name| dir.join(name));
        let existing: Vec<_> = files.iter().filter(|path| path.symlink_metadata().is_ok()).cloned().collect();
        if !force && !existing.is_empty() {
            return Err(CertsError::Exists(existing));
        }
        fs::create_dir_all(dir).map_err(|reason| CertsError::Write { path: dir.to_owned(), reason })?;
        let [ca, cert, key] = &files;
        write_file(ca, &self.ca, 0o644, force)?;
        write_file(cert, &self.cert, 0o644, force)?;
        write_file(key, &self.key, 0o600, force)?;
        Ok(files)
    }
}

/// Writes a file atomically.
///
/// # Errors
/// The file exists, unless `replace`; it cannot be written.
pub fn write_file(path: &Path, text: &str, mode: u32, replace: bool) -> Result<(), CertsError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A hard link, unlike a rename, fails if the name is taken: concurrent runs cannot overwrite each other.
        if replace { fs::rename(&temporary, path) } else { fs::hard_link(&temporary, path) }
    })();
    if !replace || written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(|reason| match reason.kind() {
        io::ErrorKind::AlreadyExists => CertsError::Exists(vec![path.to_owned()]),
        _ => CertsError::Write { path: path.to_owned(), reason },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn certs() -> GeneratedCerts {
        generate(&["localhost".to_owned(), "::1".to_owned()], 1, SystemTime::now()).unwrap()
    }

    #[test]
    fn validity_is_logged_as_times() {
        let validity = Validity { not_before: UNIX_EPOCH, not_after: UNIX_EPOCH + Duration::from_hours(24) };
        assert_eq!(format!("{validity:?}"), "1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z");
    }

    #[test]
    fn key_is_readable_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [ca, cert, key] = certs().write(&dir.path().join("new"), false).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&key), 0o600);
        assert_eq!(mode(&ca) & 0o400, 0o400);
        assert_eq!(mode(&cert) & 0o400, 0o400);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn existing_files_are_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = certs();
        first.write(dir.path(), false).unwrap();
        let error = certs().write(dir.path(), false).unwrap_err().to_string();
        for name in [CA_FILE, CERT_FILE, KEY_FILE, "--force"] {
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(fs::read_to_string(dir.path().join(KEY_FILE)).unwrap(), first.key);
    }

    #[test]
    fn force_replaces_all_three() {
        let dir = tempfile::tempdir().unwrap();
        certs().write(dir.path(), false).unwrap();
        let second = certs();
        second.write(dir.path(), true).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(KEY_FILE)).unwrap(), second.key);
        assert_eq!(fs::read_to_string(dir.path().join(CERT_FILE)).unwrap(), second.cert);
        assert_eq!(fs::read_to_string(dir.path().join(CA_FILE)).unwrap(), second.ca);
    }

    #[test]
    fn invalid_names_are_rejected() {
        let names = ["ok.example".to_owned(), "not a name".to_owned(), "ümlaut".to_owned()];
        let error = generate(&names, 1, SystemTime::now()).unwrap_err().to_string();
        assert!(error.contains("\"not a name\"") && error.contains("\"ümlaut\""), "{error}");
        assert!(generate(&[], 1, SystemTime::now()).is_err());
    }

    #[test]
    fn debug_text_leaves_out_the_key() {
        let text = format!("{:?}", certs());
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}
