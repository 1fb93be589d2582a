//! Istio's own tables about installing: which file is chosen, where the entry goes, what is kept and what is refused.
//!
//! The data is not part of this project; where it is absent the tests say so and pass. Istio's entry is read as ours. Where Weir departs on purpose
//! (docs/differences.md), the expected side is changed by a rule, never case by case.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weir_agent::install::disk::RealDisk;
use weir_agent::install::pass::{Installer, Mode, Outcome};
use weir_agent::install::plan::{self, Facts, File, Listing, Placement, Plan, STANDALONE_NAME, Step, Wanted};
use weir_agent::install::uninstall;
use weir_protocol::entry::PluginEntry;
use weir_protocol::version::CniVersion;

use crate::node::Node;

const ISTIO: &str = "istio-cni";
const ISTIO_STANDALONE: &str = "YYY-istio-cni.conf";
const ISTIO_OWNED: &str = "02-istio-conf.conflist";

fn data() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/install");
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: no conformance data at {}", path.display());
    None
}

fn cases(data: &Path, table: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(&fs::read_to_string(data.join("cases.json")).unwrap()).unwrap();
    let cases = all["install"][table].as_array().unwrap_or_else(|| panic!("no table {table}")).clone();
    assert!(!cases.is_empty(), "{table} is empty");
    cases
}

fn text<'a>(case: &'a Value, key: &str) -> Option<&'a str> {
    case[key].as_str().filter(|text| !text.is_empty())
}

fn flag(case: &Value, key: &str) -> bool {
    case[key].as_bool().unwrap_or(false)
}

/// A file of Istio's with our entry in the place of theirs; anything else as it is.
fn as_ours(text: &str) -> String {
    let entry = Value::Object(PluginEntry::default().to_map());
    let Some(mut value) = serde_json::from_str::<Value>(text).ok().filter(Value::is_object) else {
        return text.to_owned();
    };
    if value["type"] == ISTIO {
        value = Value::Object(PluginEntry::default().to_standalone("weir-cni", CniVersion::V0_3_1));
    }
    let mut found = false;
    for plugin in value.get_mut("plugins").and_then(Value::as_array_mut).into_iter().flatten() {
        if plugin["type"] == ISTIO {
            plugin.clone_from(&entry);
            found = true;
        }
    }
    if found || value["type"] == "weir-cni" { serde_json::to_string_pretty(&value).unwrap() } else { text.to_owned() }
}

fn unit(data: &Path, name: &str) -> String {
    as_ours(&fs::read_to_string(data.join("unit").join(name)).unwrap())
}

/// `existingConfFiles` is a list of names or a map from the data's name to the folder's.
fn existing(data: &Path, case: &Value) -> Listing {
    let mut listing = Listing::new();
    let mut add =
        |from: &str, to: &str| drop(listing.insert(to.to_owned(), File::Bytes(unit(data, from).into_bytes())));
    match &case["existingConfFiles"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).for_each(|name| add(name, name)),
        Value::Object(names) => names.iter().for_each(|(from, to)| add(from, to.as_str().unwrap())),
        _ => {}
    }
    listing
}

fn wanted(case: &Value, pinned: Option<&str>) -> Wanted {
    let placement = match (flag(case, "chainedCNIPlugin"), flag(case, "istioOwnedCNIConfig")) {
        (false, _) => Placement::Standalone,
        (true, true) => Placement::Owned,
        (true, false) => Placement::Chained,
    };
    Wanted {
        placement,
        entry: PluginEntry::default(),
        pinned: pinned.map(str::to_owned),
        owned_name: text(case, "istioOwnedCNIConfigFilename").unwrap_or(ISTIO_OWNED).to_owned(),
        folder: "net.d".to_owned(),
    }
}

fn decide(listing: &Listing, wanted: &Wanted) -> Plan {
    plan::decide(listing, wanted, &Facts { drop_ins: Err("not asked".to_owned()), versions: BTreeMap::new() })
}

fn carry_out(listing: &mut Listing, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Write { file, bytes, .. } => drop(listing.insert(file, File::Bytes(bytes))),
            Step::Remove { file, .. } => drop(listing.remove(&file)),
        }
    }
}

