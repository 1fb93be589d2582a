//! The caBundle of the entries, and the certificates that the webhook serves.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::view::{Installed, View, selected};
use crate::check::fault;
use crate::check::finding::{Findings, Object};

/// With less left than this, in seconds, a certificate should have been renewed: cert-manager leaves a third of 90 days.
const NEAR_END: i64 = 7 * 24 * 3600;
/// A certificate of the built-in CA is renewed with a third of its life left; this part of it is late.
const LATE: i64 = 6;
/// That life, in seconds, where no flag says it.
const LEAF_LIFE: i64 = 24 * 3600;

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for installed in &view.installations {
        let bundles = bundles(installed, findings);
        let served = served(view, installed);
        if let Some(bundle) = bundles.first() {
            trust(view, installed, bundle, served.as_deref(), findings);
        }
        built_in(view, installed, &bundles, findings);
        life(view, installed, served.as_deref(), findings);
    }
}

/// The certificates of a bundle, as DER, in a fixed order.
type Bundle = Vec<Vec<u8>>;

/// The bundles of all entries that have one which can be read; and what is wrong with the others.
fn bundles(installed: &Installed<'_>, findings: &mut Findings) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    for configuration in installed.configurations() {
        let object = Object::of(super::view::CONFIGURATION, configuration);
        for entry in configuration["webhooks"].as_array().into_iter().flatten() {
            let name = entry["name"].as_str().unwrap_or_default();
            match entry["clientConfig"]["caBundle"].as_str().filter(|text| !text.is_empty()) {
                // A URL may be of a CA that the API server's machine trusts.
                None if entry["clientConfig"]["url"].is_string() => {}
                None => findings.add(&fault::CA_BUNDLE_EMPTY, object.clone(), format!("entry {name} has no caBundle")),
                Some(text) => {
                    let bundle = STANDARD.decode(text).map(|pem| certificates(&pem)).unwrap_or_default();
                    if bundle.is_empty() {
                        let text = format!("the caBundle of entry {name} is no certificate in PEM");
                        findings.add(&fault::CA_BUNDLE_INVALID, object.clone(), text);
                    } else {
                        bundles.push(bundle);
                    }
                }
            }
        }
    }
    if bundles.windows(2).any(|pair| pair[0] != pair[1]) {
        let text = "its entries, and those of its tags, do not have the same caBundle";
        findings.add(&fault::CA_BUNDLE_DIFFERS, installed.object(), text);
    }
    bundles
}

/// Certificates of a PEM text that are X.509.
fn certificates(pem: &[u8]) -> Bundle {
    let blocks = Pem::iter_from_buffer(pem).filter_map(Result::ok).filter(|block| block.label == "CERTIFICATE");
    let mut all: Bundle =
        blocks.map(|block| block.contents).filter(|der| X509Certificate::from_der(der).is_ok()).collect();
    all.dedup();
    all
}

/// The chain that the webhook serves, leaf first, where it is in a mounted Secret.
fn served(view: &View<'_>, installed: &Installed<'_>) -> Option<Bundle> {
    let volumes = installed.deployment?["spec"]["template"]["spec"]["volumes"].as_array()?;
    let names: Vec<&str> = volumes.iter().filter_map(|volume| volume["secret"]["secretName"].as_str()).collect();
    let secrets = view.snapshot.secrets.iter().flatten();
    let mut pairs = secrets.filter(|secret| names.iter().any(|name| secret["metadata"]["name"] == *name));
    pairs.find_map(|secret| {
        let chain = certificates(&STANDARD.decode(secret["data"]["tls.crt"].as_str()?).ok()?);
        (!chain.is_empty()).then_some(chain)
    })
}

fn trust(
    view: &View<'_>,
    installed: &Installed<'_>,
    bundle: &Bundle,
    served: Option<&[Vec<u8>]>,
    findings: &mut Findings,
) {
    let now = view.snapshot.now;
    let cas: Vec<X509Certificate<'_>> = bundle.iter().filter_map(|der| parse(der)).collect();
    if cas.iter().all(|ca| ca.validity().not_after.timestamp() < now) {
        let last = cas.iter().map(|ca| ca.validity().not_after.timestamp()).max().unwrap_or_default();
        let text = format!("every CA in its caBundle has expired, the last one {}", ago(now - last));
        findings.add(&fault::CA_EXPIRED, installed.object(), text);
        return;
    }
    let Some(chain) = served else { return };
    let chain: Vec<X509Certificate<'_>> = chain.iter().filter_map(|der| parse(der)).collect();
    let Some(leaf) = chain.first() else { return };
    if !verifies(&cas, leaf, &chain[1..]) {
        let text = format!(
            "its caBundle ({}) does not verify the certificate in the webhook's Secret, which {} issued",
            cas.iter().map(|ca| ca.subject().to_string()).collect::<Vec<_>>().join("; "),
            leaf.issuer()
        );
        findings.add(&fault::CA_BUNDLE_STALE, installed.object(), text);
    }
    let object = installed.deployment_object(&view.snapshot.places.weir);
    let wanted = format!("{}.{}.svc", object.name, object.namespace);
    let names = names(leaf);
    if !names.iter().any(|name| covers(name, &wanted)) {
        let text =
            format!("the API server calls it as {wanted}; its certificate is for {}", super::workloads::some(&names));
        findings.add(&fault::CERTIFICATE_NAME, installed.object(), text);
    }
}

