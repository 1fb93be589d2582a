//! What to do with the Secret, as a function of what is known.
//!
//! ```text
//!            life two thirds over, annotation            every bundle trusts both,          no leaf of the
//!                or not valid by the clock              for the settling time              old one can be left
//!  Stable ──────────────────────────────▶ Publishing ───────────────────────▶ Retiring ─────────────────────▶ Stable
//!  {A}  signs A                           {A, B}  signs A                     {B, A}  signs B                 {B}  signs B
//! ```
//!
//! Whichever replica holds the Lease takes the next step (only writing back what was removed needs no Lease); each is one write against the version that was read, so a crash between any two
//! leaves a state that the next holder goes on from. Times in the Secret are wall clock times of whoever wrote them; where a wrong clock
//! could cost a connection, this process must have seen the same for long enough as well.

use std::time::{Duration, SystemTime};

use super::authority::Ca;
use super::state::{CaState, Phase};

/// Of the life of a CA, before it is replaced: two thirds, as numerator and denominator.
const ROTATE: (u32, u32) = (2, 3);

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Life of a CA.
    pub ca: Duration,
    /// Life of a leaf.
    pub leaf: Duration,
    /// For API servers to see a bundle that we see, and for replicas to see a Secret that we see.
    pub settle: Duration,
    /// For which a CA that signs no more stays trusted.
    pub retire: Duration,
}

/// The Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Absent,
    /// It has no key of ours.
    Empty,
    /// As it should be.
    Good {
        /// What it says.
        state: CaState,
        /// It holds more or less than it should, without harm.
        untidy: bool,
        /// Value of `weir.dev/rotate-ca`.
        rotate: Option<String>,
    },
    /// No CA in it can sign.
    Damaged,
    /// It is of another type: somebody else's.
    Foreign,
}

/// What is known.
#[derive(Debug)]
pub struct View<'a> {
    /// By this replica's clock.
    pub now: SystemTime,
    /// Whether this replica may write.
    pub holder: bool,
    /// The Secret, as just read.
    pub secret: &'a Seen,
    /// The last good state that this replica has seen.
    pub memory: Option<&'a CaState>,
    /// For how long this replica has seen no CA in the Secret.
    pub absent: Duration,
    /// Whether no bundle trusts anything, as far as that is known: a first installation.
    pub first: bool,
    /// For how long this replica has seen the current phase.
    pub phase_seen: Duration,
    /// For how long every bundle has been seen to trust all that the state trusts; `None` while one does not.
    pub settled: Option<Duration>,
    /// How long things last.
    pub times: Times,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A first CA, where there is none.
    Create,
    /// The last state that was good, where the Secret was removed or damaged.
    Restore,
    /// The same without what does not belong there.
    Tidy,
    /// A next CA is made, and made known.
    Publish {
        /// Value of the annotation that asked for it, to be remembered.
        rotate: Option<String>,
    },
    /// Another next CA: the one that there is will not be valid.
    Remake,
    /// The next CA becomes the current one.
    Switch,
    /// The CA before is no longer trusted.
    Drop,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Write.
    Do(Change),
    /// Nothing, or not yet; what is waited for, if anything.
    Wait(Option<&'static str>),
    /// Nothing can be done without an administrator.
    Stuck(&'static str),
}

/// Decides.
pub fn plan(view: &View<'_>) -> Plan {
    let may = |change| if view.holder { Plan::Do(change) } else { Plan::Wait(Some("another replica writes")) };
    match (view.secret, view.memory) {
        (Seen::Foreign, _) => Plan::Stuck("it is not ours; remove it, or name another one"),
        // All that remember it write the same, and only the first succeeds. Who waits for the Lease may find another CA made meanwhile.
        (Seen::Absent | Seen::Empty | Seen::Damaged, Some(_)) => Plan::Do(Change::Restore),
        (Seen::Absent | Seen::Empty, None) if !view.first && view.absent < view.times.settle => {
            Plan::Wait(Some("the CA was removed; another replica may remember it"))
        }
        (Seen::Absent | Seen::Empty, None) => may(Change::Create),
        (Seen::Damaged, None) => {
            Plan::Stuck("no CA in the Secret can sign, and no replica remembers one; remove it to get a new one")
        }
        (Seen::Good { state, untidy, rotate }, _) => {
            let next = next_step(view, state, rotate.as_deref());
            match next {
                Plan::Do(change) => may(change),
                Plan::Wait(_) if *untidy => may(Change::Tidy),
                other => other,
            }
        }
    }
}

fn next_step(view: &View<'_>, state: &CaState, rotate: Option<&str>) -> Plan {
    let &View { now, phase_seen, settled, times, .. } = view;
    match &state.phase {
        Phase::Stable => {
            let asked = rotate.filter(|value| !value.is_empty() && state.rotated.as_deref() != Some(*value));
            let rotate = asked.map_or_else(|| state.rotated.clone(), |value| Some(value.to_owned()));
            if asked.is_some() || is_due(&state.current, now) {
                Plan::Do(Change::Publish { rotate })
            } else {
                Plan::Wait(None)
            }
        }
        Phase::Publishing { next } if !next.cert().validity().contains(now) || is_due(next, now) => {
            Plan::Do(Change::Remake)
        }
        Phase::Publishing { .. } => match settled {
            None => Plan::Wait(Some("every caBundle has to trust the next CA")),
            Some(settled) if settled < times.settle => {
                Plan::Wait(Some("API servers have to see the bundle with the next CA"))
            }
            Some(_) => Plan::Do(Change::Switch),
        },
        Phase::Retiring { .. } => {
            let long_ago = match now.duration_since(state.since) {
                Ok(age) => age >= times.retire,
                // Written by a clock that was ahead: only what we have seen ourselves counts.
                Err(_) => phase_seen >= times.retire,
            };
            if long_ago && phase_seen >= times.settle.min(times.retire) {
                Plan::Do(Change::Drop)
            } else {
                Plan::Wait(Some("leaves of the CA before may be in use"))
            }
        }
    }
}

/// Two thirds of its life are over, or it is not valid at all.
fn is_due(ca: &Ca, now: SystemTime) -> bool {
    let validity = ca.cert().validity();
    let life = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
    now < validity.not_before || now >= validity.not_before + life * ROTATE.0 / ROTATE.1
}

/// The state after a change, if it can be made: `base` is what is changed, `make` makes a CA.
///
/// # Errors
/// What `make` says.
pub fn apply<E>(
    change: &Change,
    base: Option<&CaState>,
    now: SystemTime,
    make: impl FnOnce() -> Result<Ca, E>,
) -> Result<Option<CaState>, E> {
    let Some(base) = base else {
        return match change {
            Change::Create => make().map(|ca| Some(CaState::first(ca, now))),
            _ => Ok(None),
        };
    };
    let changed = |current: &Ca, phase| CaState { current: current.clone(), phase, since: now, ..base.clone() };
    Ok(match (change, &base.phase) {
        (Change::Restore | Change::Tidy, _) => Some(base.clone()),
        (Change::Publish { rotate }, Phase::Stable) => {
            let next = make()?;
            Some(CaState { rotated: rotate.clone(), ..changed(&base.current, Phase::Publishing { next }) })
        }
        (Change::Remake, Phase::Publishing { .. }) => Some(changed(&base.current, Phase::Publishing { next: make()? })),
        (Change::Switch, Phase::Publishing { next }) => {
            Some(changed(next, Phase::Retiring { previous: base.current.cert().clone() }))
        }
        (Change::Drop, Phase::Retiring { .. }) => Some(changed(&base.current, Phase::Stable)),
        _ => None,
    })
}
