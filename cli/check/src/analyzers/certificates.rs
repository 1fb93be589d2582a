//! The caBundle of webhook entries, and the certificates that the webhook serves.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::view::{ClusterView, InstalledRevision};
use crate::fault;
use crate::finding::{FindingObject, Findings, first_names};
use crate::snapshot::own::WebhookSecret;

/// Remaining lifetime, in seconds, below which a certificate should have been renewed: cert-manager renews with a third of 90 days left.
const EXPIRING_SECONDS: i64 = 7 * 24 * 3600;
/// A certificate of the built-in CA is renewed with a third of its lifetime left; this fraction of it is late.
const LATE_FRACTION: i64 = 6;
/// Lifetime of a certificate of the built-in CA, in seconds, if no flag sets it.
const LEAF_LIFETIME: i64 = 24 * 3600;

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    for installed in &view.revisions {
        let bundles = check_bundles(installed, findings);
        let served = served_chain(view, installed);
        if let Some(bundle) = bundles.first() {
            check_trust(view, installed, bundle, served.as_deref(), findings);
        }
        check_built_in_ca(view, installed, &bundles, findings);
        check_expiry(view, installed, served.as_deref(), findings);
        if installed.deployment.is_some() && installed.flags.get("client-ca-file").is_none() {
            let text = "weir-webhook has no --client-ca-file";
            findings.add(
                &fault::CLIENTS_NOT_VERIFIED,
                installed.deployment_object(&view.snapshot.install_namespaces.webhook),
                text,
            );
        }
    }
}

/// Certificates in DER.
type Bundle = Vec<Vec<u8>>;

/// Returns the valid bundles of all entries, and adds findings about the others.
fn check_bundles(installed: &InstalledRevision<'_>, findings: &mut Findings) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    for configuration in installed.configurations() {
        let object = configuration.object();
        for entry in &configuration.webhooks {
            let (name, client) = (&entry.name, &entry.client_config);
            if client.ca_bundle.is_empty() {
                // The certificate of a URL may be signed by a CA that the API server's machine trusts.
                if client.url.is_none() {
                    findings.add(&fault::CA_BUNDLE_EMPTY, object.clone(), format!("entry {name} has no caBundle"));
                }
                continue;
            }
            let bundle = STANDARD.decode(&client.ca_bundle).map(|pem| certificates(&pem)).unwrap_or_default();
            if bundle.is_empty() {
                let text = format!("the caBundle of entry {name} is not a PEM certificate");
                findings.add(&fault::CA_BUNDLE_INVALID, object.clone(), text);
            } else {
                bundles.push(bundle);
            }
        }
    }
    if bundles.windows(2).any(|pair| pair[0] != pair[1]) {
        let text = "its entries and those of its tags have different caBundles";
        findings.add(&fault::CA_BUNDLE_DIFFERS, installed.configuration_object(), text);
    }
    bundles
}

/// Returns the X.509 certificates of a PEM text.
fn certificates(pem: &[u8]) -> Bundle {
    let blocks = Pem::iter_from_buffer(pem).filter_map(Result::ok).filter(|block| block.label == "CERTIFICATE");
    let mut all: Bundle =
        blocks.map(|block| block.contents).filter(|der| X509Certificate::from_der(der).is_ok()).collect();
    all.dedup();
    all
}

/// Returns the chain that the webhook serves, leaf first, if it is in a mounted Secret.
fn served_chain(view: &ClusterView<'_>, installed: &InstalledRevision<'_>) -> Option<Bundle> {
    let volumes = &installed.deployment?.spec.template.spec.volumes;
    let is_mounted = |secret: &&WebhookSecret| {
        let mut names = volumes.iter().filter_map(|volume| Some(&volume.secret.as_ref()?.secret_name));
        names.any(|name| *name == secret.metadata.name)
    };
    view.snapshot.secrets.iter().flatten().filter(is_mounted).find_map(|secret| {
        let chain = certificates(secret.data.served_chain.as_ref()?);
        (!chain.is_empty()).then_some(chain)
    })
}

