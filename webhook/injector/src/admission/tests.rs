use super::*;

fn response(result: AdmissionResult) -> ReviewResponse {
    ReviewResponse {
        api_version: V1,
        uid: "u-1".to_owned(),
        result,
        warnings: Vec::new(),
        audit_annotations: BTreeMap::new(),
    }
}

#[test]
fn decodes_a_review_of_a_real_api_server() {
    let body = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5","kind":{"group":"","version":"v1","kind":"Pod"},
        "resource":{"group":"","version":"v1","resource":"pods"},"requestKind":{"group":"","version":"v1","kind":"Pod"},"namespace":"default",
        "operation":"CREATE","userInfo":{"username":"admin","groups":["a"]},"object":{"kind":"Pod","spec":{"brandNew":{"x":[1]}}},"oldObject":null,
        "dryRun":false,"options":{"kind":"CreateOptions"}}}"#;
    let review = Review::decode(body).unwrap();
    assert_eq!(review.api_version, V1);
    assert_eq!(review.request.uid, "705ab4f5");
    assert_eq!(review.request.kind.kind, "Pod");
    assert_eq!(review.request.namespace, "default");
    assert_eq!(review.request.object["spec"]["brandNew"]["x"][0], 1);
}

#[test]
fn null_decodes_as_the_zero_value() {
    let body = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1",
        "request":{"uid":"u","kind":null,"namespace":null,"dryRun":null,"object":null,"subResource":null,"operation":null}}"#;
    let review = Review::decode(body).unwrap();
    assert_eq!(review.api_version, V1BETA1);
    assert_eq!(review.request.kind, GroupVersionKind::default());
    assert!(review.request.object.is_null());
}

#[test]
fn rejects_invalid_bodies_with_a_reason() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "the body is empty"),
        (b"{\"kind\": }", "line 1 column 10"),
        (b"{\"kind\":\"AdmissionReview\"", "EOF"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "expected \"AdmissionReview\""),
        (b"7", "not an AdmissionReview"),
        (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":7}}"#, "request.uid"),
        (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v2","request":{}}"#, "admission.k8s.io/v2"),
        (br#"{"kind":"Pod","apiVersion":"v1"}"#, "\"Pod\" of \"v1\""),
        (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#, "no request"),
        (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":null}"#, "no request"),
        (br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{}}"#, "no request.uid"),
    ];
    for (body, expected) in cases {
        let text = Review::decode(body).unwrap_err().to_string();
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
    }
}

#[test]
fn encodes_the_patch_as_base64_with_its_type() {
    let json: Value =
        serde_json::from_slice(&response(AdmissionResult::Allowed { patch: Some(b"[]".to_vec()) }).to_json()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"apiVersion": V1, "kind": KIND,
        "response": {"uid": "u-1", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}})
    );
}

#[test]
fn omits_patch_and_patch_type_without_changes() {
    let json: Value = serde_json::from_slice(&response(AdmissionResult::Allowed { patch: None }).to_json()).unwrap();
    assert_eq!(json["response"], serde_json::json!({"uid": "u-1", "allowed": true}));
}

#[test]
fn encodes_a_denial_with_its_status() {
    let denied = ReviewResponse::denied(V1BETA1, "u-2", 422, "Invalid", "no".to_owned());
    let json: Value = serde_json::from_slice(&denied.to_json()).unwrap();
    assert_eq!(json["apiVersion"], V1BETA1);
    assert_eq!(
        json["response"],
        serde_json::json!({"uid": "u-2", "allowed": false,
            "status": {"status": "Failure", "message": "no", "reason": "Invalid", "code": 422}})
    );
}

#[test]
fn a_warning_is_one_bounded_line() {
    let long = "ü".repeat(300);
    let kept = printable_warnings(&["a\nb".to_owned(), long]);
    assert_eq!(kept[0], "a b");
    assert!(kept[1].len() <= WARNING_BYTES, "{} bytes", kept[1].len());
    assert!(kept[1].ends_with("..."));
}

#[test]
fn omitted_warnings_are_counted() {
    let many = vec!["w".repeat(200); 30];
    let kept = printable_warnings(&many);
    assert_eq!(kept.len(), 21);
    assert_eq!(kept[20], "10 more warnings omitted");
}

proptest::proptest! {
    #[test]
    fn decoding_never_panics(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Review::decode(&body);
    }
}
