//! What a file of the configuration folder is to the runtimes: a network, or why not. The rules are those of the library that containerd
//! and CRI-O share (libcni).

use std::borrow::Cow;

use serde_json::Value;
use weir_protocol::entry::PLUGIN_TYPE;
use weir_protocol::version::CniVersion;

use super::text;

/// Endings that runtimes read, in no order: files are sorted by their whole name.
pub const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Whether runtimes read a file of that name.
pub fn is_configuration(name: &str) -> bool {
    ending(name).is_some_and(|ending| ENDINGS.contains(&ending))
}

/// What follows the last dot, as Go's `filepath.Ext` has it: also for a name that is nothing but an ending.
pub fn ending(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, ending)| ending)
}

/// How a configuration is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A list of plugins.
    List,
    /// One plugin.
    Single,
}

/// A configuration that a runtime can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network<'a> {
    /// The text, whole.
    pub text: &'a str,
    /// How it is written.
    pub form: Form,
    /// Name of the network.
    pub name: String,
    /// Newest version that it names; empty where it names none.
    pub version: String,
    /// Types of the plugins, in order.
    pub types: Vec<String>,
    /// Whether the list forbids files beside it.
    pub inlined_only: bool,
}

/// Why no runtime can use a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not JSON, or not an object, or half of one.
    #[error("not JSON: {0}")]
    Json(String),
    /// No network name.
    #[error("key 'name' is missing, empty or no text")]
    Name,
    /// `cniVersion` is something else than text.
    #[error("key 'cniVersion' is no text")]
    Version,
    /// A list without plugins.
    #[error("key 'plugins' is missing, empty or no list")]
    Plugins,
    /// A plugin without type.
    #[error("plugin {0} of the list has no 'type'")]
    PluginType(usize),
    /// A single plugin without type; often a list under a name that ends in `.conf`.
    #[error("key 'type' is missing: a file that does not end in .conflist is one plugin")]
    Type,
}

impl<'a> Network<'a> {
    /// Reads a file of that name.
    ///
    /// # Errors
    /// See [`Invalid`].
    pub fn parse(file_name: &str, bytes: &'a [u8]) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(bytes).map_err(|error| Invalid::Json(error.to_string()))?;
        let keys = text::keys(text).map_err(|error| Invalid::Json(error.to_string()))?;
        let value = |key: &str| keys.get(key).map(|raw| serde_json::from_str::<Value>(raw.get()));
        let value = |key: &str| value(key).transpose().map_err(|error| Invalid::Json(error.to_string()));
        let form = match ending(file_name) {
            Some("conflist") => Form::List,
            Some("conf" | "json") => Form::Single,
            // Runtimes do not read it, somebody named it to us: its content says what it is.
            _ if keys.contains_key("type") => Form::Single,
            _ => Form::List,
        };
        let name = match value("name")? {
            Some(Value::String(name)) if !name.is_empty() => name,
            _ => return Err(Invalid::Name),
        };
        let version = match value("cniVersion")? {
            None => String::new(),
            Some(Value::String(version)) => version,
            Some(_) => return Err(Invalid::Version),
        };
        let types = match form {
            Form::Single => vec![plugin_type(value("type")?.as_ref()).ok_or(Invalid::Type)?],
            Form::List => match value("plugins")? {
                Some(Value::Array(plugins)) if !plugins.is_empty() => plugins
                    .iter()
                    .enumerate()
                    .map(|(index, plugin)| plugin_type(plugin.get("type")).ok_or(Invalid::PluginType(index)))
                    .collect::<Result<_, _>>()?,
                _ => return Err(Invalid::Plugins),
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
        let inlined_only = value("loadOnlyInlinedPlugins")? == Some(Value::Bool(true));
        Ok(Self { text, form, name, version, types, inlined_only })
    }

    /// As a list, whatever it is written as.
    pub fn as_list(&self) -> Cow<'a, str> {
        match self.form {
            Form::List => Cow::Borrowed(self.text),
            // A text that was read as an object can be wrapped.
            Form::Single => text::wrap(self.text).map_or(Cow::Borrowed(self.text), Cow::Owned),
        }
    }

    /// The text without any entry of ours.
    pub(crate) fn text_without_us(&self) -> String {
        text::strip(self.text).unwrap_or_else(|| self.text.to_owned())
    }

    /// How many of the plugins are ours.
    pub fn ours(&self) -> usize {
        self.types.iter().filter(|kind| *kind == PLUGIN_TYPE).count()
    }

    /// A file with our plugin and no other.
    pub fn is_only_ours(&self) -> bool {
        self.types.iter().all(|kind| kind == PLUGIN_TYPE)
    }
}

fn plugin_type(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).filter(|kind| !kind.is_empty()).map(str::to_owned)
}

