//! `weir inject`.

use serde_json::{Value, json};
use weir_injector::yaml;

use crate::run::{containers, documents, file, inject, weir};

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: app
        image: nginx
";

const SERVICE: &str = "\
# The way in.
apiVersion: v1
kind: Service
metadata: {name: web}   # flow style, odd spacing
spec:
    ports:
    - { port: 0080 }
";

/// Returns an object of a kind with a pod template.
fn workload(api_version: &str, kind: &str) -> Value {
    let mut object = yaml::from_str(DEPLOYMENT).unwrap();
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    object
}

#[test]
fn every_workload_kind_is_injected() {
    let template = workload("", "")["spec"]["template"].clone();
    let cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
        "spec": {"schedule": "0 3 * * *", "jobTemplate": {"metadata": {"labels": {"of": "job"}}, "spec": {"template": template}}},
    });
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": template["spec"]});
    let cases = [
        (pod, ""),
        (workload("apps/v1", "Deployment"), "/spec/template"),
        (workload("apps/v1", "StatefulSet"), "/spec/template"),
        (workload("apps/v1", "DaemonSet"), "/spec/template"),
        (workload("apps/v1", "ReplicaSet"), "/spec/template"),
        (workload("v1", "ReplicationController"), "/spec/template"),
        (workload("batch/v1", "Job"), "/spec/template"),
        (workload("v1", "DeploymentConfig"), "/spec/template"),
        (workload("apps.openshift.io/v1", "DeploymentConfig"), "/spec/template"),
        (cron_job, "/spec/jobTemplate/spec/template"),
    ];
    for (object, template) in cases {
        let kind = &object["kind"];
        let mut got = documents(&inject(&[], &object.to_string()).stdout).remove(0);
        assert_eq!(containers(&got, &format!("{template}/spec/containers")), ["app"], "{kind}");
        assert!(containers(&got, &format!("{template}/spec/initContainers")).contains(&"istio-proxy"), "{kind}");
        let annotations = got.pointer(&format!("{template}/metadata/annotations")).unwrap();
        assert!(annotations.get("sidecar.istio.io/status").is_some(), "{kind}: {annotations}");

        // Everything but the pod is unchanged.
        let original = object.pointer(template).unwrap();
        let place = got.pointer_mut(template).unwrap();
        place["spec"] = original["spec"].clone();
        match original.get("metadata") {
            Some(metadata) => place["metadata"] = metadata.clone(),
            None => drop(place.as_object_mut().unwrap().remove("metadata")),
        }
        assert_eq!(got, object);
    }
}

#[test]
fn third_party_kinds_are_unchanged() {
    for api_version in ["batch.volcano.sh/v1alpha1", "example.com/v1"] {
        let text = workload(api_version, "Job").to_string() + "\n";
        assert_eq!(inject(&[], &text).stdout, text);
    }
}

#[test]
fn other_documents_are_unchanged() {
    let tail = "---\n\n--- # last\nkind: Other\nname: 'no line end'";
    let stream = format!("# License\n---\n{SERVICE}---\n# The web.\n{DEPLOYMENT}{tail}");
    let output = inject(&[], &stream).stdout;
    let head = format!(
        "# License\n---\n{SERVICE}---\n# The web.\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n"
    );
    assert!(output.starts_with(&head), "{output}");
    assert!(output.ends_with(tail), "{output}");
    assert_eq!(weir(&["uninject", "-f", "-"], &output).stdout, stream);
}

#[test]
fn items_of_a_list_are_injected() {
    let service = yaml::from_str(SERVICE).unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
        service, workload("apps/v1", "Deployment"), workload("batch/v1", "Job"),
    ]});
    let got = documents(&inject(&[], &list.to_string()).stdout).remove(0);
    assert_eq!(got["items"][0], list["items"][0]);
    assert_eq!(got["metadata"], list["metadata"]);
    for item in ["/items/1", "/items/2"] {
        let names = containers(&got, &format!("{item}/spec/template/spec/initContainers"));
        assert!(names.contains(&"istio-proxy"), "{item}: {names:?}");
    }
}

