use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::install::network::{Network, is_configuration};

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"net","type":"bridge","x":1.50}"#;

fn folder(files: &[(&str, &str)]) -> Listing {
    files.iter().map(|(name, text)| ((*name).to_owned(), File::Bytes(text.as_bytes().to_vec()))).collect()
}

fn wanted(placement: Placement) -> Wanted {
    Wanted {
        placement,
        entry: PluginEntry::default(),
        pinned: None,
        owned_name: "00-weir.conflist".to_owned(),
        folder: "/net.d".to_owned(),
    }
}

fn facts() -> Facts {
    Facts { drop_ins: Ok(()), versions: BTreeMap::new() }
}

/// With plugins that say what they speak.
fn answers() -> Facts {
    let versions =
        ["bridge", "portmap", "ptp"].map(|kind| (kind.to_owned(), Said::Speaks(vec!["0.3.1".into(), "0.4.0".into()])));
    Facts { versions: versions.into(), ..facts() }
}

/// Carries out a plan's steps, or the first of them.
fn carry_out(listing: &mut Listing, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Write { file, bytes, .. } => drop(listing.insert(file.clone(), File::Bytes(bytes.clone()))),
            Step::Remove { file, .. } => drop(listing.remove(file)),
        }
    }
}

/// Takes every trace of ours out.
fn put_back(listing: &mut Listing) {
    let steps = undo(listing, "00-weir.conflist").steps;
    carry_out(listing, &steps);
}

fn settle(listing: &mut Listing, wanted: &Wanted) -> Plan {
    let first = decide(listing, wanted, &facts());
    carry_out(listing, &first.steps);
    let second = decide(listing, wanted, &facts());
    assert_eq!(second.steps, Vec::new(), "a second look finds nothing to do");
    assert_eq!(second.placed, first.placed);
    first
}

fn text<'a>(listing: &'a Listing, name: &str) -> &'a str {
    match &listing[name] {
        File::Bytes(bytes) => std::str::from_utf8(bytes).unwrap(),
        File::Unreadable(why) => panic!("{name}: {why}"),
    }
}

fn types(listing: &Listing, name: &str) -> Vec<String> {
    Network::parse(name, text(listing, name).as_bytes()).unwrap().types
}

fn names(listing: &Listing) -> Vec<&str> {
    listing.keys().map(String::as_str).collect()
}

fn changes(plan: &Plan) -> Vec<Change> {
    plan.steps.iter().map(Step::change).collect()
}

#[test]
fn appends_to_the_first_network_and_keeps_a_copy() {
    let mut listing = folder(&[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("readme.txt", "hello")]);
    let plan = settle(&mut listing, &wanted(Placement::Chained));
    assert_eq!(plan.placed.as_deref(), Some("10-a.conflist"));
    assert_eq!(changes(&plan), [Change::Backup, Change::Missing]);
    assert_eq!(types(&listing, "10-a.conflist"), ["bridge", "portmap", "weir-cni"]);
    assert_eq!(text(&listing, "10-a.conflist.weir-backup"), LIST);
    assert_eq!(text(&listing, "20-b.conflist"), LIST);
    put_back(&mut listing);
    assert_eq!(listing, folder(&[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("readme.txt", "hello")]));
}

#[test]
fn files_of_all_three_endings_are_candidates_in_the_order_of_their_names() {
    let mut listing = folder(&[("10-a.json", SINGLE), ("20-b.conflist", LIST)]);
    assert_eq!(settle(&mut listing, &wanted(Placement::Chained)).placed.as_deref(), Some("10-a.conflist"));
    let mut listing = folder(&[("10-a.txt", LIST), ("20-b.conflist", LIST)]);
    assert_eq!(settle(&mut listing, &wanted(Placement::Chained)).placed.as_deref(), Some("20-b.conflist"));
}

#[test]
fn a_single_plugin_becomes_a_list_of_the_same_network_and_comes_back() {
    let mut listing = folder(&[("10-a.conf", SINGLE)]);
    let plan = settle(&mut listing, &wanted(Placement::Chained));
    assert_eq!(changes(&plan), [Change::Backup, Change::Converted, Change::Converted]);
    assert_eq!(names(&listing), ["10-a.conf.weir-backup", "10-a.conflist"]);
    let network: Value = serde_json::from_str(text(&listing, "10-a.conflist")).unwrap();
    assert_eq!((&network["name"], &network["cniVersion"]), (&json!("net"), &json!("0.4.0")));
    assert_eq!(types(&listing, "10-a.conflist"), ["bridge", "weir-cni"]);
    put_back(&mut listing);
    assert_eq!(listing, folder(&[("10-a.conf", SINGLE)]));
}

