//! `weir migrate run` and `weir migrate rollback`: one namespace after the other.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde_json::Map;
use weir_injector::selection::configurations::{AGENT_NAMESPACE, OWNER_REVISION_LABEL};

use super::drive::{ErrorBudget, Outcome, migrate, restore};
use super::injector::Vendor;
use super::inventory::OptIn;
use super::plan::{NamespacePlan, Plan};
use super::prometheus::{DEFAULT_QUERY, Prometheus};
use super::record::{InjectionLabels, Phase};
use super::step::Limits;
use super::world::ClusterNamespace;
use super::{ScopeArgs, read_plan};
use crate::chart::ChartArgs;
use crate::cluster::Cluster;
use crate::console::{confirm, print_line};
use crate::duration;
use crate::failure::Failure;
use crate::install::{self, DryRun, InstallOptions, Operation};
use crate::objects::{DAEMON_SET, DEPLOYMENT, ObjectRef};
use crate::rollout::{self, WaitArgs};

/// Limit of a whole run. Each wait in it has a limit of its own.
pub(super) const RUN_TIMEOUT: Duration = Duration::from_hours(24);

/// Options of restarts.
#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    /// Restart this many workloads of a namespace at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Give up on a namespace without progress for this long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,

    /// Print what would be done
    #[arg(long)]
    dry_run: bool,

    /// Skip the confirmation
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    yes: bool,
}

/// Options of `weir migrate run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) scope: ScopeArgs,

    /// Install the revision of Weir beside Istio if it is not there, with this setting of the chart; repeatable
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,

    /// The same with a values file of the chart; repeatable
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<String>,

    #[command(flatten)]
    restarts: RestartArgs,

    /// Restart no further workload while more pods of the namespace than this are unavailable
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    max_unavailable: u32,

    /// Move workloads whose captured traffic changes or cannot be compared, too
    #[arg(long)]
    accept_changes: bool,

    /// Watch the error rate in this Prometheus
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,

    /// Query of the error rate, from 0 to 1; `$namespace` is the namespace [default: the share of 5xx in istio_requests_total]
    #[arg(long, value_name = "PROMQL", requires = "prometheus")]
    query: Option<String>,

    /// Roll a namespace back if more requests fail than this share
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, requires = "prometheus", value_parser = share)]
    max_error_rate: f64,

    /// Watch the error rate for this long after the last restart in a namespace
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse, requires = "prometheus")]
    observe: Duration,
}

/// Options of `weir migrate rollback`.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    pub(super) scope: ScopeArgs,

    #[command(flatten)]
    restarts: RestartArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 1".to_owned()) }
}

/// Moves namespaces to Weir.
///
/// # Errors
/// Weir is not installed beside Istio, a namespace cannot move without a person, or one was rolled back.
pub(super) async fn run(cluster: &Cluster, args: &RunArgs) -> Result<(), Failure> {
    let query = args.query.as_deref().unwrap_or(DEFAULT_QUERY);
    let prometheus =
        args.prometheus.as_ref().map(|url| Prometheus::new(url, query)).transpose().map_err(Failure::usage)?;
    let mut plan = read_plan(cluster, &args.scope, &HashMap::new()).await?;
    let is_installed_now = install_beside(cluster, &plan, args).await?;
    if is_installed_now && !args.restarts.dry_run {
        plan = read_plan(cluster, &args.scope, &HashMap::new()).await?;
    }
    // What was only previewed does not run.
    if !(is_installed_now && args.restarts.dry_run) {
        require_weir(cluster, &plan).await?;
    }
    let selected = selected(&plan, args.accept_changes).map_err(Failure::findings)?;
    for namespace in &selected {
        for line in preview(namespace, &plan.revision) {
            print_line(&line)?;
        }
    }
    if selected.is_empty() {
        return print_line("no namespace is injected by Istio; weir migrate finish removes its injector and istio-cni");
    }
    if args.restarts.dry_run {
        return print_line("dry run: nothing was changed");
    }
    confirm(
        &format!("{}: move {} namespaces, one after the other?", cluster.server, selected.len()),
        args.restarts.yes,
    )?;
    let limits = Limits {
        revision: plan.revision.clone(),
        max_unavailable: args.max_unavailable.into(),
        observe: if prometheus.is_some() { args.observe } else { Duration::ZERO },
        ..args.restarts.limits()
    };
    for (done, namespace) in selected.iter().enumerate() {
        print_line(&format!("namespace {} ({} of {})", namespace.name, done + 1, selected.len()))?;
        let mut world =
            ClusterNamespace::new(cluster, &namespace.name, &args.scope.node_namespace, prometheus.as_ref());
        let left = || format!("namespaces left: {}; run weir migrate run again to go on", selected.len() - done);
        match migrate(&mut world, &limits, ErrorBudget(args.max_error_rate)).await {
            Ok(Outcome::Reached) => print_line(&format!("{}: moved", namespace.name))?,
            Ok(Outcome::Refused(why)) => return Err(Failure::findings(prefixed(namespace, &why)).and(left())),
            Ok(Outcome::RolledBack(why)) => {
                let state = format!("namespace {} was rolled back to {}", namespace.name, former(namespace));
                return Err(Failure::findings(prefixed(namespace, &why)).and(state).and(left()));
            }
            Err(failure) => return Err(failure.and(left())),
        }
    }
    print_line(
        "all of them have moved; weir migrate rollback moves them back, weir migrate finish removes Istio's injector and istio-cni",
    )
}