#[test]
fn skipped_pod_is_unchanged_and_the_reason_reported() {
    let comment = "    spec: # keep me\n      hostNetwork: true\n";
    let host = DEPLOYMENT.replace("    spec:\n", comment);
    let off = DEPLOYMENT.replace("app: web", "sidecar.istio.io/inject: \"false\"").replace("  namespace: shop\n", "");
    let system = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: kube-system\n\
                  spec:\n  containers:\n  - {name: a, image: a}\n";
    let stream = format!("{host}---\n{off}---\n{system}---\n");
    let run = inject(&[], &stream);
    assert_eq!(run.stdout, stream);
    insta::assert_snapshot!(run.stderr.trim(), @r#"
    ===> Skipping injection because Deployment "shop/web" has host networking enabled: the pod uses the host network; capture rules would capture the node's own traffic

    ===> Skipping injection because Deployment "web" has sidecar injection disabled: sidecar.istio.io/inject is "false"

    ===> Skipping injection because Pod "kube-system/web" has sidecar injection disabled: pods in this system namespace are never injected
    "#);
}

/// `istioctl kube-inject` asks for the namespace that the pod template names, and a template names none.
#[test]
fn workload_in_a_system_namespace_is_injected() {
    let run = inject(&[], &DEPLOYMENT.replace("namespace: shop", "namespace: kube-system"));
    assert!(containers(&documents(&run.stdout)[0], "/spec/template/spec/initContainers").contains(&"istio-proxy"));
}

#[test]
fn invalid_label_of_a_skipped_pod_is_reported() {
    let text = DEPLOYMENT
        .replace("app: web", "sidecar.istio.io/inject: \"no\"")
        .replace("    spec:\n", "    spec:\n      hostNetwork: true\n");
    let run = inject(&[], &text);
    assert!(run.stderr.contains("label 'sidecar.istio.io/inject' is ignored: \"no\" is neither"), "{}", run.stderr);
    assert!(run.stderr.contains("===> Skipping injection"), "{}", run.stderr);
}

#[test]
fn fields_of_wrong_type_are_errors() {
    let text = DEPLOYMENT.replace("    spec:\n", "    spec:\n      volumes: mine\n      initContainers: {}\n");
    let run = weir(&["inject", "-f", "-"], &text);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.contains("spec.volumes must be a list, found a string"), "{}", run.stderr);
    assert!(run.stderr.contains("spec.initContainers must be a list, found an object"), "{}", run.stderr);
}

#[test]
fn injection_is_idempotent() {
    let cron_job = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{name: a}]}}}}}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  initContainers:\n  - name: first\n  containers:\n  - name: app\n    readinessProbe:\n      httpGet: {port: 80, path: /ready}\n";
    let stream = format!("{SERVICE}---\n{DEPLOYMENT}---\n{cron_job}---\n{pod}");
    for native in ["true", "false"] {
        let args = ["--native-sidecars", native];
        let once = inject(&args, &stream).stdout;
        assert_eq!(once.matches("name: istio-proxy\n").count(), 3, "{once}");
        assert_eq!(inject(&args, &once).stdout, once);
    }
}

#[test]
fn sidecar_is_native_by_default() {
    for (args, native) in [
        (&[][..], true),
        (&["--native-sidecars", "auto"], true),
        (&["--native-sidecars", "true"], true),
        (&["--native-sidecars=false"], false),
    ] {
        let got = documents(&inject(args, DEPLOYMENT).stdout).remove(0);
        let proxy_in = |list: &str| containers(&got, &format!("/spec/template/spec/{list}")).contains(&"istio-proxy");
        assert_eq!((proxy_in("initContainers"), proxy_in("containers")), (native, !native), "{args:?}");
    }
}

