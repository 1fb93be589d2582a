//! What `scripts/package` packs: the same bytes in every run, and an archive whose demo needs no compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use weir_lab::process;
use weir_tests::{bin, privileged};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TIMEOUT: Duration = Duration::from_mins(5);
/// Bound from the archive to captured requests.
const DEMO_TIMEOUT: Duration = Duration::from_mins(3);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(command: &mut Command) -> String {
    let output = process::run(command, b"", TIMEOUT).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        weir_lab::skip_or_fail(format!("{program} is not installed"));
    }
    found
}

/// Returns the architecture's name in Debian and in images.
fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Copies the binaries without debug information, as a release has them.
fn binaries(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["weir", "weir-webhook", "weir-agent", "weir-demo", "weir-cni", "weir-iptables"] {
        run(Command::new("strip").arg("-s").arg("-o").arg(to.join(name)).arg(bin(name)));
    }
}

fn package(from: &Path, to: &Path, umask: &str) {
    let script = format!("umask {umask}; exec scripts/package \"$0\" \"$1\"");
    run(Command::new("bash")
        .current_dir(root())
        .args(["-c", &script])
        .arg(from)
        .arg(to)
        .env("SOURCE_DATE_EPOCH", "1700000000"));
}

fn digest(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).unwrap()))
}

fn digests(folder: &Path) -> Vec<(String, String)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), digest(&path)))
        .collect();
    found.sort();
    found
}

fn unpack(archive: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(to));
}

/// The OCI layout of the chart: its manifest points to the chart as it was packed.
fn assert_chart_layout(files: &Path, work: &Path) {
    let folder = work.join("layout");
    unpack(&files.join(format!("weir-chart-{VERSION}-oci.tar.gz")), &folder);
    let json = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let path = folder.join("blobs/sha256").join(&digest);
        assert_eq!(self::digest(&path), digest);
        assert_eq!(descriptor["size"], fs::metadata(&path).unwrap().len());
        path
    };
    let index = json(&folder.join("index.json"));
    let manifest = json(&blob(&index["manifests"][0]));
    let config = json(&blob(&manifest["config"]));
    assert_eq!((&config["name"], &config["version"]), (&"weir".into(), &VERSION.into()));
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.cncf.helm.chart.content.v1.tar+gzip");
    assert_eq!(digest(&blob(layer)), digest(&files.join(format!("weir-chart-{VERSION}.tgz"))));
}

#[test]
fn packages_are_reproducible_and_the_archive_runs_the_demo() {
    if !["strip", "dpkg-deb", "python3", "make"].into_iter().all(has) || !privileged() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    let arch = architecture();
    binaries(&work.join("from").join(arch));
    let files = work.join("files");
    package(&work.join("from"), &files, "022");
    // Elsewhere, later, and with another umask.
    fs::rename(work.join("from"), work.join("a-longer-name")).unwrap();
    package(&work.join("a-longer-name"), &work.join("again"), "077");
    assert_eq!(digests(&files), digests(&work.join("again")));

    let archive = files.join(format!("weir-{VERSION}-linux-{arch}.tar.gz"));
    let krew = fs::read_to_string(files.join("krew-weir.yaml")).unwrap();
    assert!(krew.contains(&format!("sha256: {}", digest(&archive))), "{krew}");
    assert_chart_layout(&files, work);
    let contents =
        run(Command::new("dpkg-deb").arg("--contents").arg(files.join(format!("weir_{VERSION}_{arch}.deb"))));
    for path in ["usr/bin/weir\n", "usr/bin/kubectl-weir -> weir\n", "completions/weir\n", "man1/weir-inject.1.gz\n"] {
        assert!(contents.contains(path), "{path}: {contents}");
    }

    let started = Instant::now();
    unpack(&archive, work);
    let unpacked = work.join(format!("weir-{VERSION}-linux-{arch}"));
    // No Rust in PATH, and none in HOME.
    let make = |args: &[&str]| {
        let mut command = Command::new("make");
        command
            .current_dir(&unpacked)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", work);
        run(&mut command)
    };
    let demo = make(&["demo"]);
    assert!(demo.contains("19 of 19 as expected"), "{demo}");
    assert!(started.elapsed() < DEMO_TIMEOUT, "{:?}", started.elapsed());
    let prefix = format!("DESTDIR={}", work.join("root").display());
    make(&["install", &prefix]);
    let version = run(Command::new(work.join("root/usr/local/bin/kubectl-weir")).arg("--version"));
    assert!(version.contains(VERSION), "{version}");
}

#[test]
fn binaries_share_exit_codes_and_log_flags() {
    let code = |name: &str, args: &[&str]| {
        let output = process::run(Command::new(bin(name)).args(args), b"", TIMEOUT).unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for name in ["weir", "weir-webhook", "weir-agent", "weir-iptables"] {
        let (wrong, stderr) = code(name, &["--no-such-flag"]);
        assert!(wrong == Some(2) && stderr.contains("--no-such-flag"), "{name}: {wrong:?} {stderr}");
        assert_eq!(code(name, &["--version"]).0, Some(0), "{name}");
    }
    for name in ["weir-webhook", "weir-agent", "weir-iptables"] {
        let (known, stderr) = code(name, &["--log_output_level=default:warn", "--log_as_json", "--version"]);
        assert_eq!(known, Some(0), "{name}: {stderr}");
    }
    for name in ["weir-webhook", "weir-agent"] {
        let (wrong, stderr) = code(name, &["--log_output_level=loud"]);
        assert!(wrong == Some(2) && stderr.contains("must be one of none, error"), "{name}: {stderr}");
    }
    let contradiction =
        code("weir-webhook", &["--https-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--values=/nonexistent"]);
    assert_eq!(contradiction.0, Some(2), "{}", contradiction.1);
}
