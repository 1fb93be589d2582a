//! Whether what was foretold of a packet is what was seen of it.

use iptables_rules::trace::{Fate, Trace};
use weir_kernel::live::Live;
use weir_lab::Sighting;

use crate::fire::{Arrival, Fired};
use crate::world::{Place, home};

/// What speaks against the tracer, or against the kernel.
pub(crate) fn objection(fired: &Fired) -> Option<String> {
    let trace = fired.trace.as_ref()?;
    let objection = if fired.shot.stray { stray(fired, trace) } else { first(fired, trace) };
    objection.or_else(|| tracked(fired, trace))
}

/// A stray segment is answered where it arrives, and nothing else is known of it.
fn stray(fired: &Fired, trace: &Trace) -> Option<String> {
    let arrives = trace.fate != Fate::Dropped;
    (fired.arrival.is_some() != arrives).then(|| format!("a stray segment: foretold {:?}", trace.fate))
}

fn first(fired: &Fired, trace: &Trace) -> Option<String> {
    let to = fired.shot.to;
    let expected = match &trace.fate {
        Fate::Dropped => None,
        Fate::Redirected { port } | Fate::Tproxied { port, .. } => Some((Place::Pod, *port)),
        // A handshake that cannot come to its end: nobody accepts the connection.
        Fate::Passes { .. } if fired.answer_is_taken => None,
        Fate::Passes { interface } => Some((
            match interface.as_deref() {
                Some("lo") => Place::Pod,
                Some(_) | None => home(to.ip()),
            },
            to.port(),
        )),
    };
    let found = fired.arrival.as_ref().map(|Arrival { place, port, .. }| (*place, *port));
    if expected != found {
        return Some(format!("foretold {:?}, that is {expected:?}, arrived at {found:?}", trace.fate));
    }
    let Sighting { local, original_dst, .. } = fired.arrival.as_ref()?.sighting.as_ref()?;
    match trace.fate {
        Fate::Redirected { .. } => {
            (*original_dst != Some(to)).then(|| format!("redirected, but the original destination is {original_dst:?}"))
        }
        Fate::Tproxied { redirected: None, .. } => {
            (*local != to).then(|| format!("handed over, but its destination is {local}"))
        }
        Fate::Tproxied { redirected: Some(port), .. } => {
            (local.port() != port || *original_dst != Some(to)).then(|| {
                format!("handed over and redirected, but its destination is {local}, originally {original_dst:?}")
            })
        }
        Fate::Passes { .. } => (*local != to).then(|| format!("passed, but arrived at {local}")),
        Fate::Dropped => None,
    }
}

/// What connection tracking holds, where it was asked to watch.
fn tracked(fired: &Fired, trace: &Trace) -> Option<String> {
    let Some(entry) = fired.entry.as_ref() else {
        return fired.answer_is_taken.then(|| "passed on, but connection tracking does not know it".to_owned());
    };
    let answers = match trace.fate {
        Fate::Redirected { port } | Fate::Tproxied { redirected: Some(port), .. } => port,
        _ => fired.shot.to.port(),
    };
    let wrong = entry.destination != fired.shot.to
        || entry.answers.port() != answers
        || entry.zone != trace.zone
        || entry.mark != trace.connection_mark;
    wrong.then(|| {
        format!(
            "connection tracking holds {entry:?}, foretold {:?}, zone {}, mark {}",
            trace.fate, trace.zone, trace.connection_mark
        )
    })
}

/// What speaks against the rules as they were read back: they say something else about the packet than the plan.
pub(crate) fn reading(fired: &Fired, live: &Live) -> Option<String> {
    let (packet, trace) = (fired.packet.as_ref()?, fired.trace.as_ref()?);
    let read = live.chains(packet.destination).trace(packet);
    let end = |trace: &Trace| (trace.fate.clone(), trace.mark, trace.connection_mark, trace.zone);
    (end(&read) != end(trace) || !read.doubts.is_empty()).then(|| {
        format!(
            "read back, the rules foretell {:?} with doubts {:?}, the plan {:?}",
            end(&read),
            read.doubts,
            end(trace)
        )
    })
}