#[test]
fn given_values_make_native_sidecars_as_istioctl_does() {
    let directory = tempfile::tempdir().unwrap();
    let values = |env: &str| {
        file(
            directory.path(),
            &format!("{}.yaml", env.len()),
            &format!("global: {{tag: 1.28.0}}\npilot: {{env: {env}}}\n"),
        )
    };
    let enabled = "{ENABLE_NATIVE_SIDECARS: \"true\"}";
    for (env, args, native) in [
        ("{}", &[][..], false),
        ("{ENABLE_NATIVE_SIDECARS: auto}", &[], false),
        (enabled, &[], true),
        (enabled, &["--native-sidecars=false"], false),
        ("{}", &["--native-sidecars=true"], true),
    ] {
        let values = values(env);
        let args = [&["--valuesFile", &values], args].concat();
        let got = documents(&inject(&args, DEPLOYMENT).stdout).remove(0);
        let names = containers(&got, "/spec/template/spec/initContainers");
        assert_eq!(names.contains(&"istio-proxy"), native, "{args:?} {env}");
    }
}

#[test]
fn revision_option_overrides_the_values() {
    let directory = tempfile::tempdir().unwrap();
    let values = file(directory.path(), "values.yaml", "revision: canary\n");
    for (args, want) in [
        (vec![], "default"),
        (vec!["-r", "default"], "default"),
        (vec!["--revision", "1-28"], "1-28"),
        (vec!["--valuesFile", &values], "canary"),
        (vec!["--valuesFile", &values, "-r", "default"], "default"),
    ] {
        let got = documents(&inject(&args, DEPLOYMENT).stdout).remove(0);
        assert_eq!(got.pointer("/spec/template/metadata/annotations/istio.io~1rev").unwrap(), want, "{args:?}");
    }
}

#[test]
fn values_and_mesh_files_are_used() {
    let directory = tempfile::tempdir().unwrap();
    let values = file(directory.path(), "values.json", r#"{"global": {"hub": "registry.test", "tag": 1.5}}"#);
    let mesh = file(directory.path(), "mesh.yaml", "defaultConfig:\n  interceptionMode: TPROXY\n");
    let got = documents(&inject(&["--valuesFile", &values, "--meshConfigFile", &mesh], DEPLOYMENT).stdout).remove(0);
    let init = &got.pointer("/spec/template/spec/initContainers").unwrap();
    assert_eq!(init[0]["name"], "istio-init", "given values do not turn CNI mode on");
    assert_eq!(init[0]["image"], "registry.test/proxyv2:1.5");
    assert!(init[0]["args"].as_array().unwrap().contains(&"TPROXY".into()), "{}", init[0]);
}

#[test]
fn ambiguous_strings_keep_their_type() {
    let manifest = DEPLOYMENT.to_owned()
        + "        args: [\"yes\", \"0644\", \"1e3\", \"null\", \"~\", \" edge \", \"1:30\", \"a\\nb\\n\"]\n        env:\n"
        + "        - {name: \"on\", value: \"off\"}\n        - name: SCRIPT\n          value: |\n            set -e\n            run\n";
    let output = inject(&[], &manifest).stdout;
    let app = &documents(&output).remove(0)["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(app["args"], json!(["yes", "0644", "1e3", "null", "~", " edge ", "1:30", "a\nb\n"]));
    assert_eq!(app["env"], json!([{"name": "on", "value": "off"}, {"name": "SCRIPT", "value": "set -e\nrun\n"}]));
    assert!(output.contains("args: [\"yes\", \"0644\",") && output.contains("value: |\n"), "{output}");
    // Quoted where YAML 1.1 would read another type.
    let json = serde_json::to_string(&yaml::from_str(&manifest).unwrap()).unwrap();
    let output = inject(&[], &json).stdout;
    assert!(output.contains("- \"0644\"\n") && output.contains("value: |\n"), "{output}");
}

#[test]
fn comments_and_formatting_are_kept() {
    let manifest = "\
# The front of the shop.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web} # nothing else
spec:
  template:
    metadata:
      # Who pays.
      labels: {app: web} # and no more
    spec:
      # The one that matters.
      containers:
      # It serves.
      - name: app # short
        image: \"nginx\" # pinned elsewhere
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}} # asked often
      # Shared with the node.
      volumes:
      - {name: data, emptyDir: {}} # small
  # One is enough.
  replicas: 1
";
    let run = inject(&[], manifest);
    assert_eq!(run.stderr, "");
    let added = |line: &&str| !manifest.lines().any(|old| old == *line);
    let kept = manifest.lines().filter(|line| !line.contains("labels:") && !line.contains("readinessProbe"));
    let mut output = run.stdout.lines().filter(|line| !added(line));
    for line in kept {
        assert!(output.any(|found| found == line), "{line:?} in its order:\n{}", run.stdout);
    }
    assert!(run.stdout.contains("      labels: # and no more\n        app: web\n"), "{}", run.stdout);
    assert!(run.stdout.contains("        readinessProbe: # asked often\n"), "{}", run.stdout);
    let json = serde_json::to_string(&yaml::from_str(manifest).unwrap()).unwrap();
    assert_eq!(documents(&run.stdout), documents(&inject(&[], &json).stdout), "the same as from JSON");
    assert_eq!(inject(&[], &run.stdout).stdout, run.stdout, "and again");
}

