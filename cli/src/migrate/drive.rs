//! Takes the steps of a namespace's migration until it has reached its goal, and rolls it back on the first failure.

use std::time::Duration;

use super::record::{InjectionLabels, Phase, Record};
use super::step::{Conditions, Goal, Limits, NamespaceView, Step, decide};
use crate::failure::Failure;

/// Consecutive queries of the error rate without an answer after which a namespace has failed.
const MAX_UNANSWERED: u32 = 15;

/// Access to one namespace of a cluster.
pub(super) trait World {
    /// Observes the namespace.
    async fn observe(&mut self, goal: Goal) -> Result<NamespaceView, Failure>;
    /// Writes labels and record in one request, or removes the record.
    async fn write(&mut self, record: Option<&Record>, labels: &InjectionLabels) -> Result<(), Failure>;
    /// Restarts a workload and marks it in one request.
    async fn restart(&mut self, workload: &str, marker: &str) -> Result<(), Failure>;
    /// Returns the share of requests that fail, from 0 to 1; `None` if nobody watches it.
    async fn error_rate(&mut self) -> Result<Option<f64>, String>;
    /// Waits until it is worth looking again.
    async fn pause(&mut self);
    /// Returns the time since some moment.
    fn now(&self) -> Duration;
    /// Tells the person what happens.
    fn report(&mut self, text: &str) -> Result<(), Failure>;
}

/// Highest error rate that a migration goes on with.
#[derive(Debug, Clone, Copy)]
pub(super) struct ErrorBudget(pub(super) f64);

/// End of a namespace's migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The goal is reached.
    Reached,
    /// It could not begin, and nothing was changed.
    Refused(Vec<String>),
    /// It failed for these reasons, and is under its former injector again.
    RolledBack(Vec<String>),
}

/// Moves a namespace, and rolls it back if that fails. What an earlier run has begun is continued, also a rollback.
///
/// # Errors
/// The cluster rejects a request or is unreachable, so that the next run has to go on; or the rollback fails, too.
pub(super) async fn migrate(world: &mut impl World, limits: &Limits, budget: ErrorBudget) -> Result<Outcome, Failure> {
    let view = world.observe(Goal::Move).await?;
    let is_restoring = view.record.as_ref().is_some_and(|record| record.phase == Phase::Restoring);
    let reasons = if is_restoring {
        vec!["an earlier run has failed, and its rollback was interrupted".to_owned()]
    } else {
        match toward(world, Goal::Move, limits, budget).await? {
            Ok(()) => return Ok(Outcome::Reached),
            Err(reasons) => reasons,
        }
    };
    if world.observe(Goal::Move).await?.record.is_none() {
        return Ok(Outcome::Refused(reasons));
    }
    for reason in &reasons {
        world.report(&format!("failed: {reason}"))?;
    }
    world.report("rolling back")?;
    restore(world, limits)
        .await
        .map_err(|failure| failure.and(format!("it was rolled back because: {}", reasons.join("; "))))?;
    Ok(Outcome::RolledBack(reasons))
}

/// Brings a namespace back under its former injector.
///
/// # Errors
/// The cluster rejects a request, or workloads do not become ready.
pub(super) async fn restore(world: &mut impl World, limits: &Limits) -> Result<(), Failure> {
    match toward(world, Goal::Restore, limits, ErrorBudget(1.0)).await? {
        Ok(()) => Ok(()),
        Err(reasons) => {
            let advice = "the rollback is not complete: fix the workloads, and run weir migrate rollback again";
            Err(Failure::findings(reasons).and(advice.to_owned()))
        }
    }
}

/// Takes steps until the goal is reached, or says why it cannot be.
async fn toward(
    world: &mut impl World,
    goal: Goal,
    limits: &Limits,
    budget: ErrorBudget,
) -> Result<Result<(), Vec<String>>, Failure> {
    let mut waited_for: (Vec<String>, Duration) = (Vec::new(), world.now());
    let mut last_restart = world.now();
    let mut unanswered = 0;
    loop {
        let view = world.observe(goal).await?;
        let is_begun = view.record.is_some();
        let errors = match goal {
            Goal::Move => watch(world, budget, &mut unanswered, if is_begun { MAX_UNANSWERED } else { 0 }).await,
            Goal::Restore => None,
        };
        let now = world.now();
        let conditions = Conditions {
            stalled: now.saturating_sub(waited_for.1),
            errors,
            since_restart: now.saturating_sub(last_restart),
        };
        // A mesh that fails already is not touched.
        if let (false, Some(errors)) = (is_begun, &conditions.errors) {
            return Ok(Err(vec![format!("{errors} before the start; nothing was changed")]));
        }
        match decide(&view, goal, limits, &conditions) {
            Step::Finished => return Ok(Ok(())),
            Step::Failed(reasons) => return Ok(Err(reasons)),
            Step::Write { record, labels } => {
                if view.labels != labels {
                    world.report(&format!("labels: {} -> {}", view.labels.describe(), labels.describe()))?;
                }
                world.write(record.as_ref(), &labels).await?;
                waited_for = (Vec::new(), world.now());
            }
            Step::Restart { workloads, marker } => {
                for workload in workloads.into_iter().filter_map(|index| view.workloads.get(index)) {
                    world.report(&format!("restarting {}", workload.name))?;
                    world.restart(&workload.name, &marker).await?;
                }
                last_restart = world.now();
                waited_for = (Vec::new(), last_restart);
            }
            Step::Wait(what) => {
                if what != waited_for.0 {
                    for line in what.iter().filter(|line| !waited_for.0.contains(line)) {
                        world.report(&format!("waiting: {line}"))?;
                    }
                    waited_for = (what, now);
                }
                world.pause().await;
            }
        }
    }
}

/// Returns why the error rate stops the migration.
async fn watch(
    world: &mut impl World,
    ErrorBudget(budget): ErrorBudget,
    unanswered: &mut u32,
    max_unanswered: u32,
) -> Option<String> {
    match world.error_rate().await {
        Ok(rate) => {
            *unanswered = 0;
            let rate = rate.filter(|rate| *rate > budget)?;
            Some(format!("{:.2} % of requests fail, more than {:.2} %", rate * 100.0, budget * 100.0))
        }
        Err(why) => {
            *unanswered += 1;
            (*unanswered > max_unanswered).then(|| format!("the error rate is not known: {why}"))
        }
    }
}

#[cfg(test)]
mod simulation;
