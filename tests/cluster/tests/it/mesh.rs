//! The cluster with Weir installed.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use weir_cluster::{Cluster, images};
use weir_lab::process;

/// Longest time an installation may take on a busy machine.
const INSTALL_TIMEOUT: Duration = Duration::from_mins(6);
const IMAGES: [&str; 4] = ["weir-webhook", "weir-agent", "weir-iptables", "weir"];

/// Held for reading by tests that can run at the same time, for writing by those that disturb the cluster.
static DISTURBANCE: RwLock<()> = RwLock::new(());

/// Returns the cluster with Weir installed, shared with other tests; where there is none, the test is
/// [skipped](weir_lab::skip_or_fail).
pub(crate) fn shared_or_skip() -> Option<(&'static Cluster, RwLockReadGuard<'static, ()>)> {
    let cluster = cluster_or_skip()?;
    Some((cluster, DISTURBANCE.read().unwrap_or_else(PoisonError::into_inner)))
}

/// Returns the cluster for a test that disturbs it, when no other test runs. Those are run with `WEIR_CLUSTER=all` only.
pub(crate) fn alone_or_skip() -> Option<(&'static Cluster, RwLockWriteGuard<'static, ()>)> {
    if std::env::var_os("WEIR_CLUSTER").is_none_or(|value| value != "all") {
        eprintln!("skipped: it disturbs the cluster; run it with WEIR_CLUSTER=all");
        return None;
    }
    let cluster = cluster_or_skip()?;
    Some((cluster, DISTURBANCE.write().unwrap_or_else(PoisonError::into_inner)))
}

fn cluster_or_skip() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    if !weir_tests::privileged() {
        return None;
    }
    let running = Cluster::of_machine().ok().filter(Cluster::is_up);
    let Some(running) = running else {
        weir_lab::skip_or_fail("no cluster; `make cluster` starts one");
        return None;
    };
    let installed = CLUSTER.get_or_init(|| {
        prepare(&running).map_err(|error| format!("{error:#}"))?;
        Ok(running)
    });
    Some(installed.as_ref().unwrap_or_else(|error| panic!("cannot install Weir: {error}")))
}

/// Imports the images that `WEIR_IMAGES` has, and installs Weir.
fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    let dir =
        std::env::var_os("WEIR_IMAGES").map(PathBuf::from).context("WEIR_IMAGES names no directory with images")?;
    cluster.load(&IMAGES.map(|name| dir.join(format!("{name}.tar"))))?;
    install(cluster)
}

/// Installs Weir.
///
/// # Errors
/// When the installation fails; the error has what it printed.
pub(crate) fn install(cluster: &Cluster) -> anyhow::Result<()> {
    install_with(cluster, &[])
}

/// Installs Weir with more options of `weir install`.
///
/// # Errors
/// When the installation fails; the error has what it printed.
pub(crate) fn install_with(cluster: &Cluster, options: &[&str]) -> anyhow::Result<()> {
    let settings = settings("localhost");
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    weir(cluster, &[&["install", "--yes"][..], &settings, options].concat()).map(drop)
}

/// Returns the options of `weir install` for this cluster, with images of a registry and folder.
pub(crate) fn settings(hub: &str) -> [String; 6] {
    let values = [
        format!(
            "images.hub={hub},config.values.global.hub={},config.values.global.tag={}",
            images::ISTIO_HUB,
            images::ISTIO_TAG
        ),
        "config.values.global.proxy.resources.requests.cpu=10m".to_owned(),
        // Without it, proxies do not listen on IPv6, to which the rules redirect.
        "config.mesh.defaultConfig.proxyMetadata.ISTIO_DUAL_STACK=true".to_owned(),
    ];
    let [images, cpu, dual_stack] = values;
    ["--set".to_owned(), images, "--set".to_owned(), cpu, "--set-string".to_owned(), dual_stack]
}

/// Runs `weir` with the cluster's kubeconfig, and returns what it prints.
///
/// # Errors
/// When it fails; the error has what it printed.
pub(crate) fn weir(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let (succeeds, printed) = try_weir(cluster, args)?;
    ensure!(succeeds, "weir {}: {printed}", args.join(" "));
    Ok(printed)
}

/// Runs `weir`, and returns whether it succeeds and what it prints.
///
/// # Errors
/// When it cannot be run, or takes too long.
pub(crate) fn try_weir(cluster: &Cluster, args: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new(weir_tests::bin("weir"));
    let output = process::run(command.args(args).env("KUBECONFIG", cluster.kubeconfig()), b"", INSTALL_TIMEOUT)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), format!("{stdout}{stderr}")))
}
