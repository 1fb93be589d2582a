//! `weir uninject`: restores the input of `weir inject`.

use serde_json::Value;

use crate::run::{documents, file, inject, weir};

const MANIFEST: &str = "\
# Not touched.
apiVersion: v1
kind: Service
metadata: {name: web}
---
apiVersion: v1
kind: List
items:
- apiVersion: batch/v1
  kind: CronJob
  metadata:
    name: nightly
  spec:
    jobTemplate:
      spec:
        template:
          spec:
            containers:
            - name: app
              image: i
              readinessProbe:
                tcpSocket:
                  port: http
              ports:
              - containerPort: 80
                name: http
- apiVersion: v1
  kind: Pod
  metadata:
    labels:
      zone: b
      app: a
    name: own
  spec:
    containers:
    - image: auto
      name: istio-proxy
    - image: i
      name: app
---
apiVersion: batch.volcano.sh/v1alpha1
kind: Job
metadata:
  name: foreign
  annotations: {sidecar.istio.io/status: '{}'}
---
";

#[test]
fn uninject_restores_the_original() {
    let injected = inject(&[], MANIFEST).stdout;
    assert!(injected.contains("istio-validation"), "{injected}");
    let run = weir(&["uninject", "-f", "-"], &injected);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let texts = |stream: &str| documents(stream).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&run.stdout), texts(MANIFEST), "order of keys included");
    assert!(run.stdout.starts_with("# Not touched.\n"));
    let again = weir(&["uninject", "-f", "-"], &run.stdout);
    assert_eq!(again.stdout, run.stdout, "nothing is left to take back");
}

#[test]
fn output_may_replace_the_input() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "web.yaml", &inject(&[], MANIFEST).stdout);
    let run = weir(&["uninject", "-f", &path, "-o", &path], "");
    assert_eq!((run.code, run.stdout.as_str()), (0, ""));
    assert_eq!(documents(&std::fs::read_to_string(&path).unwrap()), documents(MANIFEST));
}

#[test]
fn unrecoverable_fields_are_reported() {
    // Istio leaves no record of the original.
    let mut pod = documents(&inject(&[], MANIFEST).stdout)[1]["items"][1].clone();
    pod["metadata"]["annotations"].as_object_mut().unwrap().retain(|key, _| !key.starts_with("weir.dev/"));
    let run = weir(&["uninject", "-f", "-"], &pod.to_string());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr.contains("weir: cannot restore: document 1 (line 1): Pod \"own\": whether the pod had labels"),
        "{}",
        run.stderr
    );
    let back: &Value = &documents(&run.stdout)[0];
    let containers = back["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2, "{back}");
    assert_eq!(back["metadata"]["labels"].to_string(), r#"{"zone":"b","app":"a"}"#);
}

#[test]
fn invalid_record_writes_nothing() {
    let broken =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {sidecar.istio.io/status: none}}\nspec: {}\n";
    let run = weir(&["uninject", "-f", "-"], &format!("{MANIFEST}{broken}"));
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(
        run.stderr
            .starts_with("weir: standard input: document 4 (line 47): Pod \"p\": invalid value 'none' for annotation"),
        "{}",
        run.stderr
    );
}
