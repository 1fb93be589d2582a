//! What the benches share: samples and their summary.
//!
//! ```text
//! benches/add.rs ─── processes: weir-cni ADD, iptables-restore, nft -f, and the floor (src/bin/netns-floor.rs)
//! benches/agent.rs ── the node agent: memory, repair of a full node, ADD with a question
//! benches/inject.rs ─ one pod through the injector, in process
//! benches/serve.rs ── the webhook over TLS, asked by several clients at once
//! ```

use std::time::Duration;

/// Wall times of one method.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value below which `percent` of the samples lie, in microseconds; 0 without samples.
    pub fn percentile_us(&self, percent: usize) -> u128 {
        self.permille_us(percent * 10)
    }

    /// The same in thousandths.
    pub fn permille_us(&self, permille: usize) -> u128 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * permille.min(1000) / 1000).map_or(0, Duration::as_micros)
    }
}

impl FromIterator<Samples> for Samples {
    fn from_iter<I: IntoIterator<Item = Self>>(several: I) -> Self {
        Self(several.into_iter().flat_map(|samples| samples.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_sorted_samples() {
        let mut samples = Samples::default();
        for us in [50, 10, 40, 20, 30] {
            samples.push(Duration::from_micros(us));
        }
        assert_eq!((samples.percentile_us(0), samples.percentile_us(50), samples.percentile_us(100)), (10, 30, 50));
    }

    #[test]
    fn no_samples_give_zero() {
        assert_eq!(Samples::default().percentile_us(50), 0);
    }
}