#[test]
fn a_single_plugin_that_its_owner_writes_again_is_followed() {
    let mut listing = folder(&[("10-a.conf", SINGLE)]);
    settle(&mut listing, &wanted(Placement::Chained));
    let newer = SINGLE.replace("1.50", "2");
    listing.extend(folder(&[("10-a.conf", &newer)]));
    settle(&mut listing, &wanted(Placement::Chained));
    assert!(text(&listing, "10-a.conflist").contains(r#""x":2"#));
    // Undone in between, the owner's newer file wins over our copy.
    listing.extend(folder(&[("10-a.conf", SINGLE)]));
    put_back(&mut listing);
    assert_eq!(listing, folder(&[("10-a.conf", SINGLE)]));
}

#[test]
fn a_list_that_was_always_there_under_the_twins_name_is_not_overwritten() {
    let listing = folder(&[("10-a.conf", SINGLE), ("10-a.conflist", &LIST.replace("net", "other"))]);
    let plan = decide(&listing, &wanted(Placement::Chained), &facts());
    assert_eq!((plan.steps.len(), plan.placed), (0, None));
    assert_eq!(plan.findings, [Finding::Foreign { file: "10-a.conflist".into() }]);
}

#[test]
fn what_is_wrong_with_the_entry_is_named_and_mended() {
    let entry = serde_json::to_string(&PluginEntry::default().to_map()).unwrap();
    for (plugins, change) in [
        (format!(r#"{entry},{{"type":"bridge"}}"#), Change::NotLast),
        (format!(r#"{{"type":"bridge"}},{entry},{entry}"#), Change::Duplicate),
        (r#"{"type":"bridge"},{"type":"weir-cni","old":true}"#.to_owned(), Change::Different),
    ] {
        let list = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
        let mut listing = folder(&[("a.conflist", &list)]);
        let plan = settle(&mut listing, &wanted(Placement::Chained));
        assert_eq!(plan.steps.last().unwrap().change(), change, "{plugins}");
        assert_eq!(types(&listing, "a.conflist"), ["bridge", "weir-cni"]);
    }
}

#[test]
fn another_spelling_of_the_same_is_left_alone() {
    let mut listing = folder(&[("a.conflist", LIST)]);
    settle(&mut listing, &wanted(Placement::Chained));
    let value: Value = serde_json::from_str(text(&listing, "a.conflist")).unwrap();
    listing.extend(folder(&[("a.conflist", &serde_json::to_string_pretty(&value).unwrap())]));
    assert!(decide(&listing, &wanted(Placement::Chained), &facts()).is_in_order());
}

#[test]
fn a_preempting_configuration_is_followed_and_the_other_stays_ready() {
    let mut listing = folder(&[("20-b.conflist", LIST)]);
    settle(&mut listing, &wanted(Placement::Chained));
    listing.extend(folder(&[("10-a.conflist", LIST)]));
    settle(&mut listing, &wanted(Placement::Chained));
    for name in ["10-a.conflist", "20-b.conflist"] {
        assert_eq!(types(&listing, name).last().unwrap(), "weir-cni", "{name}");
    }
    // A new entry reaches both.
    let mut newer = wanted(Placement::Chained);
    newer.entry.exclude_namespaces.push("infra".into());
    settle(&mut listing, &newer);
    assert!(text(&listing, "20-b.conflist").contains("infra"));
    // And the first may go again.
    listing.remove("10-a.conflist");
    assert!(decide(&listing, &newer, &facts()).is_in_order());
}

#[test]
fn a_pinned_file_is_waited_for_and_told_when_it_is_not_the_one_that_counts() {
    let mut pinned = wanted(Placement::Chained);
    pinned.pinned = Some("b.conf".into());
    let plan = decide(&folder(&[("a.conflist", LIST)]), &pinned, &facts());
    assert_eq!((plan.steps.len(), &plan.placed), (0, &None));
    assert!(
        plan.findings.contains(&Finding::NoConfiguration { folder: "/net.d".into(), pinned: Some("b.conf".into()) })
    );

    let mut listing = folder(&[("a.conflist", LIST), ("b.conflist", LIST)]);
    let plan = settle(&mut listing, &pinned);
    assert_eq!(plan.placed.as_deref(), Some("b.conflist"));
    assert!(plan.findings.contains(&Finding::Preempted { pinned: "b.conf".into(), by: "a.conflist".into() }));
    assert_eq!(text(&listing, "a.conflist"), LIST);
}

#[test]
fn invalid_neighbours_are_named_and_passed_over() {
    let mut listing = folder(&[
        ("00-bad.conf", "\"not json\"\n"),
        ("05-empty.conflist", ""),
        ("10-a.conflist", LIST),
        ("20-half.conf", "{"),
    ]);
    listing.insert("06-huge.json".into(), File::Unreadable("more than 1048576 bytes".into()));
    let plan = settle(&mut listing, &wanted(Placement::Chained));
    assert_eq!(plan.placed.as_deref(), Some("10-a.conflist"));
    let named: Vec<_> = plan.findings.iter().map(Finding::name).collect();
    assert_eq!(named, ["invalid-first", "invalid-neighbour", "invalid-neighbour", "invalid-neighbour"]);
}

#[test]
fn our_own_list_follows_the_primary_and_goes_with_it() {
    let mut listing = folder(&[("10-a.conf", SINGLE)]);
    let owned = wanted(Placement::Owned);
    let plan = settle(&mut listing, &owned);
    assert_eq!((plan.placed.as_deref(), changes(&plan)), (Some("00-weir.conflist"), vec![Change::Missing]));
    assert_eq!(types(&listing, "00-weir.conflist"), ["bridge", "weir-cni"]);
    assert_eq!(text(&listing, "10-a.conf"), SINGLE);

    listing.extend(folder(&[("10-a.conf", &SINGLE.replace("bridge", "ptp"))]));
    assert_eq!(changes(&settle(&mut listing, &owned)), [Change::Followed]);
    assert_eq!(types(&listing, "00-weir.conflist"), ["ptp", "weir-cni"]);

    // Half-written, it is still coming.
    listing.extend(folder(&[("10-a.conf", "{")]));
    assert_eq!(decide(&listing, &owned, &facts()).steps, []);
    // Gone, ours must not keep it alive.
    listing.remove("10-a.conf");
    settle(&mut listing, &owned);
    assert_eq!(names(&listing), Vec::<&str>::new());
}

#[test]
fn our_own_list_has_to_come_first_and_overwrites_nobody() {
    let owned = wanted(Placement::Owned);
    let mut listing = folder(&[("00-a.conflist", LIST)]);
    let plan = settle(&mut listing, &owned);
    assert_eq!(plan.findings, [Finding::OwnedNotFirst { file: "00-weir.conflist".into(), by: "00-a.conflist".into() }]);
    let listing = folder(&[("00-weir.conflist", LIST), ("10-a.conflist", LIST)]);
    let plan = decide(&listing, &owned, &facts());
    assert_eq!((plan.steps.len(), plan.findings), (0, vec![Finding::Foreign { file: "00-weir.conflist".into() }]));
}

#[test]
fn a_drop_in_lies_beside_the_list_and_the_list_stays_as_it_is() {
    let mut listing = folder(&[("10-a.conflist", LIST), ("net/10-tuning.conf", "{}")]);
    let plan = settle(&mut listing, &wanted(Placement::DropIn));
    assert_eq!(plan.placed.as_deref(), Some("net/zz-weir.conf"));
    assert_eq!(text(&listing, "10-a.conflist"), LIST);
    // The network gets another name.
    listing.extend(folder(&[("10-a.conflist", &LIST.replace("net", "other"))]));
    settle(&mut listing, &wanted(Placement::DropIn));
    assert_eq!(names(&listing), ["10-a.conflist", "net/10-tuning.conf", "other/zz-weir.conf"]);
    put_back(&mut listing);
    assert_eq!(names(&listing), ["10-a.conflist", "net/10-tuning.conf"]);
}

#[test]
fn drop_ins_are_used_only_where_they_are_read() {
    let refused = |listing: &Listing, facts: &Facts, why: &str| {
        let plan = decide(listing, &wanted(Placement::DropIn), facts);
        let named = plan
            .findings
            .iter()
            .any(|finding| matches!(finding, Finding::DropInsNotRead { reason } if reason.contains(why)));
        assert!(named, "{why}: {:?}", plan.findings);
        assert!(plan.placed.is_some_and(|placed| !placed.contains('/')), "{why}: chained instead");
    };
    let list = |text: &str| folder(&[("10-a.conflist", text)]);
    refused(&list(LIST), &Facts { drop_ins: Err("containerd does not".into()), ..facts() }, "containerd does not");
    refused(
        &list(&LIST.replace(r#""name""#, r#""loadOnlyInlinedPlugins":true,"name""#)),
        &facts(),
        "loadOnlyInlinedPlugins",
    );
    refused(&list(&LIST.replace(r#""net""#, r#""../x""#)), &facts(), "name of a folder");
    refused(&folder(&[("10-a.conf", SINGLE)]), &facts(), "is no list");
    refused(&folder(&[("10-a.conflist", LIST), ("net/zzz.conf", "{}")]), &facts(), "net/zzz.conf");
}

#[test]
fn a_configuration_of_our_own_leaves_the_nodes_network_alone() {
    let mut listing = folder(&[("10-a.conflist", LIST)]);
    let plan = settle(&mut listing, &wanted(Placement::Standalone));
    assert_eq!(plan.placed.as_deref(), Some(STANDALONE_NAME));
    let ours: Value = serde_json::from_str(text(&listing, STANDALONE_NAME)).unwrap();
    assert_eq!(
        (&ours["type"], &ours["name"], &ours["cniVersion"]),
        (&json!("weir-cni"), &json!("weir-cni"), &json!("0.3.1"))
    );
    assert_eq!(text(&listing, "10-a.conflist"), LIST);
    let mut named = wanted(Placement::Standalone);
    named.pinned = Some("10-a.conflist".into());
    assert_eq!(decide(&listing, &named, &facts()).findings, [Finding::Foreign { file: "10-a.conflist".into() }]);
}

#[test]
fn every_placement_clears_away_what_the_others_left() {
    let placements = [Placement::Chained, Placement::Owned, Placement::DropIn, Placement::Standalone];
    for before in &placements {
        for after in &placements {
            let mut listing = folder(&[("10-a.conflist", LIST)]);
            settle(&mut listing, &wanted(before.clone()));
            settle(&mut listing, &wanted(after.clone()));
            let carriers = listing
                .iter()
                .filter(|(name, _)| is_configuration(name))
                .filter(|(name, file)| {
                    matches!(file, File::Bytes(bytes) if Network::parse(name.rsplit('/').next().unwrap(), bytes)
                    .is_ok_and(|network| network.ours() > 0))
                        || name.ends_with(DROP_IN_NAME)
                })
                .count();
            assert_eq!(carriers, 1, "{before:?} then {after:?}: {:?}", names(&listing));
            put_back(&mut listing);
            assert_eq!(listing, folder(&[("10-a.conflist", LIST)]), "{before:?} then {after:?}");
        }
    }
}

#[test]
fn a_version_is_raised_only_where_every_plugin_speaks_the_new_one() {
    let old = LIST.replace("1.0.0", "0.2.0");
    let listing = folder(&[("a.conflist", &old)]);
    let ask = decide(&listing, &wanted(Placement::Chained), &facts());
    assert_eq!((ask.steps.len(), ask.ask), (0, BTreeSet::from(["bridge".to_owned(), "portmap".to_owned()])));

    let says = |bridge: Said| Facts {
        versions: BTreeMap::from([
            ("bridge".to_owned(), bridge),
            ("portmap".to_owned(), Said::Speaks(vec!["0.3.1".into(), "0.4.0".into()])),
        ]),
        ..facts()
    };
    let both = says(Said::Speaks(vec!["0.4.0".into(), "1.0.0".into()]));
    let mut raised = listing.clone();
    let plan = decide(&listing, &wanted(Placement::Chained), &both);
    carry_out(&mut raised, &plan.steps);
    assert!(text(&raised, "a.conflist").contains(r#""cniVersion":"0.4.0""#));
    assert!(decide(&raised, &wanted(Placement::Chained), &both).is_in_order());
    put_back(&mut raised);
    assert_eq!(raised, listing);

    for (bridge, why) in
        [(Said::Nothing("exit 127".to_owned()), "exit 127"), (Said::Speaks(vec!["0.2.0".to_owned()]), "in common")]
    {
        let plan = decide(&listing, &wanted(Placement::Chained), &says(bridge));
        assert_eq!((plan.steps.len(), &plan.placed), (0, &None));
        assert!(
            matches!(&plan.findings[..], [Finding::Version { reason, .. }] if reason.contains(why)),
            "{:?}",
            plan.findings
        );
    }
    let plan =
        decide(&folder(&[("a.conflist", &LIST.replace("1.0.0", "9.0.0"))]), &wanted(Placement::Chained), &facts());
    assert_eq!(plan.findings[0].name(), "version");
}

#[test]
fn undoing_takes_out_no_more_than_our_entry_where_somebody_changed_the_file() {
    let mut listing = folder(&[("a.conflist", LIST)]);
    settle(&mut listing, &wanted(Placement::Chained));
    let changed = text(&listing, "a.conflist").replace("portmap", "bandwidth");
    listing.extend(folder(&[("a.conflist", &changed)]));
    put_back(&mut listing);
    assert_eq!(listing, folder(&[("a.conflist", &LIST.replace("portmap", "bandwidth"))]));
}

#[test]
fn other_meshes_and_cilium_are_named() {
    let list = LIST.replace("portmap", "istio-cni");
    let plan = decide(
        &folder(&[("a.conflist", &list), ("10-calico.conflist.cilium_bak", LIST)]),
        &wanted(Placement::Chained),
        &facts(),
    );
    assert_eq!(plan.findings.iter().map(Finding::name).collect::<Vec<_>>(), ["other-mesh", "cilium-exclusive"]);
    assert!(plan.placed.is_some(), "that does not keep us from doing our part");
}

/// What may lie in such a folder.
fn any_file() -> impl Strategy<Value = File> {
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
    .prop_map(|text| File::Bytes(text.into_bytes()))
}

fn any_folder() -> impl Strategy<Value = Listing> {
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

/// What a runtime would use: the first file that is a network.
fn first_network(listing: &Listing) -> Option<&str> {
    View::new(listing, &[]).networks.keys().copied().next()
}

#[test]
fn a_raised_version_goes_back_where_the_entry_moves_beside_the_list() {
    let old = folder(&[("a.conflist", &LIST.replace("1.0.0", "0.2.0"))]);
    let mut listing = old.clone();
    for placement in [Placement::Chained, Placement::DropIn, Placement::Owned, Placement::DropIn] {
        let steps = decide(&listing, &wanted(placement.clone()), &answers()).steps;
        carry_out(&mut listing, &steps);
        let plan = decide(&listing, &wanted(placement.clone()), &answers());
        assert!(plan.is_in_order(), "{placement:?}: {plan:?}");
        assert!(
            plan.placed.is_some_and(|placed| !placed.contains('/')),
            "no drop-in in a version that we do not speak"
        );
    }
    put_back(&mut listing);
    assert_eq!(listing, old);
}

proptest! {
    #[test]
    fn wherever_it_is_cut_off_it_ends_in_the_same_state(start in any_folder(), placement in any_placement(), cut in 0..6usize) {
        let wanted = wanted(placement);
        let plan = decide(&start, &wanted, &answers());
        let mut whole = start.clone();
        carry_out(&mut whole, &plan.steps);
        let again = decide(&whole, &wanted, &answers());
        prop_assert_eq!(&again.steps, &Vec::new(), "{:?}\n{:?}", start, whole);

        let mut part = start.clone();
        for step in plan.steps.iter().take(cut) {
            let had_network = first_network(&part).is_some();
            carry_out(&mut part, std::slice::from_ref(step));
            prop_assert!(first_network(&part).is_some() || !had_network || plan.placed.is_none() || again.primary.is_none(),
                "no step takes the node's network away: {:?}", step);
        }
        for _ in 0..3 {
            let rest = decide(&part, &wanted, &answers());
            carry_out(&mut part, &rest.steps);
        }
        prop_assert_eq!(&part, &whole);
    }

    #[test]
    fn undoing_leaves_no_trace_wherever_it_is_cut_off(start in any_folder(), placement in any_placement(), cut in 0..6usize) {
        let mut listing = start;
        let steps = decide(&listing, &wanted(placement), &answers()).steps;
        carry_out(&mut listing, &steps);
        let steps = undo(&listing, "00-weir.conflist").steps;
        let mut whole = listing.clone();
        carry_out(&mut whole, &steps);
        carry_out(&mut listing, &steps[..cut.min(steps.len())]);
        let rest = undo(&listing, "00-weir.conflist").steps;
        carry_out(&mut listing, &rest);
        prop_assert_eq!(undo(&whole, "00-weir.conflist").steps, []);
        prop_assert_eq!(&listing, &whole);
        let ours = View::new(&whole, &[]).networks.values().map(Network::ours).sum::<usize>();
        prop_assert_eq!(ours, 0);
    }
}
