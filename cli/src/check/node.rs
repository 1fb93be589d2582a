//! `weir check node`: the pods of the mesh on a node, and whether their capture rules are in place, as the node's agent sees it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::agent::{AgentArgs, Listing};
use crate::failure::{Failure, exit};
use crate::files;

/// Options of `weir check node`.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// Form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table.
    Text,
    /// The agent's own words.
    Json,
}

/// Carries it out.
///
/// # Errors
/// Where the agent cannot be asked.
pub(super) fn run(args: &NodeArgs) -> Result<ExitCode, Failure> {
    let (listing, body) = args.agent.listing()?;
    let (text, good) = report(&listing);
    files::write(None, if args.output == Form::Json { &body } else { &text })?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(exit::FINDINGS) })
}

/// The table, and whether all is well.
fn report(listing: &Listing) -> (String, bool) {
    let mut text = String::new();
    let width = listing.pods.iter().map(|pod| pod.namespace.len() + pod.name.len() + 1).max().unwrap_or(0).max(3);
    if !listing.pods.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:width$}  {:11}  {:7}  DETAIL", "POD", "STATE", "REPAIRS");
    }
    for pod in &listing.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let line = format!("{name:width$}  {:11}  {:7}  {}", pod.state, pod.repairs, pod.detail.join("; "));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let bad = listing.pods.iter().filter(|pod| pod.is_bad()).count();
    let _ = writeln!(
        text,
        "node {}: {} of {} pods of the mesh without their rules",
        if listing.node.is_empty() { "(without a name)" } else { &listing.node },
        bad,
        listing.pods.len()
    );
    if let Some(trouble) = &listing.trouble {
        let _ = writeln!(text, "the agent is not up to date: {trouble}");
    }
    if !listing.synced {
        let _ = writeln!(text, "the agent does not know the pods of its node");
    }
    (text, bad == 0 && listing.synced)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(listing: &str) -> (String, bool) {
        report(&serde_json::from_str(listing).unwrap())
    }

    #[test]
    fn lists_what_is_wrong() {
        let (text, good) = reported(
            r#"{"node":"n1","synced":true,"ageSeconds":1,"repairs":false,"pods":[
                {"namespace":"shop","name":"web-1","uid":"1","state":"ok","foundBy":"plugin","repairs":2},
                {"namespace":"shop","name":"db","uid":"2","state":"drifted","detail":["rule 3 differs","x"],"repairs":0}]}"#,
        );
        assert!(!good);
        insta::assert_snapshot!(text, @r"
        POD         STATE        REPAIRS  DETAIL
        shop/web-1  ok                 2
        shop/db     drifted            0  rule 3 differs; x
        node n1: 1 of 2 pods of the mesh without their rules
        ");
    }

    #[test]
    fn an_agent_that_knows_nothing_is_not_well() {
        let (text, good) = reported(r#"{"node":"","synced":false,"trouble":"401 Unauthorized","pods":[]}"#);
        assert!(!good);
        insta::assert_snapshot!(text, @r"
        node (without a name): 0 of 0 pods of the mesh without their rules
        the agent is not up to date: 401 Unauthorized
        the agent does not know the pods of its node
        ");
        assert!(reported(r#"{"node":"n","synced":true,"pods":[{"namespace":"a","name":"b","state":"pending"}]}"#).1);
    }
}
