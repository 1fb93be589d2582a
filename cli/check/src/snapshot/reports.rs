//! Reports of the pods of webhook and agents about themselves: `/readyz` and `/metrics`.

use serde::Deserialize;

use crate::agent::UNHEALTHY_STATES;

/// The report of one pod. What it did not answer is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodReport {
    pub(crate) readiness: Option<Readiness>,
    pub(crate) metrics: Option<Metrics>,
}

/// The answer of `/readyz?format=json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Readiness {
    conditions: Vec<Condition>,
}

/// A named health condition of a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Condition {
    name: String,
    status: Status,
    impact: Impact,
    /// Stable word for programs; empty for servers of release 0.1.
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Degraded,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Impact {
    Blocking,
    Advisory,
}

impl Readiness {
    /// Parses the answer of `/readyz?format=json`; `None` if it is none.
    pub(crate) fn parse(body: &str) -> Option<Self> {
        serde_json::from_str(body).ok().or_else(|| Self::parse_text(body))
    }

    /// Parses the text of servers of release 0.1, which ignore `format=json`: a line `[+]name: message` for each condition, with `[!]` for
    /// an advisory and `[-]` for a failed one.
    fn parse_text(body: &str) -> Option<Self> {
        let condition = |line: &str| {
            let (mark, rest) = line.split_at_checked(3)?;
            let (status, impact) = match mark {
                "[+]" => (Status::Ok, Impact::Blocking),
                "[!]" => (Status::Degraded, Impact::Advisory),
                "[-]" => (Status::Failed, Impact::Blocking),
                _ => return None,
            };
            let (name, message) = rest.split_once(": ").unwrap_or((rest, ""));
            Some(Condition {
                name: name.to_owned(),
                status,
                impact,
                reason: String::new(),
                message: message.to_owned(),
            })
        };
        let conditions: Vec<Condition> = body.lines().map(condition).collect::<Option<_>>()?;
        (!conditions.is_empty()).then_some(Self { conditions })
    }

    /// Returns the failed conditions that make the process unready, as `name: message`.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.texts(|condition| condition.status == Status::Failed && condition.impact == Impact::Blocking)
    }

    /// Returns the conditions that need attention but do not make the process unready, as `name: message`.
    pub(crate) fn advisories(&self) -> Vec<String> {
        self.texts(|condition| condition.is_advisory() && !condition.is_rejected_change())
    }

    /// Returns the conditions of changes that were rejected while the last good version is used, as `name: message`.
    pub(crate) fn rejected_changes(&self) -> Vec<String> {
        self.texts(|condition| condition.is_advisory() && condition.is_rejected_change())
    }

    fn texts(&self, wanted: impl Fn(&Condition) -> bool) -> Vec<String> {
        let wanted = self.conditions.iter().filter(|condition| wanted(condition));
        wanted.map(|condition| format!("{}: {}", condition.name, condition.message)).collect()
    }
}

impl Condition {
    fn is_advisory(&self) -> bool {
        self.status == Status::Degraded || (self.status == Status::Failed && self.impact == Impact::Advisory)
    }

    fn is_rejected_change(&self) -> bool {
        self.reason.ends_with("Rejected")
    }
}

/// The values of `/metrics` that are analyzed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metrics {
    /// Version of the webhook or agent.
    pub(crate) version: Option<String>,
    /// Expiry of the serving certificate, in seconds since 1970.
    pub(crate) certificate_expiry: Option<i64>,
    /// Number of meshed pods that lack their capture rules, or may lack them.
    pub(crate) unhealthy_pods: u64,
    /// Number of meshed pods whose annotations have changed since they were started.
    pub(crate) changed_pods: u64,
}

impl Metrics {
    /// Parses Prometheus' text format, as far as Weir's own metrics use it: no spaces or quotes in label values.
    pub(crate) fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            match name {
                "weir_agent_build_info" | "weir_webhook_build_info" => {
                    metrics.version = label(labels, "version").map(str::to_owned);
                }
                "weir_webhook_certificate_expiry_timestamp_seconds" => {
                    #[expect(clippy::cast_possible_truncation, reason = "seconds of a date; anything else saturates")]
                    let seconds = value.parse::<f64>().ok().map(|number| number as i64);
                    metrics.certificate_expiry = seconds;
                }
                "weir_agent_meshed_pods" if label(labels, "state").is_some_and(|it| UNHEALTHY_STATES.contains(&it)) => {
                    metrics.unhealthy_pods += value.parse::<u64>().unwrap_or(0);
                }
                "weir_agent_capture_annotations_changed" => metrics.changed_pods = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        metrics
    }
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_conditions_by_status_impact_and_reason() {
        let readiness = Readiness::parse(
            r#"{"ready":false,"later":1,"conditions":[
                {"name":"shutdown","status":"ok","impact":"blocking","reason":"Serving","message":"not in progress"},
                {"name":"settings","status":"degraded","impact":"blocking","reason":"ConfigurationRejected","message":"a"},
                {"name":"nodes","status":"degraded","impact":"blocking","reason":"CacheStale","message":"b"},
                {"name":"events","status":"failed","impact":"advisory","reason":"TaskExited","message":"c"},
                {"name":"ca","status":"failed","impact":"blocking","reason":"CANotLoaded","message":"d"}]}"#,
        )
        .unwrap();
        assert_eq!(readiness.failures(), ["ca: d"]);
        assert_eq!(readiness.advisories(), ["nodes: b", "events: c"]);
        assert_eq!(readiness.rejected_changes(), ["settings: a"]);
    }

    #[test]
    fn reads_the_text_of_release_0_1() {
        let readiness = Readiness::parse("[+]serving\n[-]install: no entry: yet\n[!]contention: cilium\n").unwrap();
        assert_eq!(readiness.failures(), ["install: no entry: yet"]);
        assert_eq!(readiness.advisories(), ["contention: cilium"]);
        for body in ["", "error trying to reach service", "{}", "[+]a\nb"] {
            assert_eq!(Readiness::parse(body), None, "{body}");
        }
    }

    #[test]
    fn reads_metrics_of_webhook_and_agent() {
        let webhook = Metrics::parse(
            "# TYPE weir_webhook_build info\nweir_webhook_build_info{version=\"0.1.0\"} 1\nweir_webhook_certificate_expiry_timestamp_seconds 4000000000\n# EOF\n",
        );
        assert_eq!(webhook.version.as_deref(), Some("0.1.0"));
        assert_eq!(webhook.certificate_expiry, Some(4_000_000_000));
        let agent = Metrics::parse(
            "weir_agent_meshed_pods{state=\"ok\"} 7\nweir_agent_meshed_pods{state=\"missing\"} 2\nweir_agent_meshed_pods{state=\"drifted\"} 1\n",
        );
        assert_eq!(agent.unhealthy_pods, 3);
    }
}
