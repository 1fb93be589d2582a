use super::*;

fn parse(name: &str, text: &str) -> Result<(ConfigFormat, Vec<String>), InvalidConfig> {
    NetworkConfig::parse(name, text.as_bytes()).map(|network| (network.form, network.types))
}

#[test]
fn format_follows_the_extension() {
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
    assert_eq!(parse("x.conflist", list).unwrap(), (ConfigFormat::List, vec!["a".into(), "b".into()]));
    assert_eq!(parse("x.conf", list).unwrap_err(), InvalidConfig::Type);
    assert_eq!(parse("x.json", list).unwrap_err(), InvalidConfig::Type);
    assert_eq!(parse("x.conf", single).unwrap().0, ConfigFormat::Single);
    assert_eq!(parse("x.conflist", single).unwrap_err(), InvalidConfig::Plugins);
    assert_eq!(parse("x.file", single).unwrap().0, ConfigFormat::Single);
    assert_eq!(parse("x.file", list).unwrap().0, ConfigFormat::List);
}

#[test]
fn invalid_files_are_rejected_with_a_reason() {
    for (text, why) in [
        (r#"{"plugins":[{"type":"a"}]}"#, InvalidConfig::Name),
        (r#"{"name":7,"plugins":[{"type":"a"}]}"#, InvalidConfig::Name),
        (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}"#, InvalidConfig::Version),
        (r#"{"name":"n","pugins":[{"type":"a"}]}"#, InvalidConfig::Plugins),
        (r#"{"name":"n","plugins":[]}"#, InvalidConfig::Plugins),
        (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, InvalidConfig::PluginType(1)),
        (r#"{"name":"n","plugins":[7]}"#, InvalidConfig::PluginType(0)),
    ] {
        assert_eq!(parse("x.conflist", text).unwrap_err(), why, "{text}");
    }
    for text in ["", "[]", "{", "\"This is not json\"\n\nMaybe", r#"{"name":"n"} x"#] {
        assert!(matches!(parse("x.conflist", text), Err(InvalidConfig::Json(_))), "{text}");
    }
    assert!(NetworkConfig::parse("x.conf", b"\xff{}").is_err());
}

#[test]
fn the_newest_version_counts() {
    let version = |rest: &str| {
        let text = format!(r#"{{"name":"n","plugins":[{{"type":"a"}}]{rest}}}"#);
        NetworkConfig::parse("x.conflist", text.as_bytes()).unwrap().version
    };
    assert_eq!(version(""), "");
    assert_eq!(version(r#","cniVersion":"0.2.0""#), "0.2.0");
    assert_eq!(version(r#","cniVersion":"0.4.0","cniVersions":["1.1.0","9.9.9","1.0.0"]"#), "1.1.0");
}

#[test]
fn network_names_are_validated() {
    for (name, good) in
        [("dbnet", true), ("k8s-pod_network.1", true), ("", false), ("..", false), ("a/b", false), (".a", false)]
    {
        assert_eq!(is_network_name(name), good, "{name:?}");
    }
}
