use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_protocol::entry::PluginEntry;

use super::*;
use crate::install::finding::Finding;
use crate::install::network::{NetworkConfig, is_configuration};

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"net","type":"bridge","x":1.50}"#;

fn conf_dir_of(files: &[(&str, &str)]) -> ConfDir {
    files.iter().map(|(name, text)| ((*name).to_owned(), ConfFile::Bytes(text.as_bytes().to_vec()))).collect()
}

fn desired(placement: Placement) -> DesiredEntry {
    DesiredEntry {
        placement,
        entry: PluginEntry::default(),
        pinned: None,
        owned_name: "00-weir.conflist".to_owned(),
        dir: "/net.d".to_owned(),
    }
}

fn facts() -> RuntimeFacts {
    RuntimeFacts { drop_ins: Ok(()), versions: BTreeMap::new() }
}

/// Facts with the versions of the plugins.
fn answers() -> RuntimeFacts {
    let versions = ["bridge", "portmap", "ptp"]
        .map(|kind| (kind.to_owned(), PluginVersions::Supported(vec!["0.3.1".into(), "0.4.0".into()])));
    RuntimeFacts { versions: versions.into(), ..facts() }
}

/// Executes steps.
fn execute(conf_dir: &mut ConfDir, steps: &[FileStep]) {
    for step in steps {
        match step {
            FileStep::Write { file, bytes, .. } => drop(conf_dir.insert(file.clone(), ConfFile::Bytes(bytes.clone()))),
            FileStep::Remove { file, .. } => drop(conf_dir.remove(file)),
        }
    }
}

/// Removes everything of ours.
fn undo_all(conf_dir: &mut ConfDir) {
    let steps = undo(conf_dir, "00-weir.conflist").steps;
    execute(conf_dir, &steps);
}

fn apply(conf_dir: &mut ConfDir, desired_entry: &DesiredEntry) -> Plan {
    let first = decide(conf_dir, desired_entry, &facts());
    execute(conf_dir, &first.steps);
    let second = decide(conf_dir, desired_entry, &facts());
    assert_eq!(second.steps, Vec::new(), "a second plan has no steps");
    assert_eq!(second.entry_file, first.entry_file);
    first
}

fn text<'a>(conf_dir: &'a ConfDir, name: &str) -> &'a str {
    match &conf_dir[name] {
        ConfFile::Bytes(bytes) => std::str::from_utf8(bytes).unwrap(),
        ConfFile::Unreadable(why) => panic!("{name}: {why}"),
    }
}

fn types(conf_dir: &ConfDir, name: &str) -> Vec<String> {
    NetworkConfig::parse(name, text(conf_dir, name).as_bytes()).unwrap().types
}

fn names(conf_dir: &ConfDir) -> Vec<&str> {
    conf_dir.keys().map(String::as_str).collect()
}

fn changes(plan: &Plan) -> Vec<ChangeReason> {
    plan.steps.iter().map(FileStep::reason).collect()
}

#[test]
fn entry_is_appended_to_the_first_network_with_a_backup() {
    let mut conf_dir = conf_dir_of(&[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("readme.txt", "hello")]);
    let plan = apply(&mut conf_dir, &desired(Placement::Chained));
    assert_eq!(plan.entry_file.as_deref(), Some("10-a.conflist"));
    assert_eq!(changes(&plan), [ChangeReason::Backup, ChangeReason::Missing]);
    assert_eq!(types(&conf_dir, "10-a.conflist"), ["bridge", "portmap", "weir-cni"]);
    assert_eq!(text(&conf_dir, "10-a.conflist.weir-backup"), LIST);
    assert_eq!(text(&conf_dir, "20-b.conflist"), LIST);
    undo_all(&mut conf_dir);
    assert_eq!(conf_dir, conf_dir_of(&[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("readme.txt", "hello")]));
}

#[test]
fn the_first_of_all_three_extensions_is_the_primary() {
    let mut conf_dir = conf_dir_of(&[("10-a.json", SINGLE), ("20-b.conflist", LIST)]);
    assert_eq!(apply(&mut conf_dir, &desired(Placement::Chained)).entry_file.as_deref(), Some("10-a.conflist"));
    let mut conf_dir = conf_dir_of(&[("10-a.txt", LIST), ("20-b.conflist", LIST)]);
    assert_eq!(apply(&mut conf_dir, &desired(Placement::Chained)).entry_file.as_deref(), Some("20-b.conflist"));
}

