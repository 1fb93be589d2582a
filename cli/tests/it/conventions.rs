//! What all commands share: inputs, outputs, options of the connection, names, exit codes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use weir_apiserver::ApiServer;

use crate::run::{Run, containers, documents, file, weir};

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: app, image: nginx}}]}}\n"
    )
}

fn run(command: &mut Command) -> Run {
    let output = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code().expect("no signal"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn command() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("weir"))
}

/// Answers one request with a text; returns the URL, and the lines of the request's head.
fn serve(answer: &'static str) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let head = lines.collect();
        let length = answer.len();
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
        );
        head
    });
    (url, thread)
}

fn kubeconfig(folder: &Path, server: &str, user: &serde_json::Value) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}, {"name": "prod-1", "context": {"cluster": "c", "user": "u"}}],
    });
    file(folder, "kubeconfig", &config.to_string())
}

#[test]
fn files_directories_and_standard_input_are_read_in_one_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    let one = file(folder.path(), "one.yaml", &pod("one"));
    file(folder.path(), "deep/two.yaml", &pod("two"));
    let directory = folder.path().to_str().unwrap();
    let names = |args: &[&str]| {
        let run = weir(args, &pod("stdin"));
        assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
        let found = documents(&run.stdout);
        assert!(found.iter().all(|pod| containers(pod, "/spec/initContainers").contains(&"istio-proxy")), "{args:?}");
        found.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["inject", &one, "-"]), ["one", "stdin"]);
    assert_eq!(names(&["inject", "-f", "-", "-f", &one]), ["stdin", "one"]);
    assert_eq!(names(&["inject", directory]), ["one"]);
    assert_eq!(names(&["inject", "-R", directory]), ["two", "one"]);
    for command in [&["rules"][..], &["explain"], &["explain", "inject"]] {
        let run = weir(&[command, &["-R", directory]].concat(), "");
        assert_eq!(run.code, 0, "{command:?}: {}", run.stderr);
        assert!(run.stdout.contains("\"one\"") && run.stdout.contains("\"two\""), "{command:?}: {}", run.stdout);
    }
    let back = weir(&["uninject", "-", &one], &weir(&["inject", &one], "").stdout);
    assert_eq!(back.stdout, [pod("one"), pod("one")].join("---\n"));
    let missing = weir(&["inject"], "");
    assert!(missing.code == 2 && missing.stderr.contains("FILE"), "{}", missing.stderr);
    let both = weir(&["rules", &one, "--annotations", "-"], "");
    assert!(both.code == 2 && both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

#[test]
fn findings_of_all_files_are_reported_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let bad = file(folder.path(), "bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n");
    let worse = file(folder.path(), "worse.yaml", "{a: 1\n");
    let run = weir(&["inject", &bad, &worse], "");
    assert!(run.code == 1 && run.stdout.is_empty(), "{}", run.stdout);
    assert!(run.stderr.contains(&format!("weir: {bad}: document 1")), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("weir: {worse}: document 1")), "{}", run.stderr);
}

#[test]
fn manifests_are_downloaded() {
    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: far}\nspec: {containers: [{name: app, image: nginx}]}\n";
    let (url, request) = serve(POD);
    let run = weir(&["inject", &format!("{url}/a/web.yaml")], "");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(documents(&run.stdout)[0]["metadata"]["name"], "far");
    assert_eq!(request.join().unwrap()[0], "GET /a/web.yaml HTTP/1.1");
}

#[test]
fn certificates_of_secure_urls_are_verified() {
    let server = ApiServer::cluster().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read(server.kubeconfig(folder.path()).unwrap()).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let ca = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
    let ca = file(folder.path(), "ca.crt", &String::from_utf8(STANDARD.decode(ca).unwrap()).unwrap());
    let url = format!("{}/readyz", server.url());
    let inject = |ca: &str| run(command().args(["inject", &url]).env("SSL_CERT_FILE", ca));
    let trusted = inject(&ca);
    assert_eq!((trusted.code, trusted.stdout.as_str()), (0, "ok"), "{}", trusted.stderr);
    let other = inject("/dev/null");
    assert!(other.code == 2 && other.stderr.contains("certificate"), "{}", other.stderr);
}

#[test]
fn output_option_is_the_format_and_a_file_with_a_notice() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let plain = weir(&["inject", "-", "-o", "yaml"], &pod("a"));
    assert_eq!((plain.code, plain.stderr.as_str()), (0, ""));
    for (option, name, notice) in
        [("--output-file", "new", ""), ("-w", "short", ""), ("-o", "old", "--output-file (-w)")]
    {
        let target = path(name);
        let run = weir(&["inject", "-", option, &target], &pod("a"));
        assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{option}: {}", run.stderr);
        assert!(run.stderr.contains(notice) && run.stderr.is_empty() == notice.is_empty(), "{option}: {}", run.stderr);
        assert_eq!(std::fs::read_to_string(target).unwrap(), plain.stdout, "{option}");
    }
    for args in [&["-o", "json"][..], &["-o", "x", "-w", "y"]] {
        let run = weir(&[&["inject", "-"], args].concat(), &pod("a"));
        assert!(run.code == 2 && run.stderr.contains("--output"), "{args:?}: {}", run.stderr);
    }
    for format in ["-o", "--output", "--format"] {
        let rules = weir(&["rules", "-", format, "json"], &pod("a")).stdout;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&rules).unwrap()["version"], 1, "{format}");
    }
    let manifest = weir(&["manifest", "generate", "--set", "images.hub=r.example", "-w", &path("m")], "");
    assert_eq!((manifest.code, manifest.stdout.as_str(), manifest.stderr.as_str()), (0, "", ""));
}

