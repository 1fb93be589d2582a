//! The content of the CA Secret.
//!
//! | key | content | when |
//! |---|---|---|
//! | `current.crt`, `current.key` | the CA that signs | always |
//! | `next.crt`, `next.key` | the CA that will sign | until every bundle trusts it |
//! | `previous.crt` | the CA that signed before; its key is gone | until no leaf of it can be in use |
//! | `ca.crt` | all of these certificates: the trust bundle | always |
//! | `state` | JSON: start of the phase, and the last value of `weir.dev/rotate-ca` that was acted on | always |

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::authority::{Ca, CaCert};

const CURRENT_CERT: &str = "current.crt";
const CURRENT_KEY: &str = "current.key";
const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS_CERT: &str = "previous.crt";
const BUNDLE: &str = "ca.crt";
const STATE: &str = "state";
/// Keys of the Secret.
pub const KEYS: [&str; 7] = [CURRENT_CERT, CURRENT_KEY, NEXT_CERT, NEXT_KEY, PREVIOUS_CERT, BUNDLE, STATE];

/// Progress of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No rotation is in progress.
    Stable,
    /// Bundles are to trust the next CA, which signs nothing yet.
    Publishing {
        /// The next CA.
        next: Ca,
    },
    /// The new CA signs; the previous one is still trusted.
    Retiring {
        /// The CA that signed before.
        previous: CaCert,
    },
}

impl Phase {
    /// Returns the value of the label `phase`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Publishing { .. } => "publishing",
            Self::Retiring { .. } => "retiring",
        }
    }
}

/// The state that all replicas share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaState {
    /// The CA that signs.
    pub current: Ca,
    /// Progress of a rotation.
    pub phase: Phase,
    /// When the phase began.
    pub since: SystemTime,
    /// The last value of `weir.dev/rotate-ca` that was acted on.
    pub rotated: Option<String>,
}

/// A parsed Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParsedSecret {
    /// It has none of our keys.
    Empty,
    /// It has a CA that can sign; findings are harmless, and removed by the leader.
    Valid(CaState, Vec<String>),
    /// It has no CA that can sign, for these reasons.
    Invalid(Vec<String>),
}

#[derive(Serialize, Deserialize)]
struct StateRecord {
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotated: Option<String>,
}

impl CaState {
    /// Returns the state with a first CA.
    pub fn first(current: Ca, now: SystemTime) -> Self {
        Self { current, phase: Phase::Stable, since: now, rotated: None }
    }

    /// Returns the certificates to trust.
    pub fn trusted(&self) -> Vec<&CaCert> {
        let other = match &self.phase {
            Phase::Stable => None,
            Phase::Publishing { next } => Some(next.cert()),
            Phase::Retiring { previous } => Some(previous),
        };
        std::iter::once(self.current.cert()).chain(other).collect()
    }

    /// Returns the certificates to trust, PEM.
    pub fn bundle(&self) -> String {
        self.trusted().into_iter().map(CaCert::pem).collect()
    }

    /// Returns the data of the Secret.
    pub fn to_data(&self) -> BTreeMap<&'static str, String> {
        let record = StateRecord { since: timestamp(self.since), rotated: self.rotated.clone() };
        let mut data = BTreeMap::from([
            (CURRENT_CERT, self.current.cert().pem().to_owned()),
            (CURRENT_KEY, self.current.key().to_owned()),
            (BUNDLE, self.bundle()),
            // Serializing it cannot fail.
            (STATE, serde_json::to_string(&record).unwrap_or_default()),
        ]);
        match &self.phase {
            Phase::Stable => {}
            Phase::Publishing { next } => {
                data.insert(NEXT_CERT, next.cert().pem().to_owned());
                data.insert(NEXT_KEY, next.key().to_owned());
            }
            Phase::Retiring { previous } => {
                data.insert(PREVIOUS_CERT, previous.pem().to_owned());
            }
        }
        data
    }
}

