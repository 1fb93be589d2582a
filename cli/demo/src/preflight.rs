//! Finds what the demo needs before it creates anything, and reports everything that is missing at once.

use std::env;
use std::path::{Path, PathBuf};

/// Directories of CNI plugins in Debian and upstream.
const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Programs that the demo runs.
#[derive(Debug)]
pub(crate) struct Prerequisites {
    pub(crate) webhook: PathBuf,
    /// Directories with CNI plugins, that of `weir-cni` first.
    pub(crate) cni_path: Vec<PathBuf>,
    pub(crate) envoy: Option<PathBuf>,
}

impl Prerequisites {
    /// Returns the path of a plugin.
    pub(crate) fn plugin(&self, name: &str) -> Option<PathBuf> {
        self.cni_path.iter().map(|dir| dir.join(name)).find(|path| path.is_file())
    }
}

/// Finds the programs.
///
/// # Errors
/// Everything that is missing, each with what to do about it.
pub(crate) fn find(envoy: Option<&Path>) -> Result<Prerequisites, Vec<String>> {
    let mut missing = Vec::new();
    if let Some(reason) = weir_lab::privilege::missing_privilege() {
        missing.push(reason.to_owned());
    }
    let webhook = own_binary("weir-webhook");
    let plugin = own_binary("weir-cni");
    for (name, found) in [("weir-webhook", &webhook), ("weir-cni", &plugin)] {
        if found.is_none() {
            missing.push(format!("{name} is neither beside weir-demo nor in PATH; `make demo` builds it"));
        }
    }
    let mut cni_path: Vec<PathBuf> = plugin.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
    match env::var_os("CNI_PATH") {
        Some(path) => cni_path.extend(env::split_paths(&path)),
        None => cni_path.extend(PLUGIN_DIRS.map(PathBuf::from)),
    }
    let found = Prerequisites { webhook: webhook.unwrap_or_default(), cni_path, envoy: envoy.map(Path::to_owned) };
    let plugins: Vec<&str> = PLUGINS.into_iter().filter(|name| found.plugin(name).is_none()).collect();
    if !plugins.is_empty() {
        missing.push(format!(
            "CNI plugins {} not found in {}; apt-get install containernetworking-plugins",
            plugins.join(", "),
            env::join_paths(&found.cni_path).unwrap_or_default().display(),
        ));
    }
    // Only one that was named has to exist.
    if let Some(path) = found.envoy.as_ref().filter(|path| !path.is_file()) {
        missing.push(format!(
            "Envoy not found at {}; `make tools` installs it, and without --envoy a built-in proxy is used",
            path.display()
        ));
    }
    if missing.is_empty() { Ok(found) } else { Err(missing) }
}

/// Finds a binary of the project beside this one, else in PATH.
fn own_binary(name: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(name)).find(|path| path.is_file())
}
