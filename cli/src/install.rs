//! `weir install`: the objects of `weir manifest generate`, applied in an order in which no pod waits for the webhook in vain.
//!
//! ```text
//! settings ──chart──▶ objects ──▶ dry run of all (what is refused is said at once, nothing is done)
//!                                    └▶ namespaces, rights, configuration, workloads ──▶ wait until ready ──▶ webhook configurations
//! ```
//!
//! Applying is server-side, under the name `weir`: what others have set stays unless they are overruled with --force-conflicts, and
//! nothing is removed that this did not make. Installing again is upgrading.

mod node;
mod rollout;
mod uninstall;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use weir_injector::inject::selection::objects::{NODE_NAMESPACE, REVISION_LABEL, TAG_LABEL};

use crate::chart::{Release, SettingsArgs};
use crate::cluster::{Cluster, ConnectArgs};
use crate::failure::Failure;
use crate::files;
use crate::objects::{CONFIGURATION, DAEMON_SET, DEPLOYMENT, Done, How, NAMESPACE, Ref, Refused};
use crate::tag;

pub(crate) use uninstall::{UninstallArgs, run as uninstall};

/// Everything that is not waiting for pods.
const OTHERWISE: Duration = Duration::from_mins(2);

/// Where, what and how.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir install --set images.hub=registry.example/weir
  weir install --platform gke --dry-run=server
  weir install --revision canary --set images.tag=0.2.0

Exit status: 0 done, 1 a setting or an object was refused, or something did not become ready in time, 2 wrong usage or the cluster is not reached.")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    connect: ConnectArgs,

    /// Say what would be done, and do nothing: ask the server about every object, or ask nobody
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,

    /// Take over fields that others have set to something else
    #[arg(long)]
    force_conflicts: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

/// Whether and how long pods are waited for.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WaitArgs {
    /// Wait until what runs is ready
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    wait: bool,

    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    timeout: Duration,
}

impl WaitArgs {
    /// How long something is waited for that nothing goes on without.
    fn bound(&self) -> Duration {
        if self.wait { self.timeout } else { OTHERWISE.min(self.timeout) }
    }
}

/// `--dry-run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DryRun {
    /// Do it
    None,
    /// Ask nobody
    Client,
    /// Ask the server
    Server,
}

/// `90s`, `5m` or `1h`, as kubectl takes them.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time such as 90s, 5m or 1h");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?);
    let number: u32 = number.parse().map_err(|_| bad())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(bad()),
    };
    Ok(Duration::from_secs(u64::from(number) * unit))
}

