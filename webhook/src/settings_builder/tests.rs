use super::*;

fn present(text: &str) -> DocumentState {
    DocumentState::Present { origin: "here".to_owned(), bytes: text.as_bytes().to_vec() }
}

fn builder(cluster: ClusterState) -> SettingsBuilder {
    let missing = DocumentState::Missing("ConfigMap mesh/istio not found".to_owned());
    let documents = [present("global: {tag: one}"), missing, DocumentState::BuiltIn, DocumentState::BuiltIn];
    SettingsBuilder::new(documents, FlagOverrides::default(), cluster)
}

fn tag(builder: &SettingsBuilder) -> String {
    builder.current().load().as_ref().map_or_else(String::new, |settings| settings.values.global.tag.clone())
}

#[test]
fn missing_document_keeps_settings_pending() {
    let mut builder = builder(ClusterState::default());
    assert_eq!(builder.build(), SettingsUpdate::Pending("ConfigMap mesh/istio not found".to_owned()));
    assert!(builder.current().load().is_none());
    builder.set_document(SettingsDocument::Mesh, present("trustDomain: example.org"));
    assert_eq!(builder.build(), SettingsUpdate::Applied(Vec::new()));
    assert_eq!(tag(&builder), "one");
    assert_eq!(builder.build(), SettingsUpdate::Unchanged);
}

#[test]
fn cni_mode_of_the_flag_overrides_the_values() {
    let mode = |text: &str, cni_mode| {
        let documents = [present(text), DocumentState::BuiltIn, DocumentState::BuiltIn, DocumentState::BuiltIn];
        let overrides = FlagOverrides { cni_mode, ..FlagOverrides::default() };
        let mut builder = SettingsBuilder::new(documents, overrides, ClusterState::default());
        builder.build();
        let settings = builder.current().load_full().unwrap();
        settings.values.pilot.cni_enabled
    };
    let istioctl = "pilot: {cni: {enabled: false, provider: default}}";
    assert!(!mode(istioctl, None));
    assert!(mode(istioctl, Some(true)));
    assert!(mode("istio_cni: {enabled: false}", Some(true)), "the key of older charts");
    assert!(!mode("pilot: {cni: {enabled: true}}", Some(false)));
}

#[test]
fn rejected_document_keeps_the_last_good_settings() {
    let mut builder = builder(ClusterState::default());
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    assert_eq!(builder.build(), SettingsUpdate::Applied(Vec::new()));
    builder.set_document(SettingsDocument::Values, present("global: {tag: [1]}"));
    builder.set_document(SettingsDocument::Mesh, present("proxyListenPort: x"));
    let SettingsUpdate::Rejected(reason) = builder.build() else { panic!("accepted") };
    assert!(reason.contains("values: global.tag") && reason.contains("mesh: proxyListenPort"), "{reason}");
    assert_eq!((tag(&builder).as_str(), builder.build()), ("one", SettingsUpdate::Unchanged), "reported once");

    // The state of the cluster is applied meanwhile.
    builder.cluster_state_mut().nodes = Some([("n", "v1.20.0")].into_iter().collect());
    assert_eq!(builder.build(), SettingsUpdate::ClusterUpdated);
    assert!(!builder.current().load().as_ref().unwrap().nodes.can_run_native_sidecars(None));
    assert!(builder.rejection().is_some());

    builder.set_document(SettingsDocument::Values, present("global: {tag: two}"));
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    assert_eq!((builder.build(), tag(&builder).as_str()), (SettingsUpdate::Applied(Vec::new()), "two"));
    assert_eq!(builder.rejection(), None);
}

#[test]
fn unsynced_caches_keep_settings_pending() {
    let mut builder = builder(ClusterState { nodes: None, namespaces: None, ..ClusterState::default() });
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    assert_eq!(builder.build(), SettingsUpdate::Pending("caches not synced yet: nodes, namespaces".to_owned()));
    builder.cluster_state_mut().nodes = Some(Nodes::default());
    builder.cluster_state_mut().namespaces = Some(Namespaces::default());
    assert_eq!(builder.build(), SettingsUpdate::Applied(Vec::new()));
}

#[test]
fn same_document_again_changes_nothing() {
    let mut builder = builder(ClusterState::default());
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    builder.build();
    let before = builder.current().load_full().unwrap();
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    assert_eq!(builder.build(), SettingsUpdate::Unchanged);
    assert!(Arc::ptr_eq(&before, &builder.current().load_full().unwrap()));
}

#[test]
fn platform_openshift_comes_from_the_values() {
    let mut builder = builder(ClusterState::default());
    builder.set_document(SettingsDocument::Values, present("global: {platform: openshift}"));
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    builder.build();
    assert_eq!(builder.current().load().as_ref().unwrap().platform, Platform::OpenShift);
}

#[test]
fn invalid_assertions_are_rejected_and_the_last_good_ones_stay() {
    let mut builder = builder(ClusterState::default());
    builder.set_document(SettingsDocument::Mesh, present("{}"));
    let assertion = "{apiVersion: weir.dev/v1alpha1, kind: CaptureAssertion, metadata: {name: all}, spec: {rules: [{direction: outbound, must: captured}]}}";
    builder.set_document(SettingsDocument::Assertions, present(assertion));
    assert_eq!(builder.build(), SettingsUpdate::Applied(Vec::new()));
    builder.set_document(SettingsDocument::Assertions, present(&assertion.replace("captured", "catched")));
    let SettingsUpdate::Rejected(reason) = builder.build() else { panic!("not rejected") };
    assert!(reason.contains("assertions: spec.rules[0].must must be captured or bypassed or dropped"), "{reason}");
    let settings = builder.current().load_full().unwrap();
    assert_eq!(settings.assertions.iter().map(|assertion| assertion.name.as_str()).collect::<Vec<_>>(), ["all"]);
}
