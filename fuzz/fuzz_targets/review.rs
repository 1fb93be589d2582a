//! Bytes of an AdmissionReview: the patch of a valid review results in the injected pod, and an invalid one still gets a valid response.
#![no_main]

use std::sync::LazyLock;

use weir_fuzz::bounded_target;
use weir_injector::admission::{Review, ReviewId, ReviewResponse};
use weir_injector::patch::{diff, to_json};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::{InjectOutcome, InjectRequest, inject};

static SETTINGS: LazyLock<[Settings; 2]> = LazyLock::new(|| {
    let settings = || Settings::from_values_and_mesh(None, None).expect("the built-in settings are valid");
    let mut classic = settings();
    classic.values.pilot.cni_enabled = false;
    classic.native_sidecars = NativeSidecars::Off;
    [settings(), classic]
});

bounded_target!(|body: &[u8]| {
    let id = ReviewId::extract(body);
    let review = match Review::decode(body) {
        Ok(review) => review,
        Err(error) => {
            let reply = ReviewResponse::denied(id.api_version, &id.uid, 400, "BadRequest", error.to_string());
            serde_json::from_slice::<serde_json::Value>(&reply.to_json()).expect("a response is JSON");
            return;
        }
    };
    assert_eq!(id.uid, review.request.uid);
    assert_eq!(id.api_version, review.api_version);
    for settings in &*SETTINGS {
        let pod = review.request.object.clone();
        let request =
            InjectRequest { pod, namespace: Some(review.request.namespace.clone()), ..InjectRequest::default() };
        let Ok(InjectOutcome::Injected { pod, .. }) = inject(&request, settings) else { continue };
        let text = to_json(&diff(&request.pod, &pod)).expect("a patch is JSON");
        let patch: json_patch::Patch = serde_json::from_slice(&text).expect("a patch is a JSON patch");
        let mut patched = request.pod.clone();
        json_patch::patch(&mut patched, &patch).expect("a patch can be applied");
        assert_eq!(patched, pod);
    }
});
