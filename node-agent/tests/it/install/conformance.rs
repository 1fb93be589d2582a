//! Istio's own test tables of the installation: which file is chosen, where the entry goes, what is kept and what is rejected.
//!
//! The data is not part of this project: without it the tests are skipped, but fail in CI. Istio's entry is read as ours. For intended
//! differences (docs/differences/node-agent.md) a rule changes the expected result, never a single case.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weir_agent::install::file_system::OsFileSystem;
use weir_agent::install::installer::{InstallOutcome, Installer, Mode};
use weir_agent::install::plan::{
    self, ConfDir, ConfFile, DesiredEntry, FileStep, Placement, Plan, RuntimeFacts, STANDALONE_NAME,
};
use weir_agent::install::uninstall;
use weir_protocol::entry::PluginEntry;
use weir_protocol::version::CniVersion;

use super::node::Node;

const ISTIO: &str = "istio-cni";
const ISTIO_STANDALONE: &str = "YYY-istio-cni.conf";
const ISTIO_OWNED: &str = "02-istio-conf.conflist";

fn data() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/install");
    if path.is_dir() {
        return Some(path);
    }
    weir_lab::skip_or_fail(format_args!("no conformance data at {}", path.display()));
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

/// Replaces Istio's entry with ours; leaves any other text unchanged.
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

/// `existingConfFiles` is a list of names or a map from the name in the data to the name in the directory.
fn existing(data: &Path, case: &Value) -> ConfDir {
    let mut conf_dir = ConfDir::new();
    let mut add =
        |from: &str, to: &str| drop(conf_dir.insert(to.to_owned(), ConfFile::Bytes(unit(data, from).into_bytes())));
    match &case["existingConfFiles"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).for_each(|name| add(name, name)),
        Value::Object(names) => names.iter().for_each(|(from, to)| add(from, to.as_str().unwrap())),
        _ => {}
    }
    conf_dir
}

fn desired(case: &Value, pinned: Option<&str>) -> DesiredEntry {
    let placement = match (flag(case, "chainedCNIPlugin"), flag(case, "istioOwnedCNIConfig")) {
        (false, _) => Placement::Standalone,
        (true, true) => Placement::Owned,
        (true, false) => Placement::Chained,
    };
    DesiredEntry {
        placement,
        entry: PluginEntry::default(),
        pinned: pinned.map(str::to_owned),
        owned_name: text(case, "istioOwnedCNIConfigFilename").unwrap_or(ISTIO_OWNED).to_owned(),
        dir: "net.d".to_owned(),
    }
}

fn decide(conf_dir: &ConfDir, entry: &DesiredEntry) -> Plan {
    plan::decide(conf_dir, entry, &RuntimeFacts { drop_ins: Err("not queried".to_owned()), versions: BTreeMap::new() })
}

fn apply(conf_dir: &mut ConfDir, steps: Vec<FileStep>) {
    for step in steps {
        match step {
            FileStep::Write { file, bytes, .. } => drop(conf_dir.insert(file, ConfFile::Bytes(bytes))),
            FileStep::Remove { file, .. } => drop(conf_dir.remove(&file)),
        }
    }
}