/// Truncates to seconds, so that a time is the same after writing and parsing.
fn timestamp(time: SystemTime) -> Timestamp {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Parses the data of a Secret. An invalid next or previous CA is left out: the first has signed nothing yet, and leaves of the second are
/// replaced at once. The current CA cannot be left out.
pub fn parse(data: &BTreeMap<String, Vec<u8>>) -> ParsedSecret {
    if KEYS.iter().all(|key| !data.contains_key(*key)) {
        return ParsedSecret::Empty;
    }
    let mut findings = Vec::new();
    let current = pair(data, CURRENT_CERT, CURRENT_KEY).unwrap_or_else(|reason| {
        findings.push(reason);
        None
    });
    let Some(current) = current else {
        if findings.is_empty() {
            findings.push(format!("{CURRENT_CERT} and {CURRENT_KEY} are missing"));
        }
        return ParsedSecret::Invalid(findings);
    };
    let next = pair(data, NEXT_CERT, NEXT_KEY).unwrap_or_else(|reason| {
        findings.push(reason);
        None
    });
    let previous = text(data, PREVIOUS_CERT)
        .and_then(|pem| {
            pem.map(|pem| CaCert::parse(&pem).map_err(|reason| format!("{PREVIOUS_CERT}: {reason}"))).transpose()
        })
        .unwrap_or_else(|reason| {
            findings.push(reason);
            None
        });
    let phase = match (next, previous) {
        (None, None) => Phase::Stable,
        (Some(next), None) => Phase::Publishing { next },
        (None, Some(previous)) => Phase::Retiring { previous },
        (Some(_), Some(previous)) => {
            findings.push(format!("{NEXT_CERT} and {PREVIOUS_CERT} are both present"));
            Phase::Retiring { previous }
        }
    };
    let record = text(data, STATE).ok().flatten().and_then(|text| serde_json::from_str::<StateRecord>(&text).ok());
    let record = record.unwrap_or_else(|| {
        findings.push(format!("{STATE} is missing or invalid"));
        // As if the phase had begun with the latest CA.
        let last = match &phase {
            Phase::Publishing { next } => next.cert(),
            Phase::Stable | Phase::Retiring { .. } => current.cert(),
        };
        StateRecord { since: timestamp(last.validity().not_before), rotated: None }
    });
    let state = CaState { current, phase, since: record.since.into(), rotated: record.rotated };
    if text(data, BUNDLE).ok().flatten().as_deref() != Some(&*state.bundle()) {
        findings.push(format!("{BUNDLE} differs from the other keys"));
    }
    ParsedSecret::Valid(state, findings)
}

fn text(data: &BTreeMap<String, Vec<u8>>, key: &str) -> Result<Option<String>, String> {
    let text = data.get(key).map(|bytes| String::from_utf8(bytes.clone()));
    text.transpose().map_err(|_| format!("{key} is not UTF-8"))
}

fn pair(data: &BTreeMap<String, Vec<u8>>, cert: &str, key: &str) -> Result<Option<Ca>, String> {
    match (text(data, cert)?, text(data, key)?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(format!("{cert} is present, but {key} is missing")),
        (None, Some(_)) => Err(format!("{key} is present, but {cert} is missing")),
        (Some(cert_pem), Some(key_pem)) => {
            Ca::parse(&cert_pem, &key_pem).map(Some).map_err(|reason| format!("{cert}, {key}: {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ca() -> Ca {
        Ca::generate(SystemTime::now(), Duration::from_hours(24)).unwrap()
    }

    fn second(time: SystemTime) -> SystemTime {
        timestamp(time).into()
    }

    fn stored(state: &CaState) -> BTreeMap<String, Vec<u8>> {
        state.to_data().into_iter().map(|(key, text)| (key.to_owned(), text.into_bytes())).collect()
    }

    fn all_phases() -> [CaState; 3] {
        let base = CaState::first(ca(), second(SystemTime::now()));
        let next = CaState { phase: Phase::Publishing { next: ca() }, rotated: Some("now".to_owned()), ..base.clone() };
        let old = CaState { phase: Phase::Retiring { previous: ca().cert().clone() }, ..base.clone() };
        [base, next, old]
    }

    #[test]
    fn every_phase_survives_the_secret() {
        for state in all_phases() {
            assert_eq!(parse(&stored(&state)), ParsedSecret::Valid(state.clone(), Vec::new()));
            assert_eq!(state.bundle().matches("BEGIN CERTIFICATE").count(), state.trusted().len());
        }
        assert_eq!(parse(&BTreeMap::new()), ParsedSecret::Empty);
        assert_eq!(parse(&BTreeMap::from([("other".to_owned(), b"x".to_vec())])), ParsedSecret::Empty);
    }

    #[test]
    fn secret_with_a_current_ca_is_never_invalid() {
        for state in all_phases() {
            let whole = stored(&state);
            for key in whole.keys().filter(|key| !key.starts_with("current")) {
                for broken in [None, Some(b"garbage".to_vec()), Some(vec![0xff])] {
                    let mut data = whole.clone();
                    match broken {
                        None => drop(data.remove(key)),
                        Some(bytes) => drop(data.insert(key.clone(), bytes)),
                    }
                    let ParsedSecret::Valid(state_read, findings) = parse(&data) else { panic!("{key}: {data:?}") };
                    assert_eq!(state_read.current, state.current);
                    assert!(!findings.is_empty(), "{key}");
                }
            }
        }
    }

    #[test]
    fn secret_without_current_ca_is_invalid_naming_the_key() {
        let [state, ..] = all_phases();
        for (key, bytes, expected) in [
            ("current.crt", Some(b"x".to_vec()), "current.crt, current.key: unusable certificate"),
            ("current.crt", None, "current.key is present, but current.crt is missing"),
            ("current.key", None, "current.crt is present, but current.key is missing"),
            ("current.key", Some(ca().key().as_bytes().to_vec()), "does not match"),
            ("current.key", Some(vec![0xff]), "current.key is not UTF-8"),
        ] {
            let mut data = stored(&state);
            data.remove(key);
            data.extend(bytes.map(|bytes| (key.to_owned(), bytes)));
            let ParsedSecret::Invalid(findings) = parse(&data) else { panic!("{key} was accepted") };
            assert!(findings[0].contains(expected), "{findings:?} should contain {expected:?}");
        }
        let mut data = stored(&state);
        data.retain(|key, _| !key.starts_with("current"));
        assert!(matches!(parse(&data), ParsedSecret::Invalid(_)));
    }
}