#[test]
fn lost_comments_are_reported() {
    let labels = "      labels:\n        {app: web,\n        # not for ever\n        tier: front}\n";
    let manifest = DEPLOYMENT.replace("      labels:\n        app: web\n", labels);
    let run = inject(&[], &manifest);
    assert!(
        run.stderr.contains("comments in changed parts are lost (1): # not for ever"),
        "{}{}",
        run.stderr,
        run.stdout
    );
}

#[test]
fn injected_json_is_written_as_yaml() {
    let other = "{\n  \"kind\": \"Other\"\n}\n";
    let stream = format!("{}\n---\n{other}", workload("apps/v1", "Deployment"));
    let output = inject(&[], &stream).stdout;
    assert!(output.starts_with("apiVersion: apps/v1\nkind: Deployment\n"), "{output}");
    assert!(output.ends_with(&format!("---\n{other}")), "{output}");
    assert_eq!(weir(&["uninject", "-f", "-"], &output).stdout, stream);
}

#[test]
fn output_may_replace_the_input_and_only_on_success() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "web.yaml", DEPLOYMENT);
    let run = weir(&["inject", "-f", &path, "-o", &path], "");
    assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{}", run.stderr);
    let injected = std::fs::read_to_string(&path).unwrap();
    assert!(injected.contains("istio-proxy"), "{injected}");

    let run = weir(&["inject", "-f", "-", "-o", &path], &format!("{DEPLOYMENT}---\nbroken: [\n"));
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), injected);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn all_errors_are_reported_and_nothing_is_written() {
    let bad = DEPLOYMENT.replace(
        "      labels:\n",
        "      annotations:\n        traffic.sidecar.istio.io/excludeInboundPorts: \"x\"\n        traffic.sidecar.istio.io/includeOutboundIPRanges: \"10.0.0.0/99\"\n      labels:\n",
    );
    let unquoted = DEPLOYMENT.replace("app: web", "sidecar.istio.io/inject: true");
    let empty = "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: empty\n";
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [workload("apps/v1", "Deployment"), {"apiVersion": "v1", "kind": "Pod"}]});
    let stream = format!("{DEPLOYMENT}---\n{bad}---\nkey: [1\nother: 2\n---\n{unquoted}---\n{empty}---\n{list}\n");
    let run = weir(&["inject", "-f", "-"], &stream);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    let lines: Vec<&str> = run.stderr.lines().collect();
    for (place, words) in [
        ("document 2 (line 25): Deployment \"shop/web\": ", vec!["excludeInboundPorts", "'x'"]),
        ("document 2 (line 26): Deployment \"shop/web\": ", vec!["includeOutboundIPRanges", "10.0.0.0/99"]),
        ("document 3 (line 34): ", vec!["at line 35"]),
        (
            "document 4 (line 37): Deployment \"shop/web\": ",
            vec!["spec.template.metadata.labels[sidecar.istio.io/inject] must be a string, found true (quote it)"],
        ),
        ("document 5 (line 52): Job \"empty\": ", vec!["spec is missing"]),
        ("document 6 (line 57), item 2: Pod \"\": ", vec!["spec is missing"]),
    ] {
        let prefix = format!("weir: standard input: {place}");
        let found = lines.iter().any(|line| line.starts_with(&prefix) && words.iter().all(|word| line.contains(word)));
        assert!(found, "no line {prefix:?} with {words:?} in\n{}", run.stderr);
    }
}

