use super::*;

fn report(verb: &str, uid: &str, container: &str) -> CallReport {
    let netns = format!("/run/netns/{container}");
    let (verb, uid, container) = (verb.to_owned(), uid.to_owned(), container.to_owned());
    CallReport {
        v: PROTOCOL_VERSION,
        verb,
        uid,
        container,
        netns,
        outcome: CallOutcome::Installed,
        ..CallReport::default()
    }
}

#[test]
fn attachments_follow_add_del_and_gc() {
    let attachments = Attachments::default();
    attachments.apply(&report("ADD", "u1", "a"));
    attachments.apply(&report("ADD", "u2", "b"));
    // A second sandbox of the pod is created before the first is removed.
    attachments.apply(&report("ADD", "u1", "c"));
    attachments.apply(&report("DEL", "u1", "a"));
    assert_eq!(attachments.get("u1").map(|found| found.netns), Some(PathBuf::from("/run/netns/c")));
    attachments.apply(&CallReport { valid: Some(vec!["c".to_owned()]), ..report("GC", "", "") });
    assert_eq!(attachments.get("u2"), None);
    attachments.apply(&report("GC", "", ""));
    attachments.apply(&report("DEL", "", "c"));
    assert_eq!(attachments.get("u1"), None);
    for number in 0..2 * MAX_ATTACHMENTS {
        attachments.apply(&report("ADD", &number.to_string(), "x"));
    }
    assert_eq!(attachments.by_uid().len(), MAX_ATTACHMENTS);
}

#[test]
fn labels_never_contain_text_of_a_report() {
    let metrics = MetricsRegistry::default();
    let reports = CallReportServer::register(&metrics);
    reports.handle(&serde_json::to_vec(&report("ADD", "u1", "a")).unwrap());
    reports.handle(br#"{"v":1,"verb":"ADD","outcome":"failed","code":11,"us":{"decide":5,"agent":2000000,"kernel":0,"total":2000005}}"#);
    for nonsense in [
        &b"{"[..],
        b"",
        br#"{"v":2,"verb":"ADD","outcome":"done","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#,
        br#"{"v":1,"verb":"\"}","outcome":"done","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#,
        br#"{"v":1,"verb":"ADD","outcome":"perhaps","us":{"decide":0,"agent":0,"kernel":0,"total":0}}"#,
    ] {
        reports.handle(nonsense);
    }
    let text = metrics.render();
    for line in [
        r#"weir_cni_requests_total{verb="ADD",outcome="installed",code="0"} 1"#,
        r#"weir_cni_requests_total{verb="ADD",outcome="failed",code="11"} 1"#,
        r#"weir_cni_request_duration_seconds_count{verb="ADD",outcome="failed"} 1"#,
        r#"weir_cni_stage_duration_seconds_bucket{le="2.0",verb="ADD",stage="agent"} 2"#,
        "weir_agent_malformed_reports_total 5",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}