/// Brings namespaces back under their former injectors.
///
/// # Errors
/// Their injector is not there any more, or workloads do not become ready.
pub(super) async fn rollback(cluster: &Cluster, args: &RollbackArgs) -> Result<(), Failure> {
    let plan = read_plan(cluster, &args.scope, &std::collections::HashMap::new()).await?;
    let records: Vec<_> = plan.namespaces.iter().filter(|namespace| namespace.record.is_some()).collect();
    if records.is_empty() {
        return print_line("no namespace was moved by weir migrate");
    }
    let missing: Vec<String> = records
        .iter()
        .filter(|namespace| !is_served(namespace, &plan))
        .map(|namespace| {
            format!(
                "namespace {}: no injector selects {}; install Istio's injector (and istio-cni) again first",
                namespace.name,
                former(namespace)
            )
        })
        .collect();
    if !missing.is_empty() {
        return Err(Failure::findings(missing));
    }
    for namespace in &records {
        print_line(&format!(
            "namespace {}: back to {}; {} workloads",
            namespace.name,
            former(namespace),
            namespace.workloads.len()
        ))?;
    }
    if args.restarts.dry_run {
        return print_line("dry run: nothing was changed");
    }
    confirm(&format!("{}: move {} namespaces back?", cluster.server, records.len()), args.restarts.yes)?;
    for namespace in &records {
        let mut world = ClusterNamespace::new(cluster, &namespace.name, &args.scope.node_namespace, None);
        restore(&mut world, &args.restarts.limits()).await?;
        print_line(&format!("{}: back under its former injector", namespace.name))?;
    }
    Ok(())
}

impl RestartArgs {
    fn limits(&self) -> Limits {
        Limits {
            revision: String::new(),
            run: Timestamp::now().as_second().to_string(),
            batch: usize::try_from(self.batch).unwrap_or(1),
            max_unavailable: 0,
            timeout: self.timeout,
            observe: Duration::ZERO,
        }
    }
}

fn prefixed(namespace: &NamespacePlan, reasons: &[String]) -> Vec<String> {
    reasons.iter().map(|reason| format!("namespace {}: {reason}", namespace.name)).collect()
}

fn former(namespace: &NamespacePlan) -> String {
    match (&namespace.record, &namespace.opt_in) {
        (Some(record), _) => record.former.describe(),
        (None, opt_in) => opt_in.description(),
    }
}

/// Returns whether an injector of Istio selects the former labels of a namespace.
fn is_served(namespace: &NamespacePlan, plan: &Plan) -> bool {
    let Some(record) = &namespace.record else { return true };
    let labels = record.former.labels();
    let injectors = plan.injectors.iter().filter(|injector| injector.vendor == Vendor::Istio);
    injectors.into_iter().any(|injector| injector.selects(&labels, &Map::new()))
}

