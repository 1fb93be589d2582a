//! What the Secret holds.
//!
//! | key | what | when |
//! |---|---|---|
//! | `current.crt`, `current.key` | the CA that signs | always |
//! | `next.crt`, `next.key` | the CA that will sign | from its making until every bundle trusts it |
//! | `previous.crt` | the CA that has signed; its key is gone | until no leaf of it can be in use |
//! | `ca.crt` | all of these certificates: the bundle to trust | always |
//! | `state` | JSON: since when it is so, and the last value of `weir.dev/rotate-ca` that was followed | always |

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::authority::{Ca, CaCert};

/// Keys of the Secret.
const CURRENT_CERT: &str = "current.crt";
const CURRENT_KEY: &str = "current.key";
const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS_CERT: &str = "previous.crt";
const BUNDLE: &str = "ca.crt";
const STATE: &str = "state";
/// All of them.
pub const KEYS: [&str; 7] = [CURRENT_CERT, CURRENT_KEY, NEXT_CERT, NEXT_KEY, PREVIOUS_CERT, BUNDLE, STATE];

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// None is under way.
    Stable,
    /// The next CA is made known; it signs nothing yet.
    Publishing {
        /// The next CA.
        next: Ca,
    },
    /// The new CA signs; the one before is still trusted.
    Retiring {
        /// The CA before.
        previous: CaCert,
    },
}

impl Phase {
    /// Value of the label `phase`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Publishing { .. } => "publishing",
            Self::Retiring { .. } => "retiring",
        }
    }
}

/// All that replicas share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaState {
    /// The CA that signs.
    pub current: Ca,
    /// How far a rotation is.
    pub phase: Phase,
    /// When the phase began.
    pub since: SystemTime,
    /// The last value of `weir.dev/rotate-ca` that was followed.
    pub rotated: Option<String>,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// None of our keys is there.
    Empty,
    /// As it should be, or with findings that cost nothing: whoever may write leaves them out.
    Good(CaState, Vec<String>),
    /// No CA that can sign.
    Damaged(Vec<String>),
}

#[derive(Serialize, Deserialize)]
struct Stamp {
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotated: Option<String>,
}

impl CaState {
    /// A first CA.
    pub fn first(current: Ca, now: SystemTime) -> Self {
        Self { current, phase: Phase::Stable, since: now, rotated: None }
    }

    /// All that has to be trusted.
    pub fn trusted(&self) -> Vec<&CaCert> {
        let other = match &self.phase {
            Phase::Stable => None,
            Phase::Publishing { next } => Some(next.cert()),
            Phase::Retiring { previous } => Some(previous),
        };
        std::iter::once(self.current.cert()).chain(other).collect()
    }

    /// The same as PEM.
    pub fn bundle(&self) -> String {
        self.trusted().into_iter().map(CaCert::pem).collect()
    }

