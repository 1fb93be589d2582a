//! The data of the CA Secret, which others can write: a CA that can sign, or findings; what was read is the same when it is written and
//! read again.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use weir_fuzz::bounded_target;
use weir_webhook::controllers::ca::authority::Ca;
use weir_webhook::controllers::ca::state::{CaState, KEYS, ParsedSecret, Phase, parse};

/// Values that hold together, so that inputs get behind the parsers of certificates: current and next CA, and all about them.
static SOUND: LazyLock<BTreeMap<&'static str, String>> = LazyLock::new(|| {
    let now = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let ca = || Ca::generate(now, Duration::from_secs(86_400)).expect("a CA can be made");
    let mut state = CaState::first(ca(), now);
    state.phase = Phase::Publishing { next: ca() };
    state.to_data()
});

// A value for each key, in their order, with zero bytes between them. `@` is the sound value and `@` with a number that of another key;
// an empty one is left out.
bounded_target!(|bytes: &[u8]| {
    let mut data = BTreeMap::new();
    for (key, value) in KEYS.iter().zip(bytes.split(|byte| *byte == 0)) {
        let of_key = |key: &str| SOUND.get(key).cloned().unwrap_or_default().into_bytes();
        let value = match value {
            [] => continue,
            [b'@'] => of_key(key),
            [b'@', number] => of_key(KEYS[usize::from(*number) % KEYS.len()]),
            other => other.to_vec(),
        };
        data.insert((*key).to_owned(), value);
    }
    match parse(&data) {
        ParsedSecret::Empty => assert!(data.is_empty()),
        ParsedSecret::Invalid(findings) => assert!(!findings.is_empty()),
        ParsedSecret::Valid(state, _) => {
            let written: BTreeMap<String, Vec<u8>> =
                state.to_data().into_iter().map(|(key, text)| (key.to_owned(), text.into_bytes())).collect();
            match parse(&written) {
                ParsedSecret::Valid(again, findings) => {
                    assert_eq!((again.bundle(), findings), (state.bundle(), Vec::new()));
                }
                _ => panic!("what was written is not a CA"),
            }
        }
    }
});
