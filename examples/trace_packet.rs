//! Traces a packet through the rules of a pod without a kernel, as `weir explain` does: which rules it meets, and where it ends.

#![expect(clippy::print_stdout, reason = "the output of the example")]

use anyhow::bail;
use iptables_rules::trace::{ConntrackState, Disposition, Owner, Packet, PacketOrigin, RuleResult, Transport};
use iptables_rules::{CaptureConfig, plan};

fn main() -> anyhow::Result<()> {
    // The default configuration captures everything but the proxy's own traffic.
    let rules = match plan(&CaptureConfig::default()) {
        Ok(rules) => rules,
        Err(unsupported) => bail!("unsupported settings: {unsupported:?}"),
    };
    for (name, uid) in [("the application", 1000), ("the proxy", 1337)] {
        // The first packet of a connection to a service outside of the pod.
        let packet = Packet {
            origin: PacketOrigin::Sent { interface: "eth0".to_owned(), owner: Some(Owner { uid, gid: uid }) },
            transport: Transport::Tcp,
            source: "10.0.0.7".parse()?,
            source_port: 40000,
            destination: "192.0.2.1".parse()?,
            destination_port: 443,
            mark: 0,
            connection_mark: 0,
            state: ConntrackState::New,
        };
        let trace = rules.trace(&packet);

        println!("{name} (uid {uid}) connects to 192.0.2.1:443:");
        for visit in trace.tables.iter().flat_map(|table| &table.rules) {
            let result = match &visit.result {
                RuleResult::Match(_) => "matches",
                RuleResult::NoMatch(_) => "does not match",
                RuleResult::Unknown(_) => "cannot be evaluated",
            };
            println!("  {} {}: {} ({result})", visit.chain, visit.number, visit.rule);
        }
        match trace.disposition {
            Disposition::Redirected { port } => println!("  redirected to port {port}: captured by the proxy"),
            other => println!("  {other:?}: not captured"),
        }
    }
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
