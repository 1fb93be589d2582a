//! Decides what to do with the CA Secret, as a function of what is known.
//!
//! ```text
//!            two thirds of its lifetime, annotation      every bundle trusts both,          no leaf of the
//!                or not valid by the clock              for the settling time              old one can be left
//!  Stable ──────────────────────────────▶ Publishing ───────────────────────▶ Retiring ─────────────────────▶ Stable
//!  {A}  signs A                           {A, B}  signs A                     {B, A}  signs B                 {B}  signs B
//! ```
//!
//! Whichever replica is the leader takes the next step (only restoring a deleted Secret needs no leader). Each step is one write against the
//! version that was read, so a crash between any two leaves a state that the next leader continues from. Times in the Secret are wall clock
//! times of their writer; where a wrong clock could cost a connection, this replica must also have observed the same for long enough.

use std::time::{Duration, SystemTime};

use super::authority::Ca;
use super::state::{CaState, Phase};

/// Share of a CA's lifetime after which it is rotated: numerator and denominator.
const ROTATE_AFTER: (u32, u32) = (2, 3);

/// Validity of certificates and length of a rotation's phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaLifetimes {
    /// Lifetime of a CA.
    pub ca: Duration,
    /// Lifetime of a leaf.
    pub leaf: Duration,
    /// Time for API servers to observe a bundle, and for replicas to observe a Secret, that this replica observes.
    pub settle: Duration,
    /// Time for which a CA stays trusted after it last signed.
    pub retire: Duration,
}

/// The state of the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretState {
    /// It does not exist.
    Absent,
    /// It has none of our keys.
    Empty,
    /// It has a CA that can sign.
    Valid {
        /// Its content.
        state: CaState,
        /// Whether its keys differ harmlessly from what they should be.
        has_extra_keys: bool,
        /// Value of `weir.dev/rotate-ca`.
        rotate: Option<String>,
    },
    /// It has no CA that can sign.
    Invalid,
    /// It is of another type, so it belongs to another application.
    Foreign,
}

/// Facts that a decision depends on.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// By this replica's clock.
    pub now: SystemTime,
    /// Whether this replica may write.
    pub is_leader: bool,
    /// The Secret as just read.
    pub secret: &'a SecretState,
    /// The last valid state that this replica has observed.
    pub last_good: Option<&'a CaState>,
    /// For how long this replica has observed no valid CA in the Secret.
    pub absent_for: Duration,
    /// Whether no bundle trusts anything, as far as is known: a first installation.
    pub first_install: bool,
    /// For how long this replica has observed the current phase.
    pub phase_seen: Duration,
    /// For how long every bundle has been observed to trust the state's certificates; `None` while one does not.
    pub trusted_for: Option<Duration>,
    /// As configured.
    pub lifetimes: CaLifetimes,
}

/// One write of the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaChange {
    /// Creates a first CA.
    Create,
    /// Restores the last valid state, after the Secret was deleted or corrupted.
    Restore,
    /// Removes what does not belong into the Secret.
    RemoveExtraKeys,
    /// Creates the next CA.
    PublishNext {
        /// Value of the annotation that requested it, to be remembered.
        rotate: Option<String>,
    },
    /// Creates another next CA, because the present one would not be valid.
    ReplaceNext,
    /// Makes the next CA the current one.
    PromoteNext,
    /// Stops trusting the previous CA.
    RetirePrevious,
}

