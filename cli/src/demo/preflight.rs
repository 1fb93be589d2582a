//! What the demo needs, looked for before anything is made, and everything missing named at once.

use std::env;
use std::path::{Path, PathBuf};

/// Where Debian and upstream put CNI plugins.
const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// The binary `weir-webhook`.
    pub(crate) webhook: PathBuf,
    /// Folders with CNI plugins, that of `weir-cni` first.
    pub(crate) cni_path: Vec<PathBuf>,
    /// A real Envoy.
    pub(crate) envoy: Option<PathBuf>,
}

impl Found {
    /// A plugin's binary.
    pub(crate) fn plugin(&self, name: &str) -> Option<PathBuf> {
        self.cni_path.iter().map(|dir| dir.join(name)).find(|path| path.is_file())
    }
}

/// Looks for everything.
///
/// # Errors
/// All that is missing, each with what to do about it.
pub(crate) fn look(envoy: Option<&Path>) -> Result<Found, Vec<String>> {
    let mut missing = Vec::new();
    if let Some(reason) = weir_lab::privilege::missing() {
        missing.push(reason.to_owned());
    }
    let webhook = own_binary("weir-webhook");
    let plugin = own_binary("weir-cni");
    for (name, found) in [("weir-webhook", &webhook), ("weir-cni", &plugin)] {
        if found.is_none() {
            missing.push(format!("{name} is neither beside weir nor in PATH: build it with `make dist`"));
        }
    }
    let mut cni_path: Vec<PathBuf> = plugin.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
    match env::var_os("CNI_PATH") {
        Some(path) => cni_path.extend(env::split_paths(&path)),
        None => cni_path.extend(PLUGIN_DIRS.map(PathBuf::from)),
    }
    let found = Found { webhook: webhook.unwrap_or_default(), cni_path, envoy: envoy.map(Path::to_owned) };
    let plugins: Vec<&str> = PLUGINS.into_iter().filter(|name| found.plugin(name).is_none()).collect();
    if !plugins.is_empty() {
        missing.push(format!(
            "CNI plugins {} are not in {}: apt-get install containernetworking-plugins",
            plugins.join(", "),
            env::join_paths(&found.cni_path).unwrap_or_default().display(),
        ));
    }
    // One that was asked for by name must be there; the default one may be.
    if let Some(path) = found.envoy.as_ref().filter(|path| !path.is_file()) {
        missing.push(format!(
            "there is no Envoy at {}: `make tools` installs one, and without --envoy the demo does without",
            path.display()
        ));
    }
    if missing.is_empty() { Ok(found) } else { Err(missing) }
}

/// One of our binaries: beside this one, else in PATH.
fn own_binary(name: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(name)).find(|path| path.is_file())
}
