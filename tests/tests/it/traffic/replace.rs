//! No connection escapes while rules are replaced `WEIR_REPLACEMENTS` (300) times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use iptables_rules::backend::Visibility;
use iptables_rules::{CaptureConfig, plan};
use weir_kernel::ApplyOutcome;
use weir_kernel::backend::{self, BackendOptions};
use weir_lab::Dial;
use weir_tests::privileged;

use super::world::{APP_USER, Ip, World};

const DEFAULT_REPLACEMENTS: u32 = 300;
/// Threads that connect, each over both families.
const WORKERS: usize = 3;
/// Bound for the threads, in case replacing never ends.
const MAX_CONNECTIONS: u32 = 10_000_000;

/// Replaces rules while threads connect; returns the number of connections and those that escaped.
fn replace_under_load(options: BackendOptions) -> (u32, Vec<String>) {
    let replacements =
        std::env::var("WEIR_REPLACEMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(DEFAULT_REPLACEMENTS);
    let world = World::new();
    // Both capture the connections below; they differ in other ports.
    let one = plan(&CaptureConfig::default()).unwrap();
    let other = plan(&CaptureConfig { outbound_ports_exclude: vec![15020, 6379], ..CaptureConfig::default() }).unwrap();
    world.pod.run(|| backend::install(&one, options, false)).unwrap().unwrap();

    let done = AtomicBool::new(false);
    let connect = || {
        let (mut made, mut escaped) = (0, Vec::new());
        while !done.load(Ordering::Relaxed) && made < MAX_CONNECTIONS {
            for ip in Ip::BOTH {
                let seen = Dial::new(APP_USER, (ip.service(), 9000).into()).connect();
                if !seen.as_ref().is_ok_and(|seen| seen.port == 15001) {
                    escaped.push(format!("{seen:?}"));
                }
                made += 1;
            }
        }
        (made, escaped)
    };
    let (made, escaped) = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORKERS).map(|_| scope.spawn(|| world.pod.run_as(APP_USER, connect).unwrap())).collect();
        let replace = || {
            for turn in 0..replacements {
                let rules = if turn % 2 == 0 { &other } else { &one };
                let (applied, _) = backend::install(rules, options, false).unwrap();
                assert_eq!(applied, ApplyOutcome::Replaced);
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.pod.run(replace).unwrap()));
        done.store(true, Ordering::Relaxed);
        let outcomes = workers.into_iter().map(|worker| worker.join().unwrap());
        let all = outcomes.fold((0, Vec::new()), |(made, mut escaped), (more, others)| {
            escaped.extend(others);
            (made + more, escaped)
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        all
    });
    assert!(made > replacements, "only {made} connections during {replacements} replacements");
    eprintln!("{options:?}: {replacements} replacements, {made} connections, {} escaped", escaped.len());
    (made, escaped)
}

#[test]
fn no_connection_escapes_while_rules_are_replaced() {
    if !privileged() {
        return;
    }
    for visibility in [Visibility::Nft, Visibility::Iptables] {
        let (made, escaped) = replace_under_load(BackendOptions { visibility, ..BackendOptions::default() });
        assert!(
            escaped.is_empty(),
            "{visibility:?}: {} of {made} connections escaped, the first one: {:?}",
            escaped.len(),
            escaped.first()
        );
    }
}
