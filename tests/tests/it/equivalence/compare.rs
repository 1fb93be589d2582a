//! Compares the prediction for a packet with what was observed.

use iptables_rules::trace::{Disposition, Trace};
use weir_kernel::netns_state::NetnsState;
use weir_lab::ConnectionInfo;

use super::probes::{Arrival, ProbeResult};
use super::world::{Place, home};

/// Returns how prediction and observation differ.
pub(crate) fn mismatch(result: &ProbeResult) -> Option<String> {
    let trace = result.trace.as_ref()?;
    let mismatch = if result.probe.stray { stray_mismatch(result, trace) } else { arrival_mismatch(result, trace) };
    mismatch.or_else(|| conntrack_mismatch(result, trace))
}

/// A stray segment is answered where it arrives; nothing else is observed.
fn stray_mismatch(result: &ProbeResult, trace: &Trace) -> Option<String> {
    let arrives = trace.disposition != Disposition::Dropped;
    (result.arrival.is_some() != arrives).then(|| format!("stray segment: predicted {:?}", trace.disposition))
}

fn arrival_mismatch(result: &ProbeResult, trace: &Trace) -> Option<String> {
    let to = result.probe.to;
    let expected = match &trace.disposition {
        Disposition::Dropped => None,
        Disposition::Redirected { port } | Disposition::Tproxied { port, .. } => Some((Place::Pod, *port)),
        // The handshake cannot complete, so no connection is accepted.
        Disposition::Passes { .. } if result.replies_are_captured => None,
        Disposition::Passes { interface } => Some((
            match interface.as_deref() {
                Some("lo") => Place::Pod,
                Some(_) | None => home(to.ip()),
            },
            to.port(),
        )),
    };
    let found = result.arrival.as_ref().map(|Arrival { place, port, .. }| (*place, *port));
    if expected != found {
        return Some(format!("predicted {:?}, that is {expected:?}, arrived at {found:?}", trace.disposition));
    }
    let ConnectionInfo { local, original_dst, .. } = result.arrival.as_ref()?.connection.as_ref()?;
    match trace.disposition {
        Disposition::Redirected { .. } => {
            (*original_dst != Some(to)).then(|| format!("redirected, but the original destination is {original_dst:?}"))
        }
        Disposition::Tproxied { redirected: None, .. } => {
            (*local != to).then(|| format!("tproxied, but its destination is {local}"))
        }
        Disposition::Tproxied { redirected: Some(port), .. } => (local.port() != port || *original_dst != Some(to))
            .then(|| format!("tproxied and redirected, but its destination is {local}, originally {original_dst:?}")),
        Disposition::Passes { .. } => (*local != to).then(|| format!("passed, but arrived at {local}")),
        Disposition::Dropped => None,
    }
}

/// Compares with the entry in connection tracking, where there is one.
fn conntrack_mismatch(result: &ProbeResult, trace: &Trace) -> Option<String> {
    let Some(entry) = result.entry.as_ref() else {
        return result.replies_are_captured.then(|| "forwarded, but not in connection tracking".to_owned());
    };
    let reply_port = match trace.disposition {
        Disposition::Redirected { port } | Disposition::Tproxied { redirected: Some(port), .. } => port,
        _ => result.probe.to.port(),
    };
    let wrong = entry.destination != result.probe.to
        || entry.reply_source.port() != reply_port
        || entry.zone != trace.zone
        || entry.mark != trace.connection_mark;
    wrong.then(|| {
        format!(
            "connection tracking has {entry:?}, predicted {:?}, zone {}, mark {}",
            trace.disposition, trace.zone, trace.connection_mark
        )
    })
}

/// Returns how the predictions of the rules that were read back and of the plan differ.
pub(crate) fn read_back_mismatch(result: &ProbeResult, live: &NetnsState) -> Option<String> {
    let (packet, trace) = (result.packet.as_ref()?, result.trace.as_ref()?);
    let read = live.chains(packet.destination).trace(packet);
    let end = |trace: &Trace| (trace.disposition.clone(), trace.mark, trace.connection_mark, trace.zone);
    (end(&read) != end(trace) || !read.uncertain_rules.is_empty()).then(|| {
        format!(
            "the rules read back predict {:?} with uncertain rules {:?}, the plan {:?}",
            end(&read),
            read.uncertain_rules,
            end(trace)
        )
    })
}