fn value(listing: &Listing, name: &str) -> Value {
    match listing.get(name) {
        Some(File::Bytes(bytes)) => serde_json::from_slice(bytes).unwrap(),
        other => panic!("{name} is {other:?}"),
    }
}

fn our_name(name: &str) -> &str {
    if name == ISTIO_STANDALONE { STANDALONE_NAME } else { name }
}

/// Difference: a single plugin's network keeps its name and version, and the plugin its own text.
fn keeping_the_network(mut golden: Value, original: &Value) -> Value {
    if original.get("type").is_some() && golden.get("plugins").is_some() {
        for key in ["name", "cniVersion"] {
            if let Some(value) = original.get(key) {
                golden[key] = value.clone();
            }
        }
        golden["plugins"][0] = original.clone();
    }
    golden
}

#[test]
fn the_check_finds_what_istios_check_finds() {
    let Some(data) = data() else { return };
    for case in cases(&data, "check_valid_config") {
        let listing = existing(&data, &case);
        let standalone = !flag(&case, "chainedCNIPlugin");
        let pinned = if standalone { text(&case, "cniConfigFilename") } else { text(&case, "cniConfName") };
        let wanted = wanted(&case, pinned);
        let plan = decide(&listing, &wanted);
        // Difference: our own list without a network that it is made from is not in order, it goes.
        let alone = wanted.placement == Placement::Owned && listing.keys().all(|name| *name == wanted.owned_name);
        let valid = !flag(&case, "expectedFailure") && !alone;
        assert_eq!(plan.is_in_order(), valid, "{}: {plan:?}", case["name"]);
    }
}

#[test]
fn what_was_spoilt_is_found_again() {
    let Some(data) = data() else { return };
    for case in cases(&data, "sleep_check_install").into_iter().filter(|case| !flag(case, "istioOwnedCNIConfig")) {
        let name = text(&case, "cniConfigFilename").unwrap();
        let wanted = wanted(&case, (!flag(&case, "chainedCNIPlugin")).then_some(name));
        let mut listing = Listing::new();
        assert!(!decide(&listing, &wanted).is_in_order(), "{}: nothing there", case["name"]);
        for (key, valid) in [("invalidConfigFilename", false), ("validConfigFilename", true)] {
            if let Some(file) = text(&case, key) {
                listing.insert(name.to_owned(), File::Bytes(unit(&data, file).into_bytes()));
                assert_eq!(decide(&listing, &wanted).is_in_order(), valid, "{}: {file}", case["name"]);
            }
        }
    }
}

#[test]
fn the_first_network_of_a_folder_is_the_same() {
    let Some(data) = data() else { return };
    // The cases follow one another in one folder.
    let mut listing = Listing::new();
    for case in cases(&data, "get_config_filenames") {
        if let Some(name) = text(&case, "inFilename") {
            let content = case["fileContents"].as_str().unwrap_or_default();
            listing.insert(name.to_owned(), File::Bytes(content.as_bytes().to_vec()));
        }
        let plan = decide(&listing, &wanted(&json!({"chainedCNIPlugin": true}), None));
        assert_eq!(plan.primary.as_deref(), text(&case, "outFilename"), "{}", case["name"]);
        assert_eq!(plan.primary.is_none(), flag(&case, "expectedFailure"), "{}", case["name"]);
    }
}

#[test]
fn the_same_file_is_chosen_and_waited_for() {
    let Some(data) = data() else { return };
    for case in cases(&data, "get_cni_config_filepath") {
        let wanted = wanted(&case, text(&case, "specifiedConfName"));
        let mut listing = existing(&data, &case);
        if let Some(delayed) = text(&case, "delayedConfName") {
            let plan = decide(&listing, &wanted);
            assert_eq!((plan.steps.len(), plan.placed), (0, None), "{}: too early", case["name"]);
            listing.insert(delayed.to_owned(), File::Bytes(unit(&data, "bridge.conf").into_bytes()));
        }
        let plan = decide(&listing, &wanted);
        let chosen = if wanted.placement == Placement::Standalone { plan.placed.clone() } else { plan.primary.clone() };
        let expected = text(&case, "expectedConfName").map(our_name);
        assert_eq!(chosen.as_deref(), expected, "{}: {plan:?}", case["name"]);
        assert_eq!(plan.steps.is_empty(), expected.is_none(), "{}", case["name"]);
    }
}

