//! Runs against a simulated cluster: they are killed at every request, and workloads, agents and requests fail.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::current::Origin;
use super::super::step::{PodView, WorkloadView};
use super::*;

/// Failure of a workload under Weir.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// New pods get no sidecar.
    NotInjected,
    /// New pods never become ready.
    NeverReady,
    /// New pods cannot be created, and the cluster says so.
    Broken,
    /// The agent does not find the rules.
    NoRules,
    /// Requests fail while its pods are Weir's.
    Errors,
}

/// A workload whose pods are replaced one by one; the old ones end after the new ones are ready.
#[derive(Debug, Clone)]
struct Workload {
    marker: Option<String>,
    fault: Fault,
    old: Vec<Option<Origin>>,
    new: Vec<Option<Origin>>,
    /// Ticks until the next pod is ready.
    ticks: u32,
}

/// A cluster with one namespace.
#[derive(Debug)]
struct Cluster {
    labels: InjectionLabels,
    record: Option<String>,
    workloads: BTreeMap<String, Workload>,
    clock: u64,
    /// Requests until the process is killed.
    until_killed: Option<u32>,
    /// True if a request that ends with the process has its effect.
    takes_effect: bool,
    /// The most workloads that were in a rollout at the same time.
    most_in_flight: usize,
    restarts: usize,
}

impl Cluster {
    fn new(faults: &[Fault]) -> Self {
        let workload = |fault: &Fault| Workload {
            marker: None,
            fault: *fault,
            old: vec![Some(Origin::IstioCni); 2],
            new: Vec::new(),
            ticks: 0,
        };
        let workloads =
            faults.iter().enumerate().map(|(index, fault)| (format!("Deployment/w{index}"), workload(fault)));
        Self {
            labels: former(),
            record: None,
            workloads: workloads.collect(),
            clock: 0,
            until_killed: None,
            takes_effect: false,
            most_in_flight: 0,
            restarts: 0,
        }
    }

