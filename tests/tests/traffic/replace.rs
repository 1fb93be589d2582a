//! Replacing rules while connections are made: none may escape in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use iptables_rules::nft::{self, Applied};
use iptables_rules::{CaptureConfig, plan, route};
use weir_lab::Dial;
use weir_tests::privileged;

use crate::world::{APP_USER, Ip, World};

/// How often rules are replaced.
const REPLACEMENTS: u32 = 200;
/// Where the caller stops by itself, should replacing never end.
const MOST_CONNECTIONS: u32 = 1_000_000;

#[test]
fn no_connection_escapes_while_rules_are_replaced() {
    if !privileged() {
        return;
    }
    let world = World::new();
    // Both capture the connections below; they differ in what does not concern them.
    let one = plan(&CaptureConfig::default()).unwrap();
    let other = plan(&CaptureConfig { outbound_ports_exclude: vec![15020, 6379], ..CaptureConfig::default() }).unwrap();
    world.pod.run(|| nft::apply(&one)).unwrap().unwrap();
    world.pod.run(|| route::apply(&one.routing)).unwrap().unwrap();

    let done = AtomicBool::new(false);
    let (made, escaped) = thread::scope(|scope| {
        scope.spawn(|| {
            let replace = || {
                for turn in 0..REPLACEMENTS {
                    let rules = if turn % 2 == 0 { &other } else { &one };
                    assert_eq!(nft::apply(rules).unwrap(), Applied::Replaced);
                }
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.pod.run(replace).unwrap()));
            done.store(true, Ordering::Relaxed);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        let connect = || {
            let (mut made, mut escaped) = (0u32, Vec::new());
            while !done.load(Ordering::Relaxed) && made < MOST_CONNECTIONS {
                for ip in Ip::BOTH {
                    let seen = Dial::new(APP_USER, (ip.service(), 9000).into()).now();
                    if !seen.as_ref().is_ok_and(|seen| seen.port == 15001) {
                        escaped.push(format!("{seen:?}"));
                    }
                    made += 1;
                }
            }
            (made, escaped)
        };
        world.pod.run_as(APP_USER, connect).unwrap()
    });
    assert!(made > REPLACEMENTS, "only {made} connections during {REPLACEMENTS} replacements");
    assert!(
        escaped.is_empty(),
        "{} of {made} connections escaped, the first one: {:?}",
        escaped.len(),
        escaped.first()
    );
}