fn value(conf_dir: &ConfDir, name: &str) -> Value {
    match conf_dir.get(name) {
        Some(ConfFile::Bytes(bytes)) => serde_json::from_slice(bytes).unwrap(),
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
fn check_agrees_with_istios_check() {
    let Some(data) = data() else { return };
    for case in cases(&data, "check_valid_config") {
        let conf_dir = existing(&data, &case);
        let standalone = !flag(&case, "chainedCNIPlugin");
        let pinned = if standalone { text(&case, "cniConfigFilename") } else { text(&case, "cniConfName") };
        let desired_entry = desired(&case, pinned);
        let plan = decide(&conf_dir, &desired_entry);
        // Difference: our own list without a primary is removed.
        let alone = desired_entry.placement == Placement::Owned
            && conf_dir.keys().all(|name| *name == desired_entry.owned_name);
        let valid = !flag(&case, "expectedFailure") && !alone;
        assert_eq!(plan.is_up_to_date(), valid, "{}: {plan:?}", case["name"]);
    }
}

#[test]
fn a_changed_configuration_is_detected() {
    let Some(data) = data() else { return };
    for case in cases(&data, "sleep_check_install").into_iter().filter(|case| !flag(case, "istioOwnedCNIConfig")) {
        let name = text(&case, "cniConfigFilename").unwrap();
        let desired_entry = desired(&case, (!flag(&case, "chainedCNIPlugin")).then_some(name));
        let mut conf_dir = ConfDir::new();
        assert!(!decide(&conf_dir, &desired_entry).is_up_to_date(), "{}: nothing there", case["name"]);
        for (key, valid) in [("invalidConfigFilename", false), ("validConfigFilename", true)] {
            if let Some(file) = text(&case, key) {
                conf_dir.insert(name.to_owned(), ConfFile::Bytes(unit(&data, file).into_bytes()));
                assert_eq!(decide(&conf_dir, &desired_entry).is_up_to_date(), valid, "{}: {file}", case["name"]);
            }
        }
    }
}

#[test]
fn primary_is_the_file_that_istio_chooses() {
    let Some(data) = data() else { return };
    // The cases follow one another in one directory.
    let mut conf_dir = ConfDir::new();
    for case in cases(&data, "get_config_filenames") {
        if let Some(name) = text(&case, "inFilename") {
            let content = case["fileContents"].as_str().unwrap_or_default();
            conf_dir.insert(name.to_owned(), ConfFile::Bytes(content.as_bytes().to_vec()));
        }
        let plan = decide(&conf_dir, &desired(&json!({"chainedCNIPlugin": true}), None));
        assert_eq!(plan.primary.as_deref(), text(&case, "outFilename"), "{}", case["name"]);
        assert_eq!(plan.primary.is_none(), flag(&case, "expectedFailure"), "{}", case["name"]);
    }
}

#[test]
fn chosen_file_is_that_of_istio_also_when_it_is_late() {
    let Some(data) = data() else { return };
    for case in cases(&data, "get_cni_config_filepath") {
        let desired_entry = desired(&case, text(&case, "specifiedConfName"));
        let mut conf_dir = existing(&data, &case);
        if let Some(delayed) = text(&case, "delayedConfName") {
            let plan = decide(&conf_dir, &desired_entry);
            assert_eq!((plan.steps.len(), plan.entry_file), (0, None), "{}: too early", case["name"]);
            conf_dir.insert(delayed.to_owned(), ConfFile::Bytes(unit(&data, "bridge.conf").into_bytes()));
        }
        let plan = decide(&conf_dir, &desired_entry);
        let chosen = if desired_entry.placement == Placement::Standalone {
            plan.entry_file.clone()
        } else {
            plan.primary.clone()
        };
        let expected = text(&case, "expectedConfName").map(our_name);
        assert_eq!(chosen.as_deref(), expected, "{}: {plan:?}", case["name"]);
        assert_eq!(plan.steps.is_empty(), expected.is_none(), "{}", case["name"]);
    }
}

#[test]
fn entry_is_inserted_where_istio_inserts_its_own() {
    let Some(data) = data() else { return };
    for case in cases(&data, "insert_cni_config") {
        let (name, new) = (text(&case, "existingConfFilename").unwrap(), text(&case, "newConfFilename").unwrap());
        if !new.contains(ISTIO) {
            // Our entry is a typed value; it cannot be invalid.
            continue;
        }
        let original = unit(&data, name);
        let mut conf_dir = ConfDir::from([(name.to_owned(), ConfFile::Bytes(original.clone().into_bytes()))]);
        let plan = decide(&conf_dir, &desired(&json!({"chainedCNIPlugin": true}), None));
        if flag(&case, "expectedFailure") {
            assert_eq!((plan.steps.len(), plan.entry_file), (0, None), "{}", case["name"]);
            continue;
        }
        apply(&mut conf_dir, plan.steps);
        let golden = serde_json::from_str(&unit(&data, &format!("{name}.golden"))).unwrap();
        let golden = keeping_the_network(golden, &serde_json::from_str(&original).unwrap());
        assert_eq!(value(&conf_dir, &plan.entry_file.unwrap()), golden, "{}", case["name"]);
    }
}

#[test]
fn written_file_is_that_of_istio() {
    let Some(data) = data() else { return };
    for case in cases(&data, "create_cni_config_file") {
        let desired_entry = desired(&case, text(&case, "specifiedConfName"));
        let mut conf_dir = existing(&data, &case);
        let before = conf_dir.clone();
        let plan = decide(&conf_dir, &desired_entry);
        let Some(expected) = text(&case, "expectedConfName").map(our_name) else {
            assert_eq!((plan.steps.len(), plan.entry_file), (0, None), "{}", case["name"]);
            continue;
        };
        assert_eq!(plan.entry_file.as_deref(), Some(expected), "{}: {plan:?}", case["name"]);
        apply(&mut conf_dir, plan.steps);
        let golden = serde_json::from_str(&unit(&data, text(&case, "goldenConfName").unwrap())).unwrap();
        let golden = match plan.primary.filter(|_| desired_entry.placement != Placement::Standalone) {
            Some(primary) => keeping_the_network(golden, &value(&before, &primary)),
            None => golden,
        };
        assert_eq!(value(&conf_dir, expected), golden, "{}", case["name"]);
        assert!(decide(&conf_dir, &desired_entry).is_up_to_date(), "{}", case["name"]);
        let steps = plan::undo(&conf_dir, &desired_entry.owned_name).steps;
        apply(&mut conf_dir, steps);
        assert_eq!(conf_dir, before, "{}: undone", case["name"]);
    }
}

#[test]
fn cleanup_leaves_what_istio_leaves() {
    let Some(data) = data() else { return };
    for case in cases(&data, "cleanup") {
        let name = text(&case, "configFilename").unwrap();
        let content = unit(&data, text(&case, "existingConfigFilename").unwrap());
        let mut conf_dir = ConfDir::from([(name.to_owned(), ConfFile::Bytes(content.into_bytes()))]);
        let owned = if flag(&case, "istioOwnedCNIConfig") { name } else { ISTIO_OWNED };
        let steps = plan::undo(&conf_dir, owned).steps;
        apply(&mut conf_dir, steps);
        match text(&case, "expectedConfigFilename") {
            Some(expected) => {
                let expected: Value = serde_json::from_str(&unit(&data, expected)).unwrap();
                assert_eq!(value(&conf_dir, name), expected, "{}", case["name"]);
            }
            None => assert_eq!(conf_dir, ConfDir::new(), "{}", case["name"]),
        }
    }
}

#[test]
fn binary_is_copied_and_updated() {
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
        node.write("10-a.conflist", super::node::LIST);
        Installer::new(node.settings(&[]), OsFileSystem).reconcile(Mode::Apply);
        let installed = fs::read_to_string(node.bin().join("weir-cni")).unwrap();
        assert_eq!(installed, contents("expectedFiles")["weir-cni"], "{}", case["name"]);
    }
}

/// Istio's end-to-end procedure: install, change, restore, uninstall.
#[test]
fn end_to_end_procedure_of_istio_passes() {
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
        let mut installer = Installer::new(node.settings(&[&chained, &pinned, "--exclude-namespaces="]), OsFileSystem);
        let result = our_name(text(&case, "resultFileName").unwrap());
        if let Some(delayed) = file("delayedConfFile") {
            assert_eq!(installer.reconcile(Mode::Apply).outcome, InstallOutcome::NoNetwork, "{}", case["name"]);
            originals.insert(result.to_owned(), delayed);
        }
        for (name, content) in &originals {
            node.write(name, content);
        }

        // The socket is in the run directory of this test.
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
        assert!(
            matches!(installer.reconcile(Mode::Apply).outcome, InstallOutcome::Installed { .. }),
            "{}",
            case["name"]
        );
        check("installed");
        let spoilt = fs::read_to_string(node.conf().join(result)).unwrap().replace("weir-cni", "gone-cni");
        if flag(&case, "chainedCNIPlugin") {
            let mut value: Value = serde_json::from_str(&spoilt).unwrap();
            value["plugins"].as_array_mut().unwrap().pop();
            node.write(result, &serde_json::to_string(&value).unwrap());
        } else {
            fs::remove_file(node.conf().join(result)).unwrap();
        }
        installer.reconcile(Mode::Apply);
        check("restored");

        drop(installer);
        let done = uninstall::uninstall(&node.settings(&[]), &OsFileSystem, std::time::Duration::ZERO).unwrap();
        assert_eq!(done.binary, uninstall::BinaryRemoval::Removed, "{}", case["name"]);
        assert!(!node.bin().join("weir-cni").exists());
        let left = Node::files(&node.conf());
        assert_eq!(left.keys().collect::<Vec<_>>(), originals.keys().collect::<Vec<_>>(), "{}", case["name"]);
        for (name, content) in &originals {
            // The list was rewritten in between, so it equals the original as JSON only.
            let same = left[name] == *content
                || serde_json::from_str::<Value>(&left[name]).unwrap()
                    == serde_json::from_str::<Value>(content).unwrap();
            assert!(same, "{}: {name}: {}", case["name"], left[name]);
        }
    }
}