    /// Counts a request; an error is the end of the process.
    fn request(&mut self) -> Result<(), Failure> {
        match &mut self.until_killed {
            Some(0) => Err(Failure::usage("killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn injector(&self) -> Origin {
        if self.labels == InjectionLabels::of_revision("weir") { Origin::Weir } else { Origin::IstioCni }
    }

    fn tick(&mut self) {
        self.clock += 1;
        let injector = self.injector();
        for workload in self.workloads.values_mut().filter(|workload| !workload.old.is_empty() && workload.is_rolling())
        {
            let is_weir = injector == Origin::Weir;
            if is_weir && matches!(workload.fault, Fault::NeverReady | Fault::Broken) {
                continue;
            }
            workload.ticks += 1;
            if workload.ticks.is_multiple_of(2) {
                workload.old.pop();
                let origin = (!(is_weir && workload.fault == Fault::NotInjected)).then_some(injector);
                workload.new.push(origin);
            }
        }
        let rolling = self.workloads.values().filter(|workload| workload.is_rolling()).count();
        self.most_in_flight = self.most_in_flight.max(rolling);
    }

    fn origins(&self) -> Vec<Option<Origin>> {
        self.workloads.values().flat_map(|workload| workload.old.iter().chain(&workload.new)).copied().collect()
    }
}

impl Workload {
    fn is_rolling(&self) -> bool {
        self.ticks > 0 && !self.old.is_empty()
    }

    fn view(&self, name: &str, injector: Origin) -> WorkloadView {
        let rules = |origin: Option<Origin>| {
            (origin == Some(Origin::Weir) && self.fault == Fault::NoRules).then(|| "missing".to_owned())
        };
        let pods = self.old.iter().chain(&self.new);
        WorkloadView {
            name: name.to_owned(),
            marker: self.marker.clone(),
            rollout: self.is_rolling().then(|| format!("{} of 2 updated", self.new.len())),
            broken: if self.is_rolling() && self.fault == Fault::Broken && injector == Origin::Weir {
                vec!["pods cannot be created: denied the request".to_owned()]
            } else {
                Vec::new()
            },
            unavailable: 0,
            pods: pods.map(|origin| PodView { name: "p".to_owned(), origin: *origin, rules: rules(*origin) }).collect(),
        }
    }
}

impl World for Cluster {
    async fn observe(&mut self, _goal: Goal) -> Result<NamespaceView, Failure> {
        self.request()?;
        let injector = self.injector();
        Ok(NamespaceView {
            labels: self.labels.clone(),
            record: self.record.as_ref().map(|text| Record::parse(text).expect("a record")),
            workloads: self.workloads.iter().map(|(name, workload)| workload.view(name, injector)).collect(),
        })
    }

    async fn write(&mut self, record: Option<&Record>, labels: &InjectionLabels) -> Result<(), Failure> {
        let sent = self.request();
        if sent.is_ok() || self.takes_effect {
            self.record = record.map(Record::to_text);
            self.labels = labels.clone();
        }
        sent
    }

    async fn restart(&mut self, workload: &str, marker: &str) -> Result<(), Failure> {
        let sent = self.request();
        if sent.is_ok() || self.takes_effect {
            self.restarts += 1;
            let workload = self.workloads.get_mut(workload).expect("a workload");
            workload.marker = Some(marker.to_owned());
            workload.old.append(&mut workload.new);
            workload.ticks = 1;
        }
        sent
    }

    async fn error_rate(&mut self) -> Result<Option<f64>, String> {
        let fails = |workload: &Workload| workload.fault == Fault::Errors && workload.new.contains(&Some(Origin::Weir));
        Ok(Some(if self.workloads.values().any(fails) { 0.5 } else { 0.001 }))
    }

    async fn pause(&mut self) {
        self.tick();
    }

    fn now(&self) -> Duration {
        Duration::from_secs(self.clock)
    }

    fn report(&mut self, _text: &str) -> Result<(), Failure> {
        Ok(())
    }
}

fn former() -> InjectionLabels {
    InjectionLabels::of(serde_json::json!({"istio-injection": "enabled"}).as_object().expect("a map"))
}

fn limits(batch: usize, run: &str) -> Limits {
    Limits {
        revision: "weir".to_owned(),
        run: run.to_owned(),
        batch,
        max_unavailable: 0,
        timeout: Duration::from_mins(1),
        observe: Duration::from_secs(3),
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
}

/// Runs once; `None` if the process is killed.
fn run(cluster: &mut Cluster, batch: usize, run: &str) -> Option<Outcome> {
    block_on(migrate(cluster, &limits(batch, run), ErrorBudget(0.01))).ok()
}

fn assert_at_goal(cluster: &Cluster, outcome: &Outcome) {
    match outcome {
        Outcome::Reached => {
            assert_eq!(cluster.labels, InjectionLabels::of_revision("weir"));
            assert!(cluster.origins().iter().all(|origin| *origin == Some(Origin::Weir)), "{cluster:?}");
            let record = Record::parse(cluster.record.as_ref().expect("a record")).expect("valid");
            assert_eq!((record.phase, record.former), (Phase::Moved, former()));
        }
        Outcome::RolledBack(_) => {
            assert_eq!((&cluster.labels, &cluster.record), (&former(), &None));
            assert!(cluster.origins().iter().all(|origin| *origin == Some(Origin::IstioCni)), "{cluster:?}");
        }
        Outcome::Refused(why) => panic!("refused: {why:?}"),
    }
}

#[test]
fn every_fault_is_rolled_back() {
    for fault in [Fault::NotInjected, Fault::NeverReady, Fault::Broken, Fault::NoRules, Fault::Errors] {
        let mut cluster = Cluster::new(&[Fault::None, fault, Fault::None]);
        let outcome = run(&mut cluster, 1, "1").expect("not killed");
        let Outcome::RolledBack(why) = &outcome else { panic!("{fault:?}: {outcome:?}") };
        let expected = match fault {
            Fault::NotInjected => "Weir has not injected it",
            Fault::NeverReady => "no progress in 60 s",
            Fault::Broken => "denied the request",
            Fault::NoRules => "missing: no progress",
            Fault::Errors => "50.00 % of requests fail, more than 1.00 %",
            Fault::None => "",
        };
        assert!(why.iter().any(|why| why.contains(expected)), "{fault:?}: {why:?}");
        assert_at_goal(&cluster, &outcome);
        assert_eq!(cluster.workloads["Deployment/w2"].marker, None, "{fault:?}: the next workload is not touched");
    }
}

#[test]
fn namespace_moves_back_and_forth() {
    let mut cluster = Cluster::new(&[Fault::None; 3]);
    for round in ["1", "2"] {
        assert_at_goal(cluster_run(&mut cluster, round), &Outcome::Reached);
        block_on(restore(&mut cluster, &limits(1, round))).expect("not killed");
        assert_at_goal(&cluster, &Outcome::RolledBack(Vec::new()));
    }
    assert_eq!(cluster.restarts, 12);
}

fn cluster_run<'a>(cluster: &'a mut Cluster, name: &str) -> &'a Cluster {
    assert_eq!(run(cluster, 1, name), Some(Outcome::Reached));
    // Once more changes nothing.
    let restarts = cluster.restarts;
    assert_eq!(run(cluster, 1, "again"), Some(Outcome::Reached));
    assert_eq!(cluster.restarts, restarts);
    cluster
}

#[test]
fn failing_mesh_is_not_touched() {
    let mut cluster = Cluster::new(&[Fault::Errors]);
    cluster.workloads.get_mut("Deployment/w0").expect("it").new = vec![Some(Origin::Weir)];
    let Some(Outcome::Refused(why)) = run(&mut cluster, 1, "1") else { panic!() };
    assert!(why[0].contains("before the start"), "{why:?}");
    assert_eq!((cluster.record, cluster.restarts), (None, 0));
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        12 => Just(Fault::None),
        1 => Just(Fault::NotInjected),
        1 => Just(Fault::NeverReady),
        1 => Just(Fault::Broken),
        1 => Just(Fault::NoRules),
        1 => Just(Fault::Errors),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(property_cases()))]