/// Whether a network's name may be the name of a folder (`ValidateNetworkName` of the reference library).
pub fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &str) -> Result<(Form, Vec<String>), Invalid> {
        Network::parse(name, text.as_bytes()).map(|network| (network.form, network.types))
    }

    #[test]
    fn reads_files_by_their_ending_as_runtimes_do() {
        for (name, read) in [
            ("a.conf", true),
            ("a.conflist", true),
            ("a.json", true),
            (".conf", true),
            ("a.conf.bak", false),
            ("conflist", false),
            ("a.CONF", false),
            ("a.conflist.weir-backup", false),
        ] {
            assert_eq!(is_configuration(name), read, "{name}");
        }
        let list = r#"{"name":"n","plugins":[{"type":"a"},{"type":"b"}]}"#;
        let single = r#"{"name":"n","type":"a"}"#;
        assert_eq!(parse("x.conflist", list).unwrap(), (Form::List, vec!["a".into(), "b".into()]));
        assert_eq!(parse("x.conf", list).unwrap_err(), Invalid::Type);
        assert_eq!(parse("x.json", list).unwrap_err(), Invalid::Type);
        assert_eq!(parse("x.conf", single).unwrap().0, Form::Single);
        assert_eq!(parse("x.conflist", single).unwrap_err(), Invalid::Plugins);
        assert_eq!(parse("x.file", single).unwrap().0, Form::Single);
        assert_eq!(parse("x.file", list).unwrap().0, Form::List);
    }

    #[test]
    fn says_why_a_file_is_no_network() {
        for (text, why) in [
            (r#"{"plugins":[{"type":"a"}]}"#, Invalid::Name),
            (r#"{"name":7,"plugins":[{"type":"a"}]}"#, Invalid::Name),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}"#, Invalid::Version),
            (r#"{"name":"n","pugins":[{"type":"a"}]}"#, Invalid::Plugins),
            (r#"{"name":"n","plugins":[]}"#, Invalid::Plugins),
            (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, Invalid::PluginType(1)),
            (r#"{"name":"n","plugins":[7]}"#, Invalid::PluginType(0)),
        ] {
            assert_eq!(parse("x.conflist", text).unwrap_err(), why, "{text}");
        }
        for text in ["", "[]", "{", "\"This is not json\"\n\nMaybe", r#"{"name":"n"} x"#] {
            assert!(matches!(parse("x.conflist", text), Err(Invalid::Json(_))), "{text}");
        }
        assert!(Network::parse("x.conf", b"\xff{}").is_err());
    }

    #[test]
    fn takes_the_newest_version_that_is_named() {
        let version = |rest: &str| {
            let text = format!(r#"{{"name":"n","plugins":[{{"type":"a"}}]{rest}}}"#);
            Network::parse("x.conflist", text.as_bytes()).unwrap().version
        };
        assert_eq!(version(""), "");
        assert_eq!(version(r#","cniVersion":"0.2.0""#), "0.2.0");
        assert_eq!(version(r#","cniVersion":"0.4.0","cniVersions":["1.1.0","9.9.9","1.0.0"]"#), "1.1.0");
    }

    #[test]
    fn knows_names_that_can_be_folders() {
        for (name, good) in
            [("dbnet", true), ("k8s-pod_network.1", true), ("", false), ("..", false), ("a/b", false), (".a", false)]
        {
            assert_eq!(is_network_name(name), good, "{name:?}");
        }
    }
}