#[test]
fn separator_with_content_is_an_error() {
    let run = weir(&["inject", "-f", "-"], "a: 1\n---b\n");
    assert_eq!(run.code, 1);
    insta::assert_snapshot!(run.stderr, @r#"weir: standard input: line 2: a line that starts with --- separates documents and can only have a comment, found "---b""#);
}

#[test]
fn all_missing_files_are_reported() {
    let run = weir(
        &["inject", "-f", "/nonexistent/a", "--valuesFile", "/nonexistent/b", "--meshConfigFile", "/nonexistent/c"],
        "",
    );
    assert_eq!(run.code, 2);
    insta::assert_snapshot!(run.stderr, @r"
    weir: cannot read /nonexistent/b: No such file or directory (os error 2)
    weir: cannot read /nonexistent/c: No such file or directory (os error 2)
    weir: cannot read /nonexistent/a: No such file or directory (os error 2)
    ");
}

#[test]
fn all_invalid_settings_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let values = file(directory.path(), "values.yaml", "global: {hub: 5, proxy: {statusPort: 70000}}\n");
    let mesh = file(directory.path(), "mesh.yaml", "proxyListenPort: []\n");
    let run = weir(&["inject", "-f", "-", "--valuesFile", &values, "--meshConfigFile", &mesh], DEPLOYMENT);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    for path in ["values: global.hub: ", "values: global.proxy.statusPort: ", "mesh: proxyListenPort: "] {
        assert!(run.stderr.contains(path), "{}", run.stderr);
    }
}

#[test]
fn config_map_as_values_file_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let values = file(directory.path(), "values.yaml", "apiVersion: v1\nkind: ConfigMap\ndata: {values: '{}'}\n");
    let run = weir(&["inject", "-f", "-", "--valuesFile", &values], DEPLOYMENT);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("configmap istio-sidecar-injector -o jsonpath='{.data.values}'"), "{}", run.stderr);
}

#[test]
fn missing_filename_prints_the_usage() {
    let run = weir(&["inject"], "");
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("--filename <FILE>"), "{}", run.stderr);
}

#[test]
fn empty_stream_stays_empty() {
    assert_eq!(inject(&[], "").stdout, "");
    assert_eq!(inject(&[], "---\n---\n").stdout, "---\n---\n");
}

#[test]
fn proxy_configs_of_the_stream_configure_its_pods() {
    let elsewhere = "\
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: p, namespace: other}
spec: {environmentVariables: {WHERE: elsewhere}}
---
";
    let listed = "\
apiVersion: v1
kind: List
items:
- apiVersion: networking.istio.io/v1
  kind: ProxyConfig
  metadata: {name: q, namespace: shop}
  spec: {environmentVariables: {WHERE: here}}
---
";
    let stream = [elsewhere, listed, DEPLOYMENT].concat();
    let pod = &documents(&inject(&[], &stream).stdout)[2]["spec"]["template"]["spec"];
    let env = pod["initContainers"][1]["env"].as_array().unwrap();
    assert_eq!(
        env.iter().filter(|variable| variable["name"] == "WHERE").collect::<Vec<_>>(),
        [&json!({"name": "WHERE", "value": "here"})]
    );

    let refused = weir(&["inject", "-f", "-"], &stream.replace("WHERE: here", "WHERE: 1"));
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    let finding = "weir: standard input: ProxyConfig: shop/q: spec.environmentVariables.WHERE: must be a string";
    assert!(refused.stderr.starts_with(finding), "{}", refused.stderr);
}
