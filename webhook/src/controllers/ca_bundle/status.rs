//! Whether every `caBundle` trusts what it should, for the controller that rotates the CA.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::watch;
use weir_runtime::ClientFactory;
use weir_runtime::client::{ApiError, with_timeout};

use super::observed::ObservedConfiguration;
use super::trust::TrustBundle;

/// State of the `caBundle` fields of our webhook configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleStatus {
    /// CA certificates that they should trust.
    pub trust: Option<Arc<TrustBundle>>,
    /// Since when all of them have been observed to; `None` while one does not.
    pub trusted_since: Option<Instant>,
    /// Whether the cache is current, and none trusts anything.
    pub none_trusts_anything: bool,
}

/// Reads the status that the reconciler observes.
#[derive(Clone)]
pub struct BundleStatusReader {
    pub(super) client_factory: ClientFactory,
    pub(super) label_selector: String,
    pub(super) status: watch::Receiver<BundleStatus>,
}

impl BundleStatusReader {
    /// Returns for how long every bundle has been observed to trust `trust`; `None` while one does not.
    pub fn trusted_for(&self, trust: &TrustBundle) -> Option<Duration> {
        let status = self.status.borrow();
        let since = status.trust.as_deref().filter(|observed| *observed == trust).and(status.trusted_since);
        since.map(|since| since.elapsed())
    }

    /// Returns whether the cache is current, and no bundle trusts anything yet.
    pub fn none_trusts_anything(&self) -> bool {
        self.status.borrow().none_trusts_anything
    }

    /// Asks the API server whether every bundle trusts `trust` now, because the cache may be late.
    ///
    /// # Errors
    /// The API server rejects the request, or does not respond.
    pub async fn is_trusted_everywhere(&self, trust: &TrustBundle) -> Result<bool, ApiError> {
        let client = (self.client_factory)().map_err(ApiError::no_response)?;
        let objects = with_timeout(api(client).list(&ListParams::default().labels(&self.label_selector))).await?;
        Ok(objects.items.into_iter().all(|object| ObservedConfiguration::from(object).trusts_all_of(trust)))
    }
}

pub(super) fn api(client: Client) -> Api<MutatingWebhookConfiguration> {
    Api::all(client)
}
