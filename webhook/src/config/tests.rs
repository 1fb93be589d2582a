use std::fs;
use std::sync::Arc;

use clap::Parser as _;
use weir_injector::settings::Settings;

use super::*;
use crate::args::Cli;

fn resolve(flags: &[&str]) -> Result<Config, String> {
    let cli = Cli::try_parse_from(["weir-webhook"].iter().chain(flags)).unwrap();
    Config::resolve(cli.serve).map_err(|error| error.to_string())
}

fn settings_of(config: &Config) -> Arc<Settings> {
    config.settings.builder().lock().current().load_full().unwrap()
}

#[test]
fn without_flags_everything_is_built_in() {
    let config = resolve(&[]).unwrap();
    assert_eq!(settings_of(&config).native_sidecars, NativeSidecars::On);
    assert!(config.certificate.current().load().as_ref().as_ref().unwrap().not_after() > SystemTime::now());
    assert!(config.controllers.is_none());
}

#[test]
fn shipped_manifests_equal_the_built_in_settings() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/config");
    let (values, mesh) = (config.join("values.yaml"), config.join("mesh.yaml"));
    let shipped = resolve(&["--values", values.to_str().unwrap(), "--mesh", mesh.to_str().unwrap()]).unwrap();
    let text = |config: &Config| format!("{:#?}", settings_of(config));
    assert_eq!(text(&shipped), text(&resolve(&[]).unwrap()));
}

#[test]
fn mesh_document_alone_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = dir.path().join("mesh");
    fs::write(&mesh, "trustDomain: example.org").unwrap();
    let config = resolve(&["--mesh", mesh.to_str().unwrap()]).unwrap();
    assert_eq!(settings_of(&config).mesh.trust_domain, "example.org");
}

#[test]
fn flags_override_changed_files() {
    let dir = tempfile::tempdir().unwrap();
    let values = dir.path().join("values");
    fs::write(&values, "{}").unwrap();
    let path = values.to_str().unwrap();
    let mut config = resolve(&["--values", path, "--revision", "canary", "--native-sidecars", "false"]).unwrap();
    fs::write(&values, "global: {tag: other}").unwrap();
    assert_eq!(config.settings.poll(), Some(SettingsUpdate::Applied(Vec::new())));
    let settings = settings_of(&config);
    assert_eq!((settings.revision.as_str(), settings.native_sidecars), ("canary", NativeSidecars::Off));
    assert_eq!(settings.values.global.tag, "other");
}

#[test]
fn every_unusable_document_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (values, mesh) = (dir.path().join("values"), dir.path().join("mesh"));
    fs::write(&values, "a: [").unwrap();
    fs::write(&mesh, [0xff]).unwrap();
    let error = resolve(&["--values", values.to_str().unwrap(), "--mesh", mesh.to_str().unwrap()]).unwrap_err();
    assert!(error.contains(values.to_str().unwrap()) && error.contains("not UTF-8"), "{error}");
}

#[test]
fn broken_template_keeps_the_last_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    fs::write(&file, "policy: disabled\ntemplates: {mine: 'metadata: {}'}").unwrap();
    let mut config = resolve(&["--config", file.to_str().unwrap()]).unwrap();
    assert_eq!(settings_of(&config).injection.policy, "disabled");
    fs::write(&file, "templates: {mine: 'metadata: {{ nosuch }}'}").unwrap();
    let Some(SettingsUpdate::Rejected(reason)) = config.settings.poll() else { panic!("accepted") };
    assert!(reason.contains("config: templates.mine: line 1: function \"nosuch\""), "{reason}");
    assert_eq!(settings_of(&config).injection.policy, "disabled");
}

#[test]
fn key_of_another_certificate_is_rejected_naming_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["localhost".to_owned()];
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    for dir in [&one, &other] {
        certs::generate(&names, 1, SystemTime::now()).unwrap().write(dir, false).unwrap();
    }
    let (cert, key) = (one.join("tls.crt"), other.join("tls.key"));
    let error =
        resolve(&["--tls-cert-file", cert.to_str().unwrap(), "--tls-key-file", key.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("does not match"), "{error}");
    assert!(error.contains(cert.to_str().unwrap()) && error.contains(key.to_str().unwrap()), "{error}");
}

#[test]
fn empty_certificate_directory_is_filled_once() {
    let dir = tempfile::tempdir().unwrap();
    let (certs, ca) = (dir.path().join("certs"), dir.path().join("ca.pem"));
    let flags = ["--cert-dir", certs.to_str().unwrap(), "--ca-out", ca.to_str().unwrap()];
    resolve(&flags).unwrap();
    let first = fs::read(certs.join("tls.crt")).unwrap();
    assert_eq!(fs::read(&ca).unwrap(), fs::read(certs.join("ca.crt")).unwrap());
    resolve(&flags).unwrap();
    assert_eq!(fs::read(certs.join("tls.crt")).unwrap(), first);

    fs::remove_file(certs.join("tls.key")).unwrap();
    let error = resolve(&flags).unwrap_err();
    assert!(error.contains("tls.key does not"), "{error}");
}