fn check_trust(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    bundle: &Bundle,
    served: Option<&[Vec<u8>]>,
    findings: &mut Findings,
) {
    let now = view.snapshot.now;
    let cas: Vec<X509Certificate<'_>> = bundle.iter().filter_map(|der| parse(der)).collect();
    let expiry = cas.iter().map(|ca| ca.validity().not_after.timestamp()).max().unwrap_or_default();
    if expiry < now {
        let text = format!("every CA in its caBundle has expired, the last one {} ago", duration_text(now - expiry));
        findings.add(&fault::CA_EXPIRED, installed.configuration_object(), text);
        return;
    }
    let chain: Vec<X509Certificate<'_>> = served.iter().copied().flatten().filter_map(|der| parse(der)).collect();
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    if !is_verified(&cas, leaf, intermediates) {
        let text = format!(
            "its caBundle ({}) does not verify the certificate in the webhook's Secret, which was issued by {}",
            cas.iter().map(|ca| ca.subject().to_string()).collect::<Vec<_>>().join("; "),
            leaf.issuer()
        );
        findings.add(&fault::CA_BUNDLE_STALE, installed.configuration_object(), text);
    }
    let wanted = format!("{}.{}.svc", installed.deployment_name(), view.snapshot.install_namespaces.webhook);
    let names = dns_names(leaf);
    if !names.iter().any(|name| matches_name(name, &wanted)) {
        let text = format!("the API server calls {wanted}; the certificate is for {}", first_names(&names));
        findings.add(&fault::CERTIFICATE_NAME, installed.configuration_object(), text);
    }
}

/// Checks that every bundle has the CA that signs: a replica that starts issues its certificate from it.
fn check_built_in_ca(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    bundles: &[Bundle],
    findings: &mut Findings,
) {
    let Some(name) = installed.flags.get("ca-secret") else { return };
    let secret = view.snapshot.secrets.iter().flatten().find(|secret| secret.metadata.name == name);
    let signing = secret.and_then(|secret| secret.data.signing_ca.as_deref()).map(certificates).unwrap_or_default();
    if let Some(ca) = signing.first()
        && bundles.iter().any(|bundle| !bundle.contains(ca))
        && !findings.has(&fault::CA_EXPIRED)
    {
        let text = format!("a caBundle lacks the signing CA of Secret {name}");
        findings.add(&fault::CA_BUNDLE_STALE, installed.configuration_object(), text);
    }
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// Returns whether a chain leads from a leaf to one of the CAs.
fn is_verified(cas: &[X509Certificate<'_>], leaf: &X509Certificate<'_>, intermediates: &[X509Certificate<'_>]) -> bool {
    let is_issuer = |issuer: &X509Certificate<'_>, subject: &X509Certificate<'_>| {
        issuer.subject() == subject.issuer() && subject.verify_signature(Some(issuer.public_key())).is_ok()
    };
    let mut at = leaf;
    // The number of steps is limited, because intermediates may form a cycle.
    for _ in 0..=intermediates.len() {
        if cas.iter().any(|ca| is_issuer(ca, at) || ca.as_raw() == at.as_raw()) {
            return true;
        }
        match intermediates.iter().find(|next| is_issuer(next, at)) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

fn dns_names<'a>(leaf: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let found = leaf.subject_alternative_name().ok().flatten();
    let names = found.into_iter().flat_map(|extension| extension.value.general_names.iter());
    names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None }).collect()
}

/// Returns whether a name of a certificate, which may begin with `*.`, matches.
fn matches_name(name: &str, wanted: &str) -> bool {
    let rest = name.strip_prefix("*.").zip(wanted.split_once('.'));
    name.eq_ignore_ascii_case(wanted) || rest.is_some_and(|(domain, (_, rest))| domain.eq_ignore_ascii_case(rest))
}

/// Checks when certificates expire: by the metrics of the replicas, else by the Secret.
fn check_expiry(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    served: Option<&[Vec<u8>]>,
    findings: &mut Findings,
) {
    let Some(deployment) = installed.deployment else { return };
    let limit = if installed.flags.get("ca-secret").is_some() {
        let lifetime = installed.flags.get("leaf-lifetime").and_then(|text| humantime::parse_duration(text).ok());
        let seconds = lifetime.and_then(|lifetime| i64::try_from(lifetime.as_secs()).ok());
        seconds.unwrap_or(LEAF_LIFETIME) / LATE_FRACTION
    } else {
        EXPIRING_SECONDS
    };
    let reported = view.webhook_pods(deployment).into_iter().filter_map(|pod| {
        let metrics = view.snapshot.reports.get(&pod.metadata.name)?.metrics.as_ref()?;
        Some((pod.metadata.object("Pod"), metrics.certificate_expiry?))
    });
    let mut expiries: Vec<(FindingObject, i64)> = reported.collect();
    if expiries.is_empty()
        && let Some(leaf) = served.and_then(|chain| parse(chain.first()?))
    {
        expiries.push((installed.configuration_object(), leaf.validity().not_after.timestamp()));
    }
    for (object, expiry) in expiries {
        let left = expiry - view.snapshot.now;
        if left <= 0 {
            let text = format!("its certificate expired {} ago", duration_text(-left));
            findings.add(&fault::CERTIFICATE_EXPIRED, object, text);
        } else if left < limit {
            let text = format!("its certificate expires in {}", duration_text(left));
            findings.add(&fault::CERTIFICATE_EXPIRING, object, text);
        }
    }
}

fn duration_text(seconds: i64) -> String {
    match seconds {
        ..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