#[test]
fn the_entry_goes_where_istios_goes() {
    let Some(data) = data() else { return };
    for case in cases(&data, "insert_cni_config") {
        let (name, new) = (text(&case, "existingConfFilename").unwrap(), text(&case, "newConfFilename").unwrap());
        if !new.contains(ISTIO) {
            // Our entry is a typed value; there is no file of it that could be wrong.
            continue;
        }
        let original = unit(&data, name);
        let mut listing = Listing::from([(name.to_owned(), File::Bytes(original.clone().into_bytes()))]);
        let plan = decide(&listing, &wanted(&json!({"chainedCNIPlugin": true}), None));
        if flag(&case, "expectedFailure") {
            assert_eq!((plan.steps.len(), plan.placed), (0, None), "{}", case["name"]);
            continue;
        }
        carry_out(&mut listing, plan.steps);
        let golden = serde_json::from_str(&unit(&data, &format!("{name}.golden"))).unwrap();
        let golden = keeping_the_network(golden, &serde_json::from_str(&original).unwrap());
        assert_eq!(value(&listing, &plan.placed.unwrap()), golden, "{}", case["name"]);
    }
}

#[test]
fn the_same_file_is_written() {
    let Some(data) = data() else { return };
    for case in cases(&data, "create_cni_config_file") {
        let wanted = wanted(&case, text(&case, "specifiedConfName"));
        let mut listing = existing(&data, &case);
        let before = listing.clone();
        let plan = decide(&listing, &wanted);
        let Some(expected) = text(&case, "expectedConfName").map(our_name) else {
            assert_eq!((plan.steps.len(), plan.placed), (0, None), "{}", case["name"]);
            continue;
        };
        assert_eq!(plan.placed.as_deref(), Some(expected), "{}: {plan:?}", case["name"]);
        carry_out(&mut listing, plan.steps);
        let golden = serde_json::from_str(&unit(&data, text(&case, "goldenConfName").unwrap())).unwrap();
        let golden = match plan.primary.filter(|_| wanted.placement != Placement::Standalone) {
            Some(primary) => keeping_the_network(golden, &value(&before, &primary)),
            None => golden,
        };
        assert_eq!(value(&listing, expected), golden, "{}", case["name"]);
        assert!(decide(&listing, &wanted).is_in_order(), "{}", case["name"]);
        let steps = plan::undo(&listing, &wanted.owned_name).steps;
        carry_out(&mut listing, steps);
        assert_eq!(listing, before, "{}: undone", case["name"]);
    }
}

#[test]
fn cleaning_up_leaves_what_istio_leaves() {
    let Some(data) = data() else { return };
    for case in cases(&data, "cleanup") {
        let name = text(&case, "configFilename").unwrap();
        let content = unit(&data, text(&case, "existingConfigFilename").unwrap());
        let mut listing = Listing::from([(name.to_owned(), File::Bytes(content.into_bytes()))]);
        let owned = if flag(&case, "istioOwnedCNIConfig") { name } else { ISTIO_OWNED };
        let steps = plan::undo(&listing, owned).steps;
        carry_out(&mut listing, steps);
        match text(&case, "expectedConfigFilename") {
            Some(expected) => {
                let expected: Value = serde_json::from_str(&unit(&data, expected)).unwrap();
                assert_eq!(value(&listing, name), expected, "{}", case["name"]);
            }
            None => assert_eq!(listing, Listing::new(), "{}", case["name"]),
        }
    }
}

#[test]
fn the_binary_is_copied_and_updated() {
    let Some(data) = data() else { return };
    for case in cases(&data, "copy_binaries") {
        let node = Node::new();
        let name = |istio: &str| if istio == ISTIO { "weir-cni".to_owned() } else { istio.to_owned() };
        let contents = |key: &str| -> BTreeMap<String, String> {
            let files = case[key].as_object().cloned().unwrap_or_default();
            files.iter().map(|(file, content)| (name(file), content.as_str().unwrap().to_owned())).collect()
        };
        for (file, content) in contents("existingFiles") {
            fs::write(node.bin().join(file), content).unwrap();
        }
        node.image(&contents("srcFiles")["weir-cni"]);
        node.write("10-a.conflist", crate::node::LIST);
        Installer::new(node.settings(&[]), RealDisk).pass(Mode::Act);
        let installed = fs::read_to_string(node.bin().join("weir-cni")).unwrap();
        assert_eq!(installed, contents("expectedFiles")["weir-cni"], "{}", case["name"]);
    }
}