/// Installs Weir beside Istio if it is not there and the command line has settings for it. Returns whether it did, or previewed it.
///
/// # Errors
/// As for `weir install`.
async fn install_beside(cluster: &Cluster, plan: &Plan, args: &RunArgs) -> Result<bool, Failure> {
    if args.set.is_empty() && args.values.is_empty() {
        return Ok(false);
    }
    if plan.is_installed {
        print_line(&format!("revision {} is installed: --set and --values have no effect", plan.revision))?;
        return Ok(false);
    }
    let chart = ChartArgs::beside_istio(&plan.revision, &args.scope.istio_namespace, &args.values, &args.set);
    let release = chart.release()?;
    install::require_registry(&release.objects()?)?;
    let options = InstallOptions {
        dry_run: if args.restarts.dry_run { DryRun::Server } else { DryRun::None },
        force_conflicts: false,
        yes: args.restarts.yes,
        wait: WaitArgs { wait: true, timeout: args.restarts.timeout },
    };
    install::install(cluster, release, &options, Operation::Install).await?;
    Ok(true)
}

/// Requires that Weir runs beside Istio under its own revision.
async fn require_weir(cluster: &Cluster, plan: &Plan) -> Result<(), Failure> {
    let revision = &plan.revision;
    if !plan.is_installed {
        return Err(Failure::findings(vec![format!(
            "revision {revision} of Weir is not installed; --set images.hub=REGISTRY/FOLDER installs it beside Istio before the \
             first namespace moves"
        )]));
    }
    if plan
        .injectors
        .iter()
        .any(|injector| injector.vendor == Vendor::Istio && injector.selecting_revision() == revision)
    {
        return Err(Failure::findings(vec![format!(
            "Istio's injector selects istio.io/rev={revision} as well: install Weir under another revision"
        )]));
    }
    let labels = format!("{OWNER_REVISION_LABEL}={revision}");
    let webhooks = cluster.objects(DEPLOYMENT, "", &labels).await?;
    let mut workloads: Vec<ObjectRef> = webhooks.iter().filter_map(ObjectRef::of).collect();
    let agent = ObjectRef::new(DAEMON_SET, AGENT_NAMESPACE, crate::node_release::AGENT);
    workloads.extend(cluster.object(&agent).await?.map(|_| agent));
    rollout::wait(cluster, &workloads.iter().collect::<Vec<_>>(), rollout::REQUESTS_TIMEOUT).await
}

/// Chooses the namespaces to move.
///
/// # Errors
/// Everything for which a person has to decide first.
fn selected(plan: &Plan, accept_changes: bool) -> Result<Vec<&NamespacePlan>, Vec<String>> {
    let mut selected = Vec::new();
    let mut refused = Vec::new();
    for namespace in &plan.namespaces {
        let phase = namespace.record.as_ref().map(|record| record.phase);
        if matches!(phase, Some(Phase::Moving | Phase::Restoring)) {
            selected.push(namespace);
            continue;
        }
        if !matches!(namespace.opt_in, OptIn::Istio(_)) {
            continue;
        }
        refused.extend(prefixed(namespace, &namespace.reasons));
        for workload in namespace.workloads.iter().filter(|_| !accept_changes) {
            let verdict = &workload.assessment.verdict;
            if !verdict.is_safe() {
                let why = verdict.sentences().first().map(String::as_str).unwrap_or_default();
                refused.push(format!(
                    "namespace {}: {}/{}: {}: {why}; --accept-changes moves it all the same",
                    namespace.name,
                    workload.kind,
                    workload.name,
                    verdict.name()
                ));
            }
        }
        selected.push(namespace);
    }
    if refused.is_empty() { Ok(selected) } else { Err(refused) }
}

fn preview(namespace: &NamespacePlan, revision: &str) -> Vec<String> {
    let to = InjectionLabels::of_revision(revision).describe();
    let phase =
        namespace.record.as_ref().map_or(String::new(), |record| format!(" (resuming: {})", record.phase.name()));
    let moving = namespace.workloads.iter().filter(|workload| workload.assessment.reasons.is_empty()).count();
    let mut lines =
        vec![format!("namespace {}: {} -> {to}, {moving} workloads{phase}", namespace.name, former(namespace))];
    for workload in &namespace.workloads {
        let name = format!("{}/{}", workload.kind, workload.name);
        lines.extend(workload.assessment.reasons.iter().map(|reason| format!("  {name} stays under Istio: {reason}")));
    }
    lines
}
