//! The error rate of a namespace, from a Prometheus.

use std::time::Duration;

use serde_json::Value;

/// Timeout of a query.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Stands for the namespace in a query.
const NAMESPACE: &str = "$namespace";
/// Share of the requests to a namespace that its proxies have answered with 5xx.
pub(super) const DEFAULT_QUERY: &str = "sum(rate(istio_requests_total{reporter=\"destination\",destination_workload_namespace=\"$namespace\",response_code=~\"5..\"}[1m])) / sum(rate(istio_requests_total{reporter=\"destination\",destination_workload_namespace=\"$namespace\"}[1m]))";

/// A Prometheus, and what it is asked.
#[derive(Debug, Clone)]
pub(super) struct Prometheus {
    url: String,
    query: String,
}

impl Prometheus {
    /// Returns the Prometheus at a URL.
    ///
    /// # Errors
    /// The URL is not `http://HOST[:PORT][/PATH]`.
    pub(super) fn new(url: &str, query: &str) -> Result<Self, String> {
        let host = url.strip_prefix("http://").filter(|host| !host.is_empty() && !host.contains(['?', '#']));
        host.ok_or_else(|| {
            format!("cannot use --prometheus {url:?}: write http://HOST:PORT; kubectl port-forward gives one")
        })?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), query: query.to_owned() })
    }

    /// Returns the result of the query for a namespace, from 0 to 1; 0 without any requests.
    ///
    /// # Errors
    /// It does not answer, or with something else than one number.
    pub(super) async fn error_rate(&self, namespace: &str) -> Result<f64, String> {
        let this = self.clone();
        let query = self.query.replace(NAMESPACE, namespace);
        let answer = tokio::task::spawn_blocking(move || this.ask(&query)).await;
        parse(&answer.map_err(|error| error.to_string())??)
    }

    fn ask(&self, query: &str) -> Result<String, String> {
        let url = format!("{}/api/v1/query", self.url);
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false);
        let agent = ureq::Agent::new_with_config(config.build());
        let sent = agent.get(&url).query("query", query).call();
        let text = sent.and_then(|mut response| response.body_mut().read_to_string());
        text.map_err(|error| format!("{url}: {error}"))
    }
}

fn parse(text: &str) -> Result<f64, String> {
    let answer: Value = serde_json::from_str(text).map_err(|_| format!("not an answer of Prometheus: {text:.80}"))?;
    if answer["status"] != "success" {
        return Err(format!("Prometheus rejects the query: {}", answer["error"].as_str().unwrap_or(text)));
    }
    let data = &answer["data"];
    let value = match data["resultType"].as_str() {
        Some("scalar") => &data["result"][1],
        _ => match data["result"].as_array().map(Vec::as_slice) {
            Some([]) => return Ok(0.0),
            Some([one]) => &one["value"][1],
            _ => return Err("the query has more than one result: sum() gives one".to_owned()),
        },
    };
    let number: f64 = value.as_str().and_then(|text| text.parse().ok()).ok_or("the result is not a number")?;
    // 0 of 0 requests.
    Ok(if number.is_nan() { 0.0 } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_one_number() {
        let vector =
            |items: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{items}]}}}}"#);
        let item = |value: &str| format!(r#"{{"metric":{{}},"value":[1,"{value}"]}}"#);
        assert_eq!(parse(&vector(&item("0.25"))), Ok(0.25));
        assert_eq!((parse(&vector("")), parse(&vector(&item("NaN")))), (Ok(0.0), Ok(0.0)));
        assert_eq!(parse(r#"{"status":"success","data":{"resultType":"scalar","result":[1,"0.5"]}}"#), Ok(0.5));
        assert!(parse(&vector(&[item("1"), item("2")].join(","))).unwrap_err().contains("more than one"));
        assert!(parse(r#"{"status":"error","error":"parse error"}"#).unwrap_err().contains("parse error"));
        assert!(parse("<html>").is_err());
    }

    #[test]
    fn url_has_a_scheme_and_a_host() {
        assert!(Prometheus::new("http://127.0.0.1:9090/", DEFAULT_QUERY).is_ok());
        for wrong in ["https://host", "host:9090", "http://", "http://host/?x"] {
            assert!(Prometheus::new(wrong, DEFAULT_QUERY).is_err(), "{wrong}");
        }
    }
}