/// Result of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Write the Secret.
    Apply(CaChange),
    /// Nothing, or not yet; the text says what is awaited.
    Wait(Option<&'static str>),
    /// Nothing can be done without an administrator.
    Blocked(&'static str),
}

/// Decides what to do.
pub fn decide(input: &PlanInput<'_>) -> Plan {
    let if_leader =
        |change| if input.is_leader { Plan::Apply(change) } else { Plan::Wait(Some("another replica is leader")) };
    match (input.secret, input.last_good) {
        (SecretState::Foreign, _) => {
            Plan::Blocked("Secret belongs to another application; delete it or set --ca-secret to another name")
        }
        // All replicas with the state write the same, and only the first succeeds. Waiting for the leader could find another CA created.
        (SecretState::Absent | SecretState::Empty | SecretState::Invalid, Some(_)) => Plan::Apply(CaChange::Restore),
        (SecretState::Absent | SecretState::Empty, None)
            if !input.first_install && input.absent_for < input.lifetimes.settle =>
        {
            Plan::Wait(Some("CA Secret missing; waiting for a replica that has the CA in memory"))
        }
        (SecretState::Absent | SecretState::Empty, None) => if_leader(CaChange::Create),
        (SecretState::Invalid, None) => Plan::Blocked(
            "no CA in the Secret can sign and no replica has one in memory; delete the Secret to create a new CA",
        ),
        (SecretState::Valid { state, has_extra_keys, rotate }, _) => match next_step(input, state, rotate.as_deref()) {
            Plan::Apply(change) => if_leader(change),
            Plan::Wait(_) if *has_extra_keys => if_leader(CaChange::RemoveExtraKeys),
            other => other,
        },
    }
}

fn next_step(input: &PlanInput<'_>, state: &CaState, rotate: Option<&str>) -> Plan {
    let &PlanInput { now, phase_seen, trusted_for, lifetimes, .. } = input;
    match &state.phase {
        Phase::Stable => {
            let requested = rotate.filter(|value| !value.is_empty() && state.rotated.as_deref() != Some(*value));
            let rotate = requested.map_or_else(|| state.rotated.clone(), |value| Some(value.to_owned()));
            if requested.is_some() || is_due(&state.current, now) {
                Plan::Apply(CaChange::PublishNext { rotate })
            } else {
                Plan::Wait(None)
            }
        }
        Phase::Publishing { next } if !next.cert().validity().contains(now) || is_due(next, now) => {
            Plan::Apply(CaChange::ReplaceNext)
        }
        Phase::Publishing { .. } => match trusted_for {
            None => Plan::Wait(Some("waiting until every caBundle trusts the next CA")),
            Some(time) if time < lifetimes.settle => {
                Plan::Wait(Some("waiting until API servers have observed the new caBundle"))
            }
            Some(_) => Plan::Apply(CaChange::PromoteNext),
        },
        Phase::Retiring { .. } => {
            let old_enough = match now.duration_since(state.since) {
                Ok(age) => age >= lifetimes.retire,
                // Written by a clock that was ahead: only our own observation counts.
                Err(_) => phase_seen >= lifetimes.retire,
            };
            if old_enough && phase_seen >= lifetimes.settle.min(lifetimes.retire) {
                Plan::Apply(CaChange::RetirePrevious)
            } else {
                Plan::Wait(Some("waiting until certificates of the previous CA have expired"))
            }
        }
    }
}

/// Returns whether a CA is to be rotated: two thirds of its lifetime are over, or it is not valid.
fn is_due(ca: &Ca, now: SystemTime) -> bool {
    let validity = ca.cert().validity();
    let lifetime = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
    now < validity.not_before || now >= validity.not_before + lifetime * ROTATE_AFTER.0 / ROTATE_AFTER.1
}

/// Returns the state after a change of `base`, if it is possible; `generate` generates a CA.
///
/// # Errors
/// Those of `generate`.
pub fn apply<E>(
    change: &CaChange,
    base: Option<&CaState>,
    now: SystemTime,
    generate: impl FnOnce() -> Result<Ca, E>,
) -> Result<Option<CaState>, E> {
    let Some(base) = base else {
        return match change {
            CaChange::Create => generate().map(|ca| Some(CaState::first(ca, now))),
            _ => Ok(None),
        };
    };
    let changed = |current: &Ca, phase| CaState { current: current.clone(), phase, since: now, ..base.clone() };
    Ok(match (change, &base.phase) {
        (CaChange::Restore | CaChange::RemoveExtraKeys, _) => Some(base.clone()),
        (CaChange::PublishNext { rotate }, Phase::Stable) => {
            let next = generate()?;
            Some(CaState { rotated: rotate.clone(), ..changed(&base.current, Phase::Publishing { next }) })
        }
        (CaChange::ReplaceNext, Phase::Publishing { .. }) => {
            Some(changed(&base.current, Phase::Publishing { next: generate()? }))
        }
        (CaChange::PromoteNext, Phase::Publishing { next }) => {
            Some(changed(next, Phase::Retiring { previous: base.current.cert().clone() }))
        }
        (CaChange::RetirePrevious, Phase::Retiring { .. }) => Some(changed(&base.current, Phase::Stable)),
        _ => None,
    })
}