/// Carries it out.
///
/// # Errors
/// Settings or objects that are refused; what did not become ready in time.
pub(crate) fn run(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let release = args.settings.release()?;
    if args.dry_run == DryRun::Client {
        for (what, _) in named(release.objects()?)? {
            say(&format!("{what} (dry run)"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    args.connect.ask(args.wait.timeout + OTHERWISE, async |cluster| install(&cluster, release, args).await)?;
    Ok(ExitCode::SUCCESS)
}

/// A line for people, at once.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    files::write(None, &format!("{line}\n")).map_err(Failure::from)
}

/// Asks a person.
///
/// # Errors
/// They say no, or nobody can be asked.
pub(crate) fn confirmed(question: &str, yes: bool) -> Result<(), Failure> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} Nobody can be asked here: say -y")));
    }
    let mut err = std::io::stderr();
    let asked = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    read.map_err(|error| Failure::usage(format!("cannot ask: {error}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::refused(vec!["nothing was done".to_owned()]))
    }
}

/// Objects with their names.
pub(crate) fn named(objects: Vec<Value>) -> Result<Vec<(Ref, Value)>, Failure> {
    let name = |object: Value| match Ref::of(&object) {
        Some(what) => Ok((what, object)),
        None => Err(Failure::refused(vec![format!("the chart made what is not known here: {}", object["kind"])])),
    };
    objects.into_iter().map(name).collect()
}

async fn install(cluster: &Cluster, release: Release, args: &InstallArgs) -> Result<(), Failure> {
    let release = considerate(cluster, release).await?;
    let (configurations, others): (Vec<_>, Vec<_>) =
        named(release.objects()?)?.into_iter().partition(|(what, _)| what.kind == CONFIGURATION);
    if !others.iter().any(|(what, _)| what.kind == DAEMON_SET) && release.needs_agent() {
        let agent = Ref::new(DAEMON_SET, NODE_NAMESPACE, node::AGENT);
        let found = cluster.object(&agent).await.map_err(|refused| cluster.failure(&agent, &refused))?;
        if found.is_none() {
            say("note: no agent is on the nodes, and pods will rely on one; --set node.enabled=true installs it")?;
        }
    }
    let everything = || others.iter().chain(&configurations);

    let how = How { dry_run: true, force: args.force_conflicts };
    let planned = try_out(cluster, everything(), how).await?;
    if args.dry_run == DryRun::Server {
        return planned.iter().try_for_each(|(what, done)| say(&format!("{what} {done} (server dry run)")));
    }

    let how = How { dry_run: false, ..how };
    apply_all(cluster, &others, how).await?;
    if args.wait.wait {
        let running = others.iter().map(|(what, _)| what).filter(|what| [DEPLOYMENT, DAEMON_SET].contains(&what.kind));
        let running: Vec<&Ref> = running.collect();
        rollout::wait(cluster, &running, args.wait.timeout).await.map_err(|failure| {
            failure.and(
                "no webhook configuration was applied; mend it, and install again (--wait=false does not wait)"
                    .to_owned(),
            )
        })?;
    }
    apply_all(cluster, &configurations, how).await?;
    tag::settle_default(cluster).await?;
    say(&release.notes()?)
}

/// Takes into account what is in the cluster: a default that another revision has taken over stays so.
async fn considerate(cluster: &Cluster, release: Release) -> Result<Release, Failure> {
    if release.revision() != "default" {
        return Ok(release);
    }
    let tagged = cluster.objects(CONFIGURATION, "", &format!("{TAG_LABEL}=default")).await;
    let tagged = tagged.map_err(|refused| cluster.failure("webhook configurations", &refused))?;
    match tagged.first().and_then(|object| object["metadata"]["labels"][REVISION_LABEL].as_str()) {
        Some(revision) if revision != "default" => {
            say(&format!(
                "revision {revision} is the default one (tag default): this one is installed, and gets no pods"
            ))?;
            Ok(release.with("/webhook/deactivated", true))
        }
        _ => Ok(release),
    }
}

/// Asks the server about every object, so that all that is wrong is known before anything is done.
async fn try_out<'a>(
    cluster: &Cluster,
    objects: impl Iterator<Item = &'a (Ref, Value)>,
    how: How,
) -> Result<Vec<(&'a Ref, Done)>, Failure> {
    let (mut planned, mut wrong, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
    let mut conflicts = false;
    for (what, object) in objects {
        if what.kind == NAMESPACE {
            namespaces.push(what.name.as_str());
        }
        match cluster.apply(what, object, how).await {
            Ok(done) => planned.push((what, done)),
            // It is made before this.
            Err(Refused::NoNamespace) if namespaces.contains(&what.namespace.as_str()) => {
                planned.push((what, Done::Created));
            }
            Err(refused) => {
                conflicts |= matches!(refused, Refused::Conflict(_));
                wrong.push(format!("{what}: {refused}"));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(planned);
    }
    let advice = if conflicts { "; --force-conflicts takes over what others have set" } else { "" };
    wrong.push(format!("{}: nothing was done{advice}", cluster.server));
    Err(Failure::refused(wrong))
}

/// Applies objects one after the other, and says of each what became of it.
pub(crate) async fn apply_all(cluster: &Cluster, objects: &[(Ref, Value)], how: How) -> Result<(), Failure> {
    for (what, object) in objects {
        let done = cluster.apply(what, object, how).await.map_err(|refused| cluster.failure(what, &refused))?;
        say(&format!("{what} {done}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_as_kubectl_takes_them() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("1h"), Ok(Duration::from_hours(1)));
        for text in ["", "5", "m", "-1s", "1d", "1.5m", "99999999999s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