#[test]
fn a_single_plugin_is_converted_and_restored() {
    let mut conf_dir = conf_dir_of(&[("10-a.conf", SINGLE)]);
    let plan = apply(&mut conf_dir, &desired(Placement::Chained));
    assert_eq!(changes(&plan), [ChangeReason::Backup, ChangeReason::Converted, ChangeReason::Converted]);
    assert_eq!(names(&conf_dir), ["10-a.conf.weir-backup", "10-a.conflist"]);
    let network: Value = serde_json::from_str(text(&conf_dir, "10-a.conflist")).unwrap();
    assert_eq!((&network["name"], &network["cniVersion"]), (&json!("net"), &json!("0.4.0")));
    assert_eq!(types(&conf_dir, "10-a.conflist"), ["bridge", "weir-cni"]);
    undo_all(&mut conf_dir);
    assert_eq!(conf_dir, conf_dir_of(&[("10-a.conf", SINGLE)]));
}

#[test]
fn a_rewritten_single_plugin_is_converted_again() {
    let mut conf_dir = conf_dir_of(&[("10-a.conf", SINGLE)]);
    apply(&mut conf_dir, &desired(Placement::Chained));
    let newer = SINGLE.replace("1.50", "2");
    conf_dir.extend(conf_dir_of(&[("10-a.conf", &newer)]));
    apply(&mut conf_dir, &desired(Placement::Chained));
    assert!(text(&conf_dir, "10-a.conflist").contains(r#""x":2"#));
    // After an undo the owner's newer file wins over our backup.
    conf_dir.extend(conf_dir_of(&[("10-a.conf", SINGLE)]));
    undo_all(&mut conf_dir);
    assert_eq!(conf_dir, conf_dir_of(&[("10-a.conf", SINGLE)]));
}

#[test]
fn a_foreign_list_of_the_same_name_is_not_overwritten() {
    let conf_dir = conf_dir_of(&[("10-a.conf", SINGLE), ("10-a.conflist", &LIST.replace("net", "other"))]);
    let plan = decide(&conf_dir, &desired(Placement::Chained), &facts());
    assert_eq!((plan.steps.len(), plan.entry_file), (0, None));
    assert_eq!(plan.findings, [Finding::NotOurFile { file: "10-a.conflist".into() }]);
}

#[test]
fn every_kind_of_drift_is_named_and_repaired() {
    let entry = serde_json::to_string(&PluginEntry::default().to_map()).unwrap();
    for (plugins, change) in [
        (format!(r#"{entry},{{"type":"bridge"}}"#), ChangeReason::NotLast),
        (format!(r#"{{"type":"bridge"}},{entry},{entry}"#), ChangeReason::Duplicate),
        (r#"{"type":"bridge"},{"type":"weir-cni","old":true}"#.to_owned(), ChangeReason::Different),
    ] {
        let list = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
        let mut conf_dir = conf_dir_of(&[("a.conflist", &list)]);
        let plan = apply(&mut conf_dir, &desired(Placement::Chained));
        assert_eq!(plan.steps.last().unwrap().reason(), change, "{plugins}");
        assert_eq!(types(&conf_dir, "a.conflist"), ["bridge", "weir-cni"]);
    }
}

#[test]
fn equal_json_in_another_format_is_not_changed() {
    let mut conf_dir = conf_dir_of(&[("a.conflist", LIST)]);
    apply(&mut conf_dir, &desired(Placement::Chained));
    let value: Value = serde_json::from_str(text(&conf_dir, "a.conflist")).unwrap();
    conf_dir.extend(conf_dir_of(&[("a.conflist", &serde_json::to_string_pretty(&value).unwrap())]));
    assert!(decide(&conf_dir, &desired(Placement::Chained), &facts()).is_up_to_date());
}

#[test]
fn a_new_primary_gets_the_entry_and_the_old_keeps_it() {
    let mut conf_dir = conf_dir_of(&[("20-b.conflist", LIST)]);
    apply(&mut conf_dir, &desired(Placement::Chained));
    conf_dir.extend(conf_dir_of(&[("10-a.conflist", LIST)]));
    apply(&mut conf_dir, &desired(Placement::Chained));
    for name in ["10-a.conflist", "20-b.conflist"] {
        assert_eq!(types(&conf_dir, name).last().unwrap(), "weir-cni", "{name}");
    }
    // A new entry is written to both.
    let mut newer = desired(Placement::Chained);
    newer.entry.exclude_namespaces.push("infra".into());
    apply(&mut conf_dir, &newer);
    assert!(text(&conf_dir, "20-b.conflist").contains("infra"));
    // The first may be removed again.
    conf_dir.remove("10-a.conflist");
    assert!(decide(&conf_dir, &newer, &facts()).is_up_to_date());
}

#[test]
fn a_pinned_file_is_awaited_and_reported_if_preempted() {
    let mut pinned = desired(Placement::Chained);
    pinned.pinned = Some("b.conf".into());
    let plan = decide(&conf_dir_of(&[("a.conflist", LIST)]), &pinned, &facts());
    assert_eq!((plan.steps.len(), &plan.entry_file), (0, &None));
    assert!(plan.findings.contains(&Finding::NoConfiguration { dir: "/net.d".into(), pinned: Some("b.conf".into()) }));

    let mut conf_dir = conf_dir_of(&[("a.conflist", LIST), ("b.conflist", LIST)]);
    let plan = apply(&mut conf_dir, &pinned);
    assert_eq!(plan.entry_file.as_deref(), Some("b.conflist"));
    assert!(plan.findings.contains(&Finding::Preempted { pinned: "b.conf".into(), by: "a.conflist".into() }));
    assert_eq!(text(&conf_dir, "a.conflist"), LIST);
}

#[test]
fn invalid_files_are_reported_and_skipped() {
    let mut conf_dir = conf_dir_of(&[
        ("00-bad.conf", "\"not json\"\n"),
        ("05-empty.conflist", ""),
        ("10-a.conflist", LIST),
        ("20-half.conf", "{"),
    ]);
    conf_dir.insert("06-huge.json".into(), ConfFile::Unreadable("more than 1048576 bytes".into()));
    let plan = apply(&mut conf_dir, &desired(Placement::Chained));
    assert_eq!(plan.entry_file.as_deref(), Some("10-a.conflist"));
    let named: Vec<_> = plan.findings.iter().map(Finding::name).collect();
    assert_eq!(named, ["invalid-first", "invalid-neighbour", "invalid-neighbour", "invalid-neighbour"]);
}

#[test]
fn own_list_follows_the_primary_and_goes_with_it() {
    let mut conf_dir = conf_dir_of(&[("10-a.conf", SINGLE)]);
    let owned = desired(Placement::Owned);
    let plan = apply(&mut conf_dir, &owned);
    assert_eq!((plan.entry_file.as_deref(), changes(&plan)), (Some("00-weir.conflist"), vec![ChangeReason::Missing]));
    assert_eq!(types(&conf_dir, "00-weir.conflist"), ["bridge", "weir-cni"]);
    assert_eq!(text(&conf_dir, "10-a.conf"), SINGLE);

    conf_dir.extend(conf_dir_of(&[("10-a.conf", &SINGLE.replace("bridge", "ptp"))]));
    assert_eq!(changes(&apply(&mut conf_dir, &owned)), [ChangeReason::Followed]);
    assert_eq!(types(&conf_dir, "00-weir.conflist"), ["ptp", "weir-cni"]);

    // A half-written primary is still being written.
    conf_dir.extend(conf_dir_of(&[("10-a.conf", "{")]));
    assert_eq!(decide(&conf_dir, &owned, &facts()).steps, []);
    // Without a primary our list is removed.
    conf_dir.remove("10-a.conf");
    apply(&mut conf_dir, &owned);
    assert_eq!(names(&conf_dir), Vec::<&str>::new());
}

#[test]
fn own_list_must_sort_first_and_overwrites_nothing() {
    let owned = desired(Placement::Owned);
    let mut conf_dir = conf_dir_of(&[("00-a.conflist", LIST)]);
    let plan = apply(&mut conf_dir, &owned);
    assert_eq!(plan.findings, [Finding::OwnedNotFirst { file: "00-weir.conflist".into(), by: "00-a.conflist".into() }]);
    let conf_dir = conf_dir_of(&[("00-weir.conflist", LIST), ("10-a.conflist", LIST)]);
    let plan = decide(&conf_dir, &owned, &facts());
    assert_eq!((plan.steps.len(), plan.findings), (0, vec![Finding::NotOurFile { file: "00-weir.conflist".into() }]));
}

#[test]
fn a_drop_in_leaves_the_list_unchanged() {
    let mut conf_dir = conf_dir_of(&[("10-a.conflist", LIST), ("net/10-tuning.conf", "{}")]);
    let plan = apply(&mut conf_dir, &desired(Placement::DropIn));
    assert_eq!(plan.entry_file.as_deref(), Some("net/zz-weir.conf"));
    assert_eq!(text(&conf_dir, "10-a.conflist"), LIST);
    // The network is renamed.
    conf_dir.extend(conf_dir_of(&[("10-a.conflist", &LIST.replace("net", "other"))]));
    apply(&mut conf_dir, &desired(Placement::DropIn));
    assert_eq!(names(&conf_dir), ["10-a.conflist", "net/10-tuning.conf", "other/zz-weir.conf"]);
    undo_all(&mut conf_dir);
    assert_eq!(names(&conf_dir), ["10-a.conflist", "net/10-tuning.conf"]);
}

#[test]
fn drop_ins_need_support_of_runtime_and_list() {
    let rejected = |conf_dir: &ConfDir, facts: &RuntimeFacts, why: &str| {
        let plan = decide(conf_dir, &desired(Placement::DropIn), facts);
        let named = plan
            .findings
            .iter()
            .any(|finding| matches!(finding, Finding::DropInsNotRead { reason } if reason.contains(why)));
        assert!(named, "{why}: {:?}", plan.findings);
        assert!(plan.entry_file.is_some_and(|file| !file.contains('/')), "{why}: chained instead");
    };
    let list = |text: &str| conf_dir_of(&[("10-a.conflist", text)]);
    rejected(
        &list(LIST),
        &RuntimeFacts { drop_ins: Err("containerd does not".into()), ..facts() },
        "containerd does not",
    );
    rejected(
        &list(&LIST.replace(r#""name""#, r#""loadOnlyInlinedPlugins":true,"name""#)),
        &facts(),
        "loadOnlyInlinedPlugins",
    );
    rejected(&list(&LIST.replace(r#""net""#, r#""../x""#)), &facts(), "not a valid directory name");
    rejected(&conf_dir_of(&[("10-a.conf", SINGLE)]), &facts(), "is not a list");
    rejected(&conf_dir_of(&[("10-a.conflist", LIST), ("net/zzz.conf", "{}")]), &facts(), "net/zzz.conf");
}

#[test]
fn standalone_leaves_the_network_unchanged() {
    let mut conf_dir = conf_dir_of(&[("10-a.conflist", LIST)]);
    let plan = apply(&mut conf_dir, &desired(Placement::Standalone));
    assert_eq!(plan.entry_file.as_deref(), Some(STANDALONE_NAME));
    let ours: Value = serde_json::from_str(text(&conf_dir, STANDALONE_NAME)).unwrap();
    assert_eq!(
        (&ours["type"], &ours["name"], &ours["cniVersion"]),
        (&json!("weir-cni"), &json!("weir-cni"), &json!("0.3.1"))
    );
    assert_eq!(text(&conf_dir, "10-a.conflist"), LIST);
    let mut named = desired(Placement::Standalone);
    named.pinned = Some("10-a.conflist".into());
    assert_eq!(decide(&conf_dir, &named, &facts()).findings, [Finding::NotOurFile { file: "10-a.conflist".into() }]);
}

#[test]
fn every_placement_removes_leftovers_of_the_others() {
    let placements = [Placement::Chained, Placement::Owned, Placement::DropIn, Placement::Standalone];
    for before in &placements {
        for after in &placements {
            let mut conf_dir = conf_dir_of(&[("10-a.conflist", LIST)]);
            apply(&mut conf_dir, &desired(before.clone()));
            apply(&mut conf_dir, &desired(after.clone()));
            let carriers = conf_dir
                .iter()
                .filter(|(name, _)| is_configuration(name))
                .filter(|(name, file)| {
                    matches!(file, ConfFile::Bytes(bytes) if NetworkConfig::parse(name.rsplit('/').next().unwrap(), bytes)
                    .is_ok_and(|network| network.entry_count() > 0))
                        || name.ends_with(DROP_IN_NAME)
                })
                .count();
            assert_eq!(carriers, 1, "{before:?} then {after:?}: {:?}", names(&conf_dir));
            undo_all(&mut conf_dir);
            assert_eq!(conf_dir, conf_dir_of(&[("10-a.conflist", LIST)]), "{before:?} then {after:?}");
        }
    }
}

#[test]
fn version_is_raised_only_if_all_plugins_support_it() {
    let old = LIST.replace("1.0.0", "0.2.0");
    let conf_dir = conf_dir_of(&[("a.conflist", &old)]);
    let ask = decide(&conf_dir, &desired(Placement::Chained), &facts());
    assert_eq!(
        (ask.steps.len(), ask.plugins_to_query),
        (0, BTreeSet::from(["bridge".to_owned(), "portmap".to_owned()]))
    );

    let says = |bridge: PluginVersions| RuntimeFacts {
        versions: BTreeMap::from([
            ("bridge".to_owned(), bridge),
            ("portmap".to_owned(), PluginVersions::Supported(vec!["0.3.1".into(), "0.4.0".into()])),
        ]),
        ..facts()
    };
    let both = says(PluginVersions::Supported(vec!["0.4.0".into(), "1.0.0".into()]));
    let mut raised = conf_dir.clone();
    let plan = decide(&conf_dir, &desired(Placement::Chained), &both);
    execute(&mut raised, &plan.steps);
    assert!(text(&raised, "a.conflist").contains(r#""cniVersion":"0.4.0""#));
    assert!(decide(&raised, &desired(Placement::Chained), &both).is_up_to_date());
    undo_all(&mut raised);
    assert_eq!(raised, conf_dir);

    for (bridge, why) in [
        (PluginVersions::Unknown("exit 127".to_owned()), "exit 127"),
        (PluginVersions::Supported(vec!["0.2.0".to_owned()]), "in common"),
    ] {
        let plan = decide(&conf_dir, &desired(Placement::Chained), &says(bridge));
        assert_eq!((plan.steps.len(), &plan.entry_file), (0, &None));
        assert!(
            matches!(&plan.findings[..], [Finding::UnsupportedVersion { reason, .. }] if reason.contains(why)),
            "{:?}",
            plan.findings
        );
    }
    let plan = decide(
        &conf_dir_of(&[("a.conflist", &LIST.replace("1.0.0", "9.0.0"))]),
        &desired(Placement::Chained),
        &facts(),
    );
    assert_eq!(plan.findings[0].name(), "version");
}

#[test]
fn undo_of_a_changed_file_removes_only_the_entry() {
    let mut conf_dir = conf_dir_of(&[("a.conflist", LIST)]);
    apply(&mut conf_dir, &desired(Placement::Chained));
    let changed = text(&conf_dir, "a.conflist").replace("portmap", "bandwidth");
    conf_dir.extend(conf_dir_of(&[("a.conflist", &changed)]));
    undo_all(&mut conf_dir);
    assert_eq!(conf_dir, conf_dir_of(&[("a.conflist", &LIST.replace("portmap", "bandwidth"))]));
}

#[test]
fn other_meshes_and_cilium_are_reported() {
    let list = LIST.replace("portmap", "istio-cni");
    let plan = decide(
        &conf_dir_of(&[("a.conflist", &list), ("10-calico.conflist.cilium_bak", LIST)]),
        &desired(Placement::Chained),
        &facts(),
    );
    assert_eq!(plan.findings.iter().map(Finding::name).collect::<Vec<_>>(), ["other-mesh", "cilium-exclusive"]);
    assert!(plan.entry_file.is_some(), "that does not keep us from doing our part");
}

/// Any file of a configuration directory.
fn any_file() -> impl Strategy<Value = ConfFile> {
    let entry = serde_json::to_string(&PluginEntry::default().to_map()).unwrap();
    prop_oneof![
        Just(LIST.to_owned()),
        Just(LIST.replace("net", "other")),
        Just(LIST.replace("1.0.0", "0.2.0")),
        Just(SINGLE.replace("0.4.0", "0.1.0")),
        Just(SINGLE.to_owned()),
        Just(SINGLE.replace("bridge", "ptp")),
        Just(LIST.replace(r#"{"type":"bridge"}"#, &format!(r#"{{"type":"bridge"}},{entry}"#))),
        Just(LIST.replace(r#"{"type":"portmap"}"#, &entry)),
        Just(format!(r#"{{"cniVersion":"1.0.0","name":"weir-cni",{}"#, &entry[1..])),
        Just(String::new()),
        Just("{".to_owned()),
        Just("[]".to_owned()),
    ]
    .prop_map(|text| ConfFile::Bytes(text.into_bytes()))
}

fn any_conf_dir() -> impl Strategy<Value = ConfDir> {
    let name = prop_oneof![
        "[ab]\\.(conf|conflist|json)",
        Just("00-weir.conflist".to_owned()),
        Just(STANDALONE_NAME.to_owned()),
        "[ab]\\.(conf|conflist|json)\\.weir-backup",
        Just(format!("net/{DROP_IN_NAME}")),
    ];
    prop::collection::btree_map(name, any_file(), 0..6)
}

fn any_placement() -> impl Strategy<Value = Placement> {
    prop::sample::select(vec![Placement::Chained, Placement::Owned, Placement::DropIn, Placement::Standalone])
}

/// Returns the file that a runtime would use: the first valid network.
fn first_network(conf_dir: &ConfDir) -> Option<&str> {
    ConfDirView::new(conf_dir, &[]).networks.keys().copied().next()
}

#[test]
fn a_raised_version_is_restored_for_a_drop_in() {
    let old = conf_dir_of(&[("a.conflist", &LIST.replace("1.0.0", "0.2.0"))]);
    let mut conf_dir = old.clone();
    for placement in [Placement::Chained, Placement::DropIn, Placement::Owned, Placement::DropIn] {
        let steps = decide(&conf_dir, &desired(placement.clone()), &answers()).steps;
        execute(&mut conf_dir, &steps);
        let plan = decide(&conf_dir, &desired(placement.clone()), &answers());
        assert!(plan.is_up_to_date(), "{placement:?}: {plan:?}");
        assert!(plan.entry_file.is_some_and(|file| !file.contains('/')), "no drop-in in an unsupported version");
    }
    undo_all(&mut conf_dir);
    assert_eq!(conf_dir, old);
}

/// The own list is that of the restored file, not of the raised version that is in the file before.
#[test]
fn an_own_list_follows_the_file_as_it_is_restored() {
    let old = conf_dir_of(&[("b.conflist", &LIST.replace("1.0.0", "0.2.0"))]);
    let mut conf_dir = old.clone();
    execute(&mut conf_dir, &decide(&old, &desired(Placement::Chained), &answers()).steps);
    // Whoever wrote the file raises its version further, which counts as unchanged.
    let Some(ConfFile::Bytes(bytes)) = conf_dir.get_mut("b.conflist") else { panic!("no list") };
    *bytes = String::from_utf8_lossy(bytes).replace("0.3.1", "1.0.0").into_bytes();
    let steps = decide(&conf_dir, &desired(Placement::Owned), &answers()).steps;
    execute(&mut conf_dir, &steps);
    let plan = decide(&conf_dir, &desired(Placement::Owned), &answers());
    assert!(plan.is_up_to_date(), "{plan:?}");
    assert_eq!(conf_dir.get("b.conflist"), old.get("b.conflist"));
}

proptest! {
    #[test]
    fn an_interrupted_plan_ends_in_the_same_state(start in any_conf_dir(), placement in any_placement(), cut in 0..6usize) {
        let desired_entry = desired(placement);
        let plan = decide(&start, &desired_entry, &answers());
        let mut whole = start.clone();
        execute(&mut whole, &plan.steps);
        let again = decide(&whole, &desired_entry, &answers());
        prop_assert_eq!(&again.steps, &Vec::new(), "{:?}\n{:?}", start, whole);

        let mut part = start.clone();
        for step in plan.steps.iter().take(cut) {
            let had_network = first_network(&part).is_some();
            execute(&mut part, std::slice::from_ref(step));
            prop_assert!(first_network(&part).is_some() || !had_network || plan.entry_file.is_none() || again.primary.is_none(),
                "no step takes the node's network away: {:?}", step);
        }
        for _ in 0..3 {
            let rest = decide(&part, &desired_entry, &answers());
            execute(&mut part, &rest.steps);
        }
        prop_assert_eq!(&part, &whole);
    }

    #[test]
    fn an_interrupted_undo_ends_without_leftovers(start in any_conf_dir(), placement in any_placement(), cut in 0..6usize) {
        let mut conf_dir = start;
        let steps = decide(&conf_dir, &desired(placement), &answers()).steps;
        execute(&mut conf_dir, &steps);
        let steps = undo(&conf_dir, "00-weir.conflist").steps;
        let mut whole = conf_dir.clone();
        execute(&mut whole, &steps);
        execute(&mut conf_dir, &steps[..cut.min(steps.len())]);
        let rest = undo(&conf_dir, "00-weir.conflist").steps;
        execute(&mut conf_dir, &rest);
        prop_assert_eq!(undo(&whole, "00-weir.conflist").steps, []);
        prop_assert_eq!(&conf_dir, &whole);
        let ours = ConfDirView::new(&whole, &[]).networks.values().map(NetworkConfig::entry_count).sum::<usize>();
        prop_assert_eq!(ours, 0);
    }
}
