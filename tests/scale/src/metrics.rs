//! Prometheus' text format: sums of counters and quantiles of histograms.

use std::collections::BTreeMap;

/// The samples of one scrape that have a name of interest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape(Vec<(String, f64)>);

impl Scrape {
    /// Keeps the samples whose names start with one of `names`.
    pub(crate) fn parse(text: &str, names: &[&str]) -> Self {
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        Self(
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
                .collect(),
        )
    }

    /// Returns the sum of the series of a metric that have all of these labels, each as `name="value"`.
    pub(crate) fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        self.matching(metric, labels).map(|(_, value)| value).sum()
    }

    fn matching<'a>(&'a self, metric: &'a str, labels: &'a [&str]) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.iter().filter_map(move |(series, value)| {
            let rest = series.strip_prefix(metric)?;
            let is_metric = rest.is_empty() || rest.starts_with('{');
            (is_metric && labels.iter().all(|label| rest.contains(label))).then_some((rest, *value))
        })
    }

    /// Returns the cumulative counts of a histogram by the upper bound of their bucket, in bits of the (positive) float.
    fn buckets(&self, metric: &str, labels: &[&str]) -> BTreeMap<u64, f64> {
        let mut counts = BTreeMap::new();
        for (series, count) in self.matching(&format!("{metric}_bucket"), labels) {
            let bound = series.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(bound, _)| bound);
            let Some(bound) = bound.and_then(|bound| bound.replace("+Inf", "inf").parse::<f64>().ok()) else {
                continue;
            };
            *counts.entry(bound.to_bits()).or_default() += count;
        }
        counts
    }

    /// Returns the quantile of what a histogram has counted since an earlier scrape, as Prometheus' `histogram_quantile` does: linear
    /// within a bucket, and the highest finite bound beyond it. `None` if nothing was counted.
    pub(crate) fn quantile(&self, since: &Self, metric: &str, labels: &[&str], quantile: f64) -> Option<f64> {
        let before = since.buckets(metric, labels);
        let counts: Vec<(f64, f64)> = self
            .buckets(metric, labels)
            .into_iter()
            .map(|(bound, count)| (f64::from_bits(bound), count - before.get(&bound).copied().unwrap_or(0.0)))
            .collect();
        let total = counts.last()?.1;
        if total <= 0.0 {
            return None;
        }
        let rank = quantile * total;
        let index = counts.iter().position(|(_, count)| *count >= rank)?;
        let (lower, below) = index.checked_sub(1).map_or((0.0, 0.0), |previous| counts[previous]);
        let (upper, count) = counts[index];
        if upper.is_infinite() {
            return Some(lower);
        }
        Some(lower + (upper - lower) * (rank - below) / (count - below))
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact")]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP call_seconds help\n\
        call_seconds_bucket{name=\"a\",le=\"0.1\"} 10\ncall_seconds_bucket{name=\"a\",le=\"1\"} 20\ncall_seconds_bucket{name=\"a\",le=\"+Inf\"} 20\n\
        call_seconds_bucket{name=\"b\",le=\"0.1\"} 10\ncall_seconds_bucket{name=\"b\",le=\"1\"} 10\ncall_seconds_bucket{name=\"b\",le=\"+Inf\"} 11\n\
        call_seconds_sum{name=\"a\"} 5\nother 7\n";

    #[test]
    fn sums_only_series_of_the_metric_with_the_labels() {
        let scrape = Scrape::parse(TEXT, &["call_seconds"]);
        assert_eq!(scrape.sum("call_seconds_bucket", &["name=\"b\"", "le=\"+Inf\""]), 11.0);
        assert_eq!(scrape.sum("call_seconds", &[]), 0.0);
        assert_eq!(scrape.sum("other", &[]), 0.0);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let (scrape, none) = (Scrape::parse(TEXT, &["call_seconds"]), Scrape::default());
        assert_eq!(scrape.quantile(&none, "call_seconds", &["name=\"a\""], 0.25), Some(0.05));
        assert_eq!(scrape.quantile(&none, "call_seconds", &["name=\"a\""], 0.75), Some(0.55));
        assert_eq!(scrape.quantile(&none, "call_seconds", &[], 0.99), Some(1.0), "the highest finite bound");
        assert_eq!(scrape.quantile(&scrape, "call_seconds", &[], 0.5), None, "nothing since then");
    }
}
