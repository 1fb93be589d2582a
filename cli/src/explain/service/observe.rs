//! Compares the connections that the agents of both pods observe with the prediction of the rules.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::path::{Leg, ServicePath};
use crate::agent::{self, ObservedConnection};
use crate::cluster::ConnectArgs;
use crate::failure::Failure;

/// Pods behind the Service that are observed.
const MAX_ENDPOINTS: usize = 5;
/// Time for finding the agents, beside that of the observation.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// Connections that were observed in some time.
#[derive(Debug)]
pub(in crate::explain) struct Observation {
    pub(super) time: Duration,
    pub(super) pods: Vec<ObservedPod>,
}

/// Connections of one pod to one destination.
#[derive(Debug)]
pub(super) struct ObservedPod {
    pub(super) pod: String,
    pub(super) destination: SocketAddr,
    /// Connections whose replies come from elsewhere, and the port of that.
    pub(super) captured: usize,
    pub(super) port: Option<u16>,
    pub(super) not_captured: usize,
    pub(super) verdict: ObservationVerdict,
}

/// Result of comparing what was seen with what is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ObservationVerdict {
    AsPredicted,
    Different,
    /// There was no connection.
    Unseen,
    /// There were connections, but TPROXY leaves no trace in connection tracking.
    Untold,
}

impl Observation {
    /// Returns whether nothing was seen that is not predicted.
    pub(in crate::explain) fn is_as_predicted(&self) -> bool {
        self.pods.iter().all(|pod| pod.verdict != ObservationVerdict::Different)
    }
}

/// Connections that are expected in a pod.
struct Expected<'a> {
    pod: &'a str,
    name: &'a (String, String),
    destination: SocketAddr,
    leg: &'a Leg,
    /// True if the pod's proxy connects to the same destination.
    is_shared: bool,
}

/// Observes the sending pod and those behind the Service.
///
/// # Errors
/// An agent cannot be reached, or cannot observe its pod.
pub(in crate::explain) fn observe(
    path: &ServicePath,
    connect: &ConnectArgs,
    node_namespace: &str,
    time: Duration,
) -> Result<Observation, Failure> {
    let expected = expected(path);
    let names: Vec<(String, String)> = expected.iter().map(|pod| pod.name.clone()).collect();
    eprintln!("weir: observing {} pods for {} s; connect now", names.len(), time.as_secs());
    let seen = connect
        .run(time + CONNECT_TIME, async |cluster| agent::observe(&cluster, node_namespace, &names, time).await)?;
    let pods = expected.iter().zip(&seen).map(|(expected, seen)| judge(expected, seen)).collect();
    Ok(Observation { time, pods })
}

fn expected(path: &ServicePath) -> Vec<Expected<'_>> {
    let from = Expected {
        pod: &path.from,
        name: &path.from_pod,
        destination: path.destination,
        leg: &path.leaves,
        is_shared: path.is_headless,
    };
    let behind = path.endpoints.iter().filter(|endpoint| endpoint.is_ready).filter_map(|endpoint| {
        Some(Expected {
            pod: endpoint.pod.as_deref()?,
            name: endpoint.pod_name.as_ref()?,
            destination: (endpoint.address, endpoint.port).into(),
            leg: endpoint.arrives.as_ref()?,
            is_shared: false,
        })
    });
    std::iter::once(from).chain(behind.take(MAX_ENDPOINTS)).collect()
}

fn judge(expected: &Expected<'_>, seen: &[ObservedConnection]) -> ObservedPod {
    let Expected { destination, leg, is_shared, .. } = *expected;
    // The proxy connects to its own application from addresses of the loopback network, or from the pod's own.
    let is_foreign = |source: IpAddr| {
        let is_passthrough = matches!(source, IpAddr::V6(source) if source.segments() == [0, 0, 0, 0, 0, 0, 0, 6]);
        !source.is_loopback() && !is_passthrough && source != destination.ip()
    };
    let seen = seen.iter().filter(|one| one.destination == destination && is_foreign(one.source.ip()));
    let (captured, passed): (Vec<&ObservedConnection>, Vec<&ObservedConnection>) =
        seen.partition(|one| one.reply_source != one.destination);
    let (right, wrong) = if leg.is_captured { (&captured, &passed) } else { (&passed, &captured) };
    let verdict = match (right.len(), wrong.len()) {
        (0, 0) => ObservationVerdict::Unseen,
        _ if leg.is_tproxied => ObservationVerdict::Untold,
        (0, _) => ObservationVerdict::Different,
        (_, 0) => ObservationVerdict::AsPredicted,
        _ if is_shared => ObservationVerdict::AsPredicted,
        _ => ObservationVerdict::Different,
    };
    ObservedPod {
        pod: expected.pod.to_owned(),
        destination,
        captured: captured.len(),
        port: captured.first().map(|one| one.reply_source.port()),
        not_captured: passed.len(),
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::ObservationVerdict::{AsPredicted, Different, Unseen, Untold};
    use super::*;

    fn verdict(
        is_captured: bool,
        is_tproxied: bool,
        is_shared: bool,
        seen: &[(&str, &str, &str)],
    ) -> ObservationVerdict {
        let leg = Leg { origin: String::new(), sentence: String::new(), is_captured, is_tproxied };
        let name = (String::new(), String::new());
        let destination = "10.0.0.7:80".parse().unwrap();
        let expected = Expected { pod: "", name: &name, destination, leg: &leg, is_shared };
        let seen: Vec<_> = seen
            .iter()
            .map(|(source, destination, reply_source)| ObservedConnection {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                reply_source: reply_source.parse().unwrap(),
            })
            .collect();
        judge(&expected, &seen).verdict
    }

    #[test]
    fn connections_are_judged_by_where_replies_come_from() {
        let captured = ("10.0.0.1:4000", "10.0.0.7:80", "127.0.0.1:15001");
        let passed = ("10.0.0.1:4001", "10.0.0.7:80", "10.0.0.7:80");
        let elsewhere = ("10.0.0.1:4002", "10.0.0.8:80", "10.0.0.8:80");
        let own = ("127.0.0.6:4003", "10.0.0.7:80", "10.0.0.7:80");
        assert_eq!(verdict(true, false, false, &[captured, elsewhere, own]), AsPredicted);
        assert_eq!(verdict(true, false, false, &[elsewhere, own]), Unseen);
        assert_eq!(verdict(true, false, false, &[captured, passed]), Different);
        assert_eq!(verdict(true, false, true, &[captured, passed]), AsPredicted, "the proxy's own is among them");
        assert_eq!(verdict(true, false, true, &[passed]), Different);
        assert_eq!(verdict(false, false, false, &[passed]), AsPredicted);
        assert_eq!(verdict(false, false, false, &[captured]), Different);
        assert_eq!(verdict(true, true, false, &[passed]), Untold);
    }
}