    #[test]
    fn killed_runs_are_resumed(
        faults in proptest::collection::vec(fault(), 1..6),
        batch in 1_usize..4,
        kills in proptest::collection::vec((0_u32..40, any::<bool>(), 0_u32..5), 0..6),
    ) {
        let mut cluster = Cluster::new(&faults);
        let mut outcome = None;
        let mut attempts = kills.iter();
        for attempt in 0.. {
            let kill = attempts.next();
            cluster.until_killed = kill.map(|(requests, ..)| *requests);
            cluster.takes_effect = kill.is_some_and(|(_, takes_effect, _)| *takes_effect);
            outcome = run(&mut cluster, batch, &attempt.to_string());
            if outcome.is_some() {
                break;
            }
            // The cluster goes on without it.
            (0..kill.map_or(0, |(.., ticks)| *ticks)).for_each(|_| cluster.tick());
        }
        let outcome = outcome.expect("the last run is not killed");
        assert_at_goal(&cluster, &outcome);
        let is_faulty = faults.iter().any(|fault| *fault != Fault::None);
        prop_assert_eq!(matches!(outcome, Outcome::RolledBack(_)), is_faulty);
        // A workload is restarted once, however often the run is killed; and never more of them at a time than the batch. A run that is
        // killed after a rollback begins again.
        if is_faulty {
            prop_assert!(cluster.restarts <= faults.len() * 2 * (kills.len() + 1), "{} restarts", cluster.restarts);
        } else {
            prop_assert_eq!(cluster.restarts, faults.len());
        }
        prop_assert!(cluster.most_in_flight <= batch.max(1) + usize::from(is_faulty) * batch, "{}", cluster.most_in_flight);
    }
}

fn property_cases() -> u32 {
    std::env::var("WEIR_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(512)
}