#[test]
fn impersonation_comes_from_options_or_the_kubeconfig() {
    let folder = tempfile::tempdir().unwrap();
    let headers = |user: &serde_json::Value, args: &[&str]| {
        let (url, request) = serve("{}");
        let kubeconfig = kubeconfig(folder.path(), &url, user);
        let _ = weir(&[&["version", "--kubeconfig", &kubeconfig], args].concat(), "");
        let mut found: Vec<String> = request
            .join()
            .unwrap()
            .into_iter()
            .filter(|line| line.to_lowercase().starts_with("impersonate-"))
            .collect();
        found.sort();
        found
    };
    assert_eq!(headers(&json!({}), &[]), Vec::<String>::new());
    let wanted = ["impersonate-group: dev", "impersonate-group: ops", "impersonate-user: jane"];
    assert_eq!(headers(&json!({"as": "x"}), &["--as", "jane", "--as-group", "dev", "--as-group", "ops"]), wanted);
    assert_eq!(headers(&json!({"as": "jane", "as-groups": ["dev", "ops"]}), &[]), wanted);
    let run = weir(&["version", "--as-group", "dev"], "");
    assert!(run.code == 2 && run.stderr.contains("--as <USER>"), "{}", run.stderr);
}

#[test]
fn request_timeout_bounds_a_silent_server() {
    let folder = tempfile::tempdir().unwrap();
    // Accepts connections and never answers.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let kubeconfig = kubeconfig(folder.path(), &format!("http://{}", listener.local_addr().unwrap()), &json!({}));
    let start = Instant::now();
    let run = weir(&["version", "--kubeconfig", &kubeconfig, "--request-timeout", "300ms"], "");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(run.code == 2 && run.stderr.contains("context here, http://127.0.0.1"), "{}", run.stderr);
}

#[test]
fn verbose_runs_log_requests_without_credentials() {
    let folder = tempfile::tempdir().unwrap();
    for flag in ["-v", "-vv"] {
        let (url, _request) = serve("{}");
        let kubeconfig = kubeconfig(folder.path(), &url, &json!({"token": "hunter2"}));
        let run = weir(&["version", flag, "--kubeconfig", &kubeconfig], "");
        assert!(run.stderr.contains("http.method=GET") && run.stderr.contains("/apis/apps/v1/"), "{}", run.stderr);
        assert!(!run.stderr.contains("hunter2"), "{}", run.stderr);
    }
}

#[test]
fn plugin_of_kubectl_says_kubectl_weir() {
    let help = run(command().arg0("/usr/bin/kubectl-weir").args(["inject", "--help"]));
    assert!(help.stdout.contains("Usage: kubectl weir inject"), "{}", help.stdout);
    assert!(help.stdout.contains("  kubectl weir inject web.yaml"), "{}", help.stdout);
    let wrong = run(command().arg0("kubectl-weir").args(["tag", "remove"]));
    assert!(wrong.code == 2 && wrong.stderr.contains("kubectl weir tag remove"), "{}", wrong.stderr);
}

#[test]
fn help_wraps_at_the_width_of_the_terminal() {
    let help = run(command().args(["inject", "--help"]).env("COLUMNS", "80"));
    let long: Vec<&str> =
        help.stdout.lines().filter(|line| line.chars().count() > 80 && !line.contains("kubectl create")).collect();
    assert_eq!(long, Vec::<&str>::new());
}

/// Returns what the completion of fish offers for the last argument.
fn complete(args: &[&str], kubeconfig: &str) -> Vec<String> {
    let run = run(command().arg("--").arg("weir").args(args).env("COMPLETE", "fish").env("KUBECONFIG", kubeconfig));
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn names_of_the_cluster_are_completed() {
    let server = ApiServer::cluster().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = server.kubeconfig(folder.path()).unwrap();
    let config = config.to_str().unwrap();
    for (namespace, name) in [("shop", "web-1"), ("shop", "web-2"), ("other", "db")] {
        server.put("namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        server.put(
            "pods",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}}),
        );
    }
    assert_eq!(complete(&["check", "-n", "sh"], config), ["shop"]);
    assert_eq!(complete(&["explain", "--pod", "shop/"], config), ["shop/web-1", "shop/web-2"]);
    assert_eq!(complete(&["explain", "-n", "other", "--pod", "pod/"], config), ["pod/db"]);
    // A context of the kubeconfig that the command line names.
    let other = tempfile::tempdir().unwrap();
    let other = kubeconfig(other.path(), "http://127.0.0.1:1", &json!({}));
    assert_eq!(complete(&["version", "--kubeconfig", &other, "--context", "pr"], config), ["prod-1"]);
    // No cluster is no error.
    assert_eq!(complete(&["check", "-n", "sh"], &other), Vec::<String>::new());
}

#[test]
fn colors_and_spinners_are_for_terminals() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(folder.path(), "http://127.0.0.1:1", &json!({}));
    let plain = weir(&["check", "--kubeconfig", &kubeconfig], "");
    assert!(!plain.stderr.contains('\u{1b}') && !plain.stderr.contains("checking"), "{}", plain.stderr);
    let binary = assert_cmd::cargo::cargo_bin!("weir");
    let line = format!("{} check --kubeconfig {kubeconfig}", binary.display());
    // script(1) runs it on a terminal.
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    match terminal.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("| checking the cluster"), "{text:?}");
            assert_eq!(output.status.code(), Some(2));
        }
        Err(error) => weir_lab::skip_or_fail(format!("script(1) of util-linux: {error}")),
    }
}
