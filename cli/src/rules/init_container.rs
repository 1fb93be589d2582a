//! The configuration that the arguments of `istio-init` ask for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use iptables_rules::CaptureConfig;
use serde_json::Value;

use super::subject::INIT;

/// Derives the configuration that the container `istio-init` installs, in a pod with these DNS servers.
///
/// # Errors
/// Every argument and variable that is not understood.
pub(crate) fn capture_config(container: &Value, dns_servers: &[IpAddr]) -> Result<CaptureConfig, Vec<String>> {
    let (args, env) = command_line(container)?;
    weir_iptables::capture_config(&args, &env, dns_servers)
        .map_err(|errors| errors.iter().map(|error| format!("init container {INIT}: {error}")).collect())
}

type CommandLine = (Vec<String>, BTreeMap<String, String>);

/// Returns the arguments and the literal variables of a container.
fn command_line(container: &Value) -> Result<CommandLine, Vec<String>> {
    let list = |key: &str| container[key].as_array().into_iter().flatten();
    let words = list("command").chain(list("args"));
    let args: Vec<String> = words.filter_map(|word| word.as_str().map(str::to_owned)).collect();
    let shells = ["sh", "bash", "/bin/sh", "/bin/bash"];
    if args.first().is_some_and(|first| shells.contains(&first.as_str())) {
        return Err(vec![format!("init container {INIT}: runs a shell: its rules are not known")]);
    }
    let env =
        list("env").filter_map(|entry| Some((entry["name"].as_str()?.to_owned(), entry["value"].as_str()?.to_owned())));
    Ok((args, env.collect()))
}