/// The CA that signs has to be in every bundle: a replica that starts makes its certificate from it.
fn built_in(view: &View<'_>, installed: &Installed<'_>, bundles: &[Bundle], findings: &mut Findings) {
    let Some(name) = installed.flags.get("ca-secret") else { return };
    let secret = view.snapshot.secrets.iter().flatten().find(|secret| secret["metadata"]["name"] == name);
    let signs = secret.and_then(|secret| STANDARD.decode(secret["data"]["current.crt"].as_str()?).ok());
    let signs = signs.map(|pem| certificates(&pem)).unwrap_or_default();
    if let Some(ca) = signs.first()
        && bundles.iter().any(|bundle| !bundle.contains(ca))
        && !findings.has(&fault::CA_EXPIRED)
    {
        let text = format!("a caBundle lacks the CA of Secret {name}, which signs what is served");
        findings.add(&fault::CA_BUNDLE_STALE, installed.object(), text);
    }
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// Whether a leaf leads to one of the CAs, over intermediates that come with it.
fn verifies(cas: &[X509Certificate<'_>], leaf: &X509Certificate<'_>, intermediates: &[X509Certificate<'_>]) -> bool {
    let issued = |by: &X509Certificate<'_>, what: &X509Certificate<'_>| {
        by.subject() == what.issuer() && what.verify_signature(Some(by.public_key())).is_ok()
    };
    let mut at = leaf;
    // Each intermediate is passed once, so that a ring ends.
    for _ in 0..=intermediates.len() {
        if cas.iter().any(|ca| issued(ca, at) || ca.as_raw() == at.as_raw()) {
            return true;
        }
        match intermediates.iter().find(|next| issued(next, at)) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

fn names<'a>(leaf: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let found = leaf.subject_alternative_name().ok().flatten();
    let names = found.into_iter().flat_map(|extension| extension.value.general_names.iter());
    names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None }).collect()
}

/// Whether a name of a certificate, which may begin with `*.`, is the one that is wanted.
fn covers(name: &str, wanted: &str) -> bool {
    let rest = name.strip_prefix("*.").zip(wanted.split_once('.'));
    name.eq_ignore_ascii_case(wanted) || rest.is_some_and(|(domain, (_, rest))| domain.eq_ignore_ascii_case(rest))
}

/// How long the certificates last: as the replicas say, else as the Secret says.
fn life(view: &View<'_>, installed: &Installed<'_>, served: Option<&[Vec<u8>]>, findings: &mut Findings) {
    let Some(deployment) = installed.deployment else { return };
    let now = view.snapshot.now;
    let near = if installed.flags.get("ca-secret").is_some() {
        installed.flags.get("leaf-lifetime").and_then(seconds).unwrap_or(LEAF_LIFE) / LATE
    } else {
        NEAR_END
    };
    let pods = selected(view.snapshot.weir.pods.as_ref(), &deployment["spec"]["selector"]);
    let said = pods.iter().filter_map(|pod: &&Value| {
        let name = pod["metadata"]["name"].as_str()?;
        let metrics = view.snapshot.reports.get(name)?.metrics.as_deref()?;
        Some((Object::new("Pod", &view.snapshot.places.weir, name), expiry(metrics)?))
    });
    let mut ends: Vec<(Object, i64)> = said.collect();
    if ends.is_empty()
        && let Some(leaf) = served.and_then(|chain| parse(chain.first()?))
    {
        ends.push((installed.object(), leaf.validity().not_after.timestamp()));
    }
    for (object, end) in ends {
        if end <= now {
            findings.add(&fault::CERTIFICATE_EXPIRED, object, format!("its certificate expired {}", ago(now - end)));
        } else if end - now < near {
            let text = format!("its certificate ends in {}", time(end - now));
            findings.add(&fault::CERTIFICATE_EXPIRING, object, text);
        }
    }
}

/// The end of the certificate in the metrics of a replica, in seconds since 1970.
fn expiry(metrics: &str) -> Option<i64> {
    let line = metrics.lines().find(|line| line.starts_with("weir_webhook_certificate_expiry_timestamp_seconds"))?;
    let number: f64 = line.rsplit(' ').next()?.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "seconds of a date; anything else saturates")]
    Some(number as i64)
}

/// A time as flags have it: `90s`, `30m`, `24h`.
fn seconds(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at(text.len().checked_sub(1)?);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit)
}

fn ago(seconds: i64) -> String {
    format!("{} ago", time(seconds))
}

fn time(seconds: i64) -> String {
    match seconds {
        ..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
