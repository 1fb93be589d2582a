//! The `/metrics` of a process: the format that the client asks for, and the metrics about the process itself.

use std::borrow::Cow;
use std::fmt::{Error, Write as _};
use std::fs;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

const OPENMETRICS: &str = "application/openmetrics-text";
const OPENMETRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Answers a scrape with metrics that are encoded as `OpenMetrics`: in that format if the client prefers it, else in Prometheus' text format.
pub fn respond(headers: &HeaderMap, openmetrics: String) -> Response {
    let (content_type, body) =
        if prefers_openmetrics(headers) { (OPENMETRICS_TYPE, openmetrics) } else { (TEXT_TYPE, to_text(&openmetrics)) };
    ([(header::CONTENT_TYPE, content_type), (header::VARY, HeaderValue::from_static("accept"))], body).into_response()
}

/// Compares the weights of the two formats in `Accept`; `*/*` stands for the text format.
fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let (mut openmetrics, mut text) = (0.0_f32, 0.0_f32);
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        match kind.as_str() {
            OPENMETRICS => openmetrics = openmetrics.max(weight),
            "text/plain" | "text/*" | "*/*" => text = text.max(weight),
            _ => {}
        }
    }
    openmetrics > 0.0 && openmetrics >= text
}

/// Converts `OpenMetrics` to Prometheus' text format 0.0.4, where the names of metrics are those of their samples.
fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (name, kind) = match kind {
                "counter" => (Cow::from(format!("{name}_total")), kind),
                "info" => (Cow::from(format!("{name}_info")), "gauge"),
                "unknown" => (Cow::from(name), "untyped"),
                _ => (Cow::from(name), kind),
            };
            if let Some(help) = help.take() {
                let _ = writeln!(text, "# HELP {name} {help}");
            }
            let _ = writeln!(text, "# TYPE {name} {kind}");
        } else if !line.starts_with("# ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Metrics `process_*` of this process, with the names of Prometheus' own client libraries. Read from `/proc` at each scrape; what cannot
/// be read is left out.
#[derive(Debug)]
pub struct ProcessCollector;

/// Clock ticks per second of the files in `/proc`: the same on every architecture (`USER_HZ`, `proc(5)`).
const TICKS: f64 = 100.0;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The fields after the name of the program, which may hold anything: the first one is field 3 of proc(5).
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok());
        let mut put = |name: &str, help: &str, metric: &dyn ConstMetric| metric.put(&mut encoder, name, help);
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let seconds = ConstCounter::new((user + system) / TICKS);
            put("process_cpu_seconds", "User and system CPU time, in seconds", &seconds)?;
        }
        if let (Some(start), Some(boot)) = (field(22), boot_time()) {
            let help = "Start of the process, in seconds since 1970";
            put("process_start_time_seconds", help, &ConstGauge::new(boot + start / TICKS))?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name| number_after(&status, name).map(|kib| ConstGauge::new(kib * 1024.0));
        if let Some(bytes) = kib("VmRSS:") {
            put("process_resident_memory_bytes", "Resident memory, in bytes", &bytes)?;
        }
        if let Some(bytes) = kib("VmSize:") {
            put("process_virtual_memory_bytes", "Virtual memory, in bytes", &bytes)?;
        }
        if let Some(threads) = number_after(&status, "Threads:") {
            put("process_threads", "Threads", &ConstGauge::new(threads))?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
            put("process_open_fds", "Open file descriptors", &ConstGauge::new(open))?;
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(limit) = number_after(&limits, "Max open files") {
            put("process_max_fds", "Limit of open file descriptors", &ConstGauge::new(limit))?;
        }
        Ok(())
    }
}

/// A metric with a value, of any type.
trait ConstMetric {
    fn put(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), Error>;
}

impl<M: EncodeMetric> ConstMetric for M {
    fn put(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

/// Seconds since 1970 at which the machine started.
fn boot_time() -> Option<f64> {
    number_after(&fs::read_to_string("/proc/stat").ok()?, "btime")
}

/// Returns the number after the name that a line starts with.
fn number_after(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Registry;

    use super::*;

    fn accepts(accept: &str) -> bool {
        let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        prefers_openmetrics(&headers)
    }

    #[test]
    fn client_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert!(accepts(prometheus));
        assert!(accepts("application/openmetrics-text; version=1.0.0; charset=utf-8"));
        for text in [
            "*/*",
            "text/plain",
            "text/plain, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0",
            "text/html",
        ] {
            assert!(!accepts(text), "{text}");
        }
        assert!(!prefers_openmetrics(&HeaderMap::new()));
    }

    #[test]
    fn text_format_names_metrics_as_their_samples() {
        let mut registry = Registry::default();
        let calls = Counter::<u64>::default();
        registry.register("calls", "Calls", calls.clone());
        registry.register("build", "Build information", Info::new([("version", "1")]));
        calls.inc();
        let mut openmetrics = String::new();
        encode(&mut openmetrics, &registry).unwrap();
        assert_eq!(
            to_text(&openmetrics),
            "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total 1\n\
             # HELP build_info Build information.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n"
        );
    }

    #[test]
    fn process_metrics_describe_this_process() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| number_after(&text, name).unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(value("process_resident_memory_bytes ") > 100_000.0);
        assert!(value("process_virtual_memory_bytes ") >= value("process_resident_memory_bytes "));
        assert!(value("process_open_fds ") >= 3.0 && value("process_max_fds ") >= value("process_open_fds "));
        assert!(value("process_threads ") >= 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let start = value("process_start_time_seconds ");
        assert!(start > now - 3600.0 * 24.0 && start < now + 5.0, "{start} {now}");
        assert!(value("process_cpu_seconds_total ") >= 0.0);
    }
}
