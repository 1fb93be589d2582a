//! What is made of which texts and of what is known of the cluster.

use super::*;

fn given(text: &str) -> Text {
    Text::Given { place: "here".to_owned(), bytes: text.as_bytes().to_vec() }
}

fn maker(live: Live) -> Maker {
    let missing = Text::Missing("ConfigMap mesh/istio is not there".to_owned());
    Maker::new([given("global: {tag: one}"), missing, Text::BuiltIn], Fixed::default(), live)
}

fn tag(maker: &Maker) -> String {
    maker.current().load().as_ref().map_or_else(String::new, |settings| settings.values.global.tag.clone())
}

#[test]
fn there_are_no_settings_before_every_document_is_there() {
    let mut maker = maker(Live::default());
    let Made::Waiting(reason) = maker.make() else { panic!("made of what is not there") };
    assert_eq!(reason, "ConfigMap mesh/istio is not there");
    assert!(maker.current().load().is_none());
    maker.text(Document::Mesh, given("trustDomain: example.org"));
    assert_eq!(maker.make(), Made::InUse(Vec::new()));
    assert_eq!(tag(&maker), "one");
    assert_eq!(maker.make(), Made::Same);
}

#[test]
fn a_bad_text_keeps_the_last_good_settings_and_says_why_once() {
    let mut maker = maker(Live::default());
    maker.text(Document::Mesh, given("{}"));
    assert_eq!(maker.make(), Made::InUse(Vec::new()));
    maker.text(Document::Values, given("global: {tag: [1]}"));
    maker.text(Document::Mesh, given("proxyListenPort: x"));
    let Made::Refused(reason) = maker.make() else { panic!("taken") };
    assert!(reason.contains("values: global.tag") && reason.contains("mesh: proxyListenPort"), "{reason}");
    assert_eq!((tag(&maker).as_str(), maker.make()), ("one", Made::Same));

    // What is known of the cluster goes on to be followed meanwhile.
    maker.live().nodes = Some([("n", "v1.20.0")].into_iter().collect());
    assert_eq!(maker.make(), Made::Updated);
    assert!(!maker.current().load().as_ref().unwrap().nodes.run_native_sidecars(None));
    assert!(maker.problem().is_some());

    maker.text(Document::Values, given("global: {tag: two}"));
    maker.text(Document::Mesh, given("{}"));
    assert_eq!((maker.make(), tag(&maker).as_str()), (Made::InUse(Vec::new()), "two"));
    assert_eq!(maker.problem(), None);
}

#[test]
fn nothing_is_in_use_before_what_is_followed_is_known() {
    let mut maker = maker(Live { nodes: None, namespaces: None, ..Live::default() });
    maker.text(Document::Mesh, given("{}"));
    let Made::Waiting(reason) = maker.make() else { panic!("made without nodes") };
    assert!(reason.ends_with("nodes, namespaces"), "{reason}");
    maker.live().nodes = Some(Nodes::default());
    maker.live().namespaces = Some(Namespaces::default());
    assert_eq!(maker.make(), Made::InUse(Vec::new()));
}

#[test]
fn the_same_text_again_is_not_read_again() {
    let mut maker = maker(Live::default());
    maker.text(Document::Mesh, given("{}"));
    maker.make();
    let before = maker.current().load_full().unwrap();
    maker.text(Document::Mesh, given("{}"));
    assert_eq!(maker.make(), Made::Same);
    assert!(Arc::ptr_eq(&before, &maker.current().load_full().unwrap()));
}

#[test]
fn openshift_is_told_by_the_values() {
    let mut maker = maker(Live::default());
    maker.text(Document::Values, given("global: {platform: openshift}"));
    maker.text(Document::Mesh, given("{}"));
    maker.make();
    assert_eq!(maker.current().load().as_ref().unwrap().platform, Platform::OpenShift);
}