/// Istio's end-to-end procedure: install, spoil, restore, uninstall.
#[test]
fn goes_through_istios_whole_procedure() {
    let Some(data) = data() else { return };
    for case in cases(&data, "e2e_install") {
        let file = |key: &str| {
            let path = text(&case, key)?.strip_prefix("cni/test/testdata/")?.to_owned();
            Some(as_ours(&fs::read_to_string(data.join("e2e").join(path)).unwrap()))
        };
        let node = Node::new();
        for plugin in ["bridge", "portmap"] {
            fs::remove_file(node.bin().join(plugin)).unwrap();
        }
        let mut originals = BTreeMap::new();
        for (index, name) in case["cniConfDirOrderedFiles"].as_array().into_iter().flatten().enumerate() {
            let name = name.as_str().unwrap();
            let content = fs::read_to_string(data.join("e2e/pre").join(name)).unwrap();
            originals.insert(format!("{index:02}-{name}"), content);
        }
        let chained = format!("--chained-cni-plugin={}", flag(&case, "chainedCNIPlugin"));
        let pinned = format!("--cni-conf-name={}", text(&case, "preConfFile").unwrap_or_default());
        let mut installer = Installer::new(node.settings(&[&chained, &pinned, "--exclude-namespaces="]), RealDisk);
        let result = our_name(text(&case, "resultFileName").unwrap());
        if let Some(delayed) = file("delayedConfFile") {
            assert_eq!(installer.pass(Mode::Act).outcome, Outcome::Waiting, "{}", case["name"]);
            originals.insert(result.to_owned(), delayed);
        }
        for (name, content) in &originals {
            node.write(name, content);
        }

        // The socket lies where this test's agent has its folder.
        let socket = json!(node.args(&[]).entry().agent_socket).to_string();
        let expected = file("expectedOutputFile").unwrap().replace(r#""/var/run/weir/agent.sock""#, &socket);
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let source = result.strip_suffix("list").and_then(|single| originals.get(single));
        let expected = match source.map(|single| serde_json::from_str(single).unwrap()) {
            Some(original) => keeping_the_network(expected, &original),
            None => expected,
        };
        let check = |what: &str| {
            let found: Value = serde_json::from_str(&fs::read_to_string(node.conf().join(result)).unwrap()).unwrap();
            assert_eq!(found, expected, "{}: {what}", case["name"]);
        };
        assert!(matches!(installer.pass(Mode::Act).outcome, Outcome::InPlace { .. }), "{}", case["name"]);
        check("installed");
        let spoilt = fs::read_to_string(node.conf().join(result)).unwrap().replace("weir-cni", "gone-cni");
        if flag(&case, "chainedCNIPlugin") {
            let mut value: Value = serde_json::from_str(&spoilt).unwrap();
            value["plugins"].as_array_mut().unwrap().pop();
            node.write(result, &serde_json::to_string(&value).unwrap());
        } else {
            fs::remove_file(node.conf().join(result)).unwrap();
        }
        installer.pass(Mode::Act);
        check("restored");

        drop(installer);
        let done = uninstall::uninstall(&node.settings(&[]), &RealDisk, std::time::Duration::ZERO).unwrap();
        assert_eq!(done.binary, uninstall::BinaryLeft::Removed, "{}", case["name"]);
        assert!(!node.bin().join("weir-cni").exists());
        let left = Node::files(&node.conf());
        assert_eq!(left.keys().collect::<Vec<_>>(), originals.keys().collect::<Vec<_>>(), "{}", case["name"]);
        for (name, content) in &originals {
            // Somebody rewrote the list in between, so that it is not the original's bytes but its meaning.
            let same = left[name] == *content
                || serde_json::from_str::<Value>(&left[name]).unwrap()
                    == serde_json::from_str::<Value>(content).unwrap();
            assert!(same, "{}: {name}: {}", case["name"], left[name]);
        }
    }
}
