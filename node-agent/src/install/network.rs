//! Parses a file of the configuration directory by the rules of libcni, which containerd and CRI-O share.

use std::borrow::Cow;

use serde_json::Value;
use weir_protocol::entry::PLUGIN_TYPE;
use weir_protocol::version::CniVersion;

use super::text;

/// Extensions of the files that runtimes read, sorted by their whole name.
pub const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Returns whether runtimes read a file of this name.
pub fn is_configuration(name: &str) -> bool {
    extension(name).is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// Returns what follows the last dot, like Go's `filepath.Ext` also for a name that begins with its only dot.
pub fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, extension)| extension)
}

/// Format of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigFormat {
    /// A list of plugins.
    List,
    /// One plugin.
    Single,
}

/// A configuration that a runtime can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig<'a> {
    /// The whole text.
    pub text: &'a str,
    /// Its format.
    pub form: ConfigFormat,
    /// Name of the network.
    pub name: String,
    /// Newest version in it; empty where it has none.
    pub version: String,
    /// Types of the plugins, in order.
    pub types: Vec<String>,
    /// Whether the list disables drop-ins (`loadOnlyInlinedPlugins`).
    pub load_only_inlined: bool,
}

/// Reason for which runtimes cannot use a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// Not a JSON object.
    #[error("not JSON: {0}")]
    Json(String),
    /// No network name.
    #[error("key 'name' is missing, empty or not a string")]
    Name,
    /// `cniVersion` is not a string.
    #[error("key 'cniVersion' is not a string")]
    Version,
    /// A list without plugins.
    #[error("key 'plugins' is missing, empty or not a list")]
    Plugins,
    /// A plugin without type.
    #[error("plugin {0} of the list has no 'type'")]
    PluginType(usize),
    /// A single plugin without type; often a list in a `.conf` file.
    #[error("key 'type' is missing: a file that does not end in .conflist is one plugin")]
    Type,
}

impl<'a> NetworkConfig<'a> {
    /// Parses a file of this name.
    ///
    /// # Errors
    /// See [`InvalidConfig`].
    pub fn parse(file_name: &str, bytes: &'a [u8]) -> Result<Self, InvalidConfig> {
        let text = std::str::from_utf8(bytes).map_err(|error| InvalidConfig::Json(error.to_string()))?;
        let keys = text::keys(text).map_err(|error| InvalidConfig::Json(error.to_string()))?;
        let value = |key: &str| keys.get(key).map(|raw| serde_json::from_str::<Value>(raw.get()));
        let value = |key: &str| value(key).transpose().map_err(|error| InvalidConfig::Json(error.to_string()));
        let form = match extension(file_name) {
            Some("conflist") => ConfigFormat::List,
            Some("conf" | "json") => ConfigFormat::Single,
            // A flag names a file that runtimes do not read: its content decides.
            _ if keys.contains_key("type") => ConfigFormat::Single,
            _ => ConfigFormat::List,
        };
        let name = match value("name")? {
            Some(Value::String(name)) if !name.is_empty() => name,
            _ => return Err(InvalidConfig::Name),
        };
        let version = match value("cniVersion")? {
            None => String::new(),
            Some(Value::String(version)) => version,
            Some(_) => return Err(InvalidConfig::Version),
        };
        let types = match form {
            ConfigFormat::Single => vec![plugin_type(value("type")?.as_ref()).ok_or(InvalidConfig::Type)?],
            ConfigFormat::List => match value("plugins")? {
                Some(Value::Array(plugins)) if !plugins.is_empty() => plugins
                    .iter()
                    .enumerate()
                    .map(|(index, plugin)| plugin_type(plugin.get("type")).ok_or(InvalidConfig::PluginType(index)))
                    .collect::<Result<_, _>>()?,
                _ => return Err(InvalidConfig::Plugins),
            },
        };
        let newest = match value("cniVersions")? {
            Some(Value::Array(versions)) => {
                versions.iter().filter_map(Value::as_str).filter_map(CniVersion::parse).max()
            }
            _ => None,
        };
        let version = match (newest, CniVersion::parse(&version)) {
            (Some(newest), Some(given)) => newest.max(given).as_str().to_owned(),
            (Some(newest), None) => newest.as_str().to_owned(),
            (None, _) => version,
        };
        let load_only_inlined = value("loadOnlyInlinedPlugins")? == Some(Value::Bool(true));
        Ok(Self { text, form, name, version, types, load_only_inlined })
    }

    /// Returns the text as a list, converted from a single plugin if necessary.
    pub fn as_list(&self) -> Cow<'a, str> {
        match self.form {
            ConfigFormat::List => Cow::Borrowed(self.text),
            // A valid object can be converted.
            ConfigFormat::Single => text::to_conflist(self.text).map_or(Cow::Borrowed(self.text), Cow::Owned),
        }
    }

    /// Returns the text without our entry.
    pub(crate) fn text_without_entry(&self) -> String {
        text::remove_entry(self.text).unwrap_or_else(|| self.text.to_owned())
    }

    /// Returns the number of our entries.
    pub fn entry_count(&self) -> usize {
        self.types.iter().filter(|kind| *kind == PLUGIN_TYPE).count()
    }

    /// Returns whether our plugin is the only one.
    pub fn has_only_our_plugin(&self) -> bool {
        self.types.iter().all(|kind| kind == PLUGIN_TYPE)
    }
}

fn plugin_type(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).filter(|kind| !kind.is_empty()).map(str::to_owned)
}

/// Returns whether a name is valid for a network (`ValidateNetworkName` of the reference library), so that it can name a directory.
pub fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests;