    /// As the data of a Secret.
    pub fn to_data(&self) -> BTreeMap<&'static str, String> {
        let stamp = Stamp { since: timestamp(self.since), rotated: self.rotated.clone() };
        let mut data = BTreeMap::from([
            (CURRENT_CERT, self.current.cert().pem().to_owned()),
            (CURRENT_KEY, self.current.key().to_owned()),
            (BUNDLE, self.bundle()),
            // Nothing in it can fail to be JSON.
            (STATE, serde_json::to_string(&stamp).unwrap_or_default()),
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

/// To the second: what is written and read again has to be the same.
fn timestamp(time: SystemTime) -> Timestamp {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Reads the data of a Secret. A damaged next or previous CA is left out: the first has signed nothing yet, and who was served by the
/// second takes a leaf of the current one at once. Without a usable current CA nothing can be left out.
pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Read {
    if KEYS.iter().all(|key| !data.contains_key(*key)) {
        return Read::Empty;
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
        return Read::Damaged(findings);
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
            findings.push(format!("{NEXT_CERT} and {PREVIOUS_CERT} are both there"));
            Phase::Retiring { previous }
        }
    };
    let stamp = text(data, STATE).ok().flatten().and_then(|text| serde_json::from_str::<Stamp>(&text).ok());
    let stamp = stamp.unwrap_or_else(|| {
        findings.push(format!("{STATE} is missing or damaged"));
        // As if it had begun with the CA that came last.
        let last = match &phase {
            Phase::Publishing { next } => next.cert(),
            Phase::Stable | Phase::Retiring { .. } => current.cert(),
        };
        Stamp { since: timestamp(last.validity().not_before), rotated: None }
    });
    let state = CaState { current, phase, since: stamp.since.into(), rotated: stamp.rotated };
    if text(data, BUNDLE).ok().flatten().as_deref() != Some(&*state.bundle()) {
        findings.push(format!("{BUNDLE} is not what the other keys say"));
    }
    Read::Good(state, findings)
}

fn text(data: &BTreeMap<String, Vec<u8>>, key: &str) -> Result<Option<String>, String> {
    let text = data.get(key).map(|bytes| String::from_utf8(bytes.clone()));
    text.transpose().map_err(|_| format!("{key} is not text"))
}

fn pair(data: &BTreeMap<String, Vec<u8>>, cert: &str, key: &str) -> Result<Option<Ca>, String> {
    match (text(data, cert)?, text(data, key)?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(format!("{cert} is there, but {key} is not")),
        (None, Some(_)) => Err(format!("{key} is there, but {cert} is not")),
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
        Ca::make(SystemTime::now(), Duration::from_hours(24)).unwrap()
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
    fn reads_what_it_wrote_in_every_phase() {
        for state in all_phases() {
            assert_eq!(read(&stored(&state)), Read::Good(state.clone(), Vec::new()));
            assert_eq!(state.bundle().matches("BEGIN CERTIFICATE").count(), state.trusted().len());
        }
        assert_eq!(read(&BTreeMap::new()), Read::Empty);
        assert_eq!(read(&BTreeMap::from([("other".to_owned(), b"x".to_vec())])), Read::Empty);
    }

    #[test]
    fn never_calls_a_secret_damaged_whose_current_ca_can_sign() {
        for state in all_phases() {
            let whole = stored(&state);
            for key in whole.keys().filter(|key| !key.starts_with("current")) {
                for broken in [None, Some(b"garbage".to_vec()), Some(vec![0xff])] {
                    let mut data = whole.clone();
                    match broken {
                        None => drop(data.remove(key)),
                        Some(bytes) => drop(data.insert(key.clone(), bytes)),
                    }
                    let Read::Good(read, findings) = read(&data) else { panic!("{key}: {data:?}") };
                    assert_eq!(read.current, state.current);
                    assert!(!findings.is_empty(), "{key}");
                }
            }
        }
    }

    #[test]
    fn calls_a_secret_damaged_without_a_current_ca_and_names_the_key() {
        let [state, ..] = all_phases();
        for (key, bytes, expected) in [
            ("current.crt", Some(b"x".to_vec()), "current.crt, current.key: the certificate cannot be used"),
            ("current.crt", None, "current.key is there, but current.crt is not"),
            ("current.key", None, "current.crt is there, but current.key is not"),
            ("current.key", Some(ca().key().as_bytes().to_vec()), "does not belong"),
            ("current.key", Some(vec![0xff]), "current.key is not text"),
        ] {
            let mut data = stored(&state);
            data.remove(key);
            data.extend(bytes.map(|bytes| (key.to_owned(), bytes)));
            let Read::Damaged(findings) = read(&data) else { panic!("{key} was taken") };
            assert!(findings[0].contains(expected), "{findings:?} should contain {expected:?}");
        }
        let mut data = stored(&state);
        data.retain(|key, _| !key.starts_with("current"));
        assert!(matches!(read(&data), Read::Damaged(_)));
    }
}
