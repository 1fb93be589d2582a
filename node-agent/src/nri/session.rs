//! One registration at a runtime: calls of the plugin, one after the other, as the runtime makes them.

use std::io;
use std::time::Duration;

use prost::Message as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::messages::{
    ConfigureRequest, ConfigureResponse, PodSandbox, RUN_POD_SANDBOX, RegisterPluginRequest, Request, Response,
    STOP_POD_SANDBOX, StateChangeEvent, Status, SynchronizeRequest, SynchronizeResponse, event_bit,
};
use super::wire::{Channel, Connection, MAX_SENT, MessageType, TtrpcMessage};

/// Name of the plugin, which a runtime can be configured to require.
pub const PLUGIN_NAME: &str = "weir";
/// Order among the plugins of the node: late, so that others have changed the pod's network before.
pub const PLUGIN_INDEX: &str = "90";
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// Time for the runtime to register, configure and synchronize the plugin: it does so with one plugin after the other.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The runtime's default limit for one call of a plugin.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Stream of the only call of the runtime.
const REGISTER_STREAM: u32 = 1;
/// Longest text of an error, so that its message fits into [`MAX_SENT`].
const MAX_ERROR_TEXT: usize = MAX_SENT - 256;

/// Codes of gRPC.
const INVALID_ARGUMENT: i32 = 3;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

/// Error that ends a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection fails, or the runtime sends what is no message of NRI.
    #[error("connection to the runtime failed: {0}")]
    Connection(#[from] io::Error),
    /// The runtime has closed the connection.
    #[error("the runtime closed the connection")]
    Closed,
    /// The runtime rejects the plugin.
    #[error("the runtime rejected the plugin: {0}")]
    Rejected(String),
    /// The runtime does not register the plugin in time.
    #[error("the runtime did not register the plugin within {} s", .0.as_secs())]
    RegistrationTimeout(Duration),
}

/// Identity of a runtime, as it reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Its name, such as `containerd`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Handler of the runtime's events.
pub trait PodHandler {
    /// Handles pods that ran before the plugin was registered, within the time limit.
    fn synchronize(&self, pods: Vec<PodSandbox>, limit: Duration) -> impl Future<Output = ()> + Send;
    /// Called when the runtime knows the plugin and has reported all pods.
    fn synchronized(&self, runtime: &RuntimeInfo);
    /// Handles a new pod, before its first container is created, within the time limit.
    ///
    /// # Errors
    /// The pod must not start, for this reason.
    fn run_pod(&self, pod: PodSandbox, limit: Duration) -> impl Future<Output = Result<(), String>> + Send;
    /// Handles the end of a pod.
    fn stop_pod(&self, pod: PodSandbox) -> impl Future<Output = ()> + Send;
}

/// Registers the plugin and serves the runtime until the connection ends.
///
/// # Errors
/// Always; see [`SessionError`].
pub async fn serve(stream: UnixStream, handler: &impl PodHandler) -> SessionError {
    serve_within(REGISTRATION_TIMEOUT, stream, handler).await
}

async fn serve_within(registration_timeout: Duration, stream: UnixStream, handler: &impl PodHandler) -> SessionError {
    let mut session = Session {
        connection: Connection::new(stream),
        handler,
        registration_timeout,
        limit: limit_of(DEFAULT_REQUEST_TIMEOUT),
        runtime: None,
        is_synchronized: false,
    };
    session.run().await.err().unwrap_or(SessionError::Closed)
}

/// Returns the time limit of the plugin for one call. The runtime goes on without a plugin that is too slow, while an error keeps the pod
/// from starting: so the error has to come first.
fn limit_of(request_timeout: Duration) -> Duration {
    request_timeout * 3 / 4
}

struct Session<'a, H> {
    connection: Connection,
    handler: &'a H,
    registration_timeout: Duration,
    /// Time for one call.
    limit: Duration,
    runtime: Option<RuntimeInfo>,
    is_synchronized: bool,
}

type Answer = Result<Vec<u8>, Status>;

fn failure(code: i32, message: impl Into<String>) -> Status {
    let mut message = message.into();
    message.truncate(message.floor_char_boundary(MAX_ERROR_TEXT));
    Status { code, message }
}

impl<H: PodHandler> Session<'_, H> {
    async fn run(&mut self) -> Result<(), SessionError> {
        let register =
            RegisterPluginRequest { plugin_name: PLUGIN_NAME.to_owned(), plugin_idx: PLUGIN_INDEX.to_owned() };
        let request = Request {
            service: RUNTIME_SERVICE.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: register.encode_to_vec().into(),
            timeout_nano: 0,
        };
        let payload = request.encode_to_vec();
        self.connection.send(Channel::Runtime, REGISTER_STREAM, MessageType::Request, &payload).await?;
        let deadline = Instant::now() + self.registration_timeout;
        loop {
            let received = if self.is_synchronized {
                self.connection.receive().await?
            } else {
                let received = timeout_at(deadline, self.connection.receive()).await;
                received.map_err(|_| SessionError::RegistrationTimeout(self.registration_timeout))??
            };
            let message = received.ok_or(SessionError::Closed)?;
            match (message.channel, message.kind) {
                (Channel::Plugin, Some(MessageType::Request)) => self.answer(&message).await?,
                (Channel::Runtime, Some(MessageType::Response)) if message.stream == REGISTER_STREAM => {
                    check_registration(&message)?;
                }
                // Data of streams, which the plugin does not open.
                _ => debug!(?message.channel, message.stream, "ignoring an NRI message"),
            }
        }
    }

    async fn answer(&mut self, message: &TtrpcMessage) -> Result<(), SessionError> {
        let answer = match Request::decode(message.payload.clone()) {
            Ok(request) if request.service == PLUGIN_SERVICE => self.call(&request).await,
            Ok(request) => Err(failure(UNIMPLEMENTED, format!("unknown service {:?}", request.service))),
            Err(error) => Err(failure(INVALID_ARGUMENT, format!("cannot parse the request: {error}"))),
        };
        let response = match answer {
            Ok(payload) => Response { status: None, payload: payload.into() },
            Err(status) => Response { status: Some(status), payload: prost::bytes::Bytes::new() },
        };
        let payload = response.encode_to_vec();
        Ok(self.connection.send(Channel::Plugin, message.stream, MessageType::Response, &payload).await?)
    }

    async fn call(&mut self, request: &Request) -> Answer {
        let payload = request.payload.clone();
        let invalid =
            |error| failure(INVALID_ARGUMENT, format!("cannot parse the request of {}: {error}", request.method));
        match request.method.as_str() {
            "Configure" => Ok(self.configure(ConfigureRequest::decode(payload).map_err(invalid)?)),
            "Synchronize" => Ok(self.synchronize(SynchronizeRequest::decode(payload).map_err(invalid)?).await),
            "StateChange" => self.state_change(StateChangeEvent::decode(payload).map_err(invalid)?).await,
            "Shutdown" => {
                info!("the container runtime shuts down");
                Ok(Vec::new())
            }
            // Never subscribed to; an empty response changes nothing.
            "CreateContainer" | "UpdateContainer" | "StopContainer" | "UpdatePodSandbox" => Ok(Vec::new()),
            other => Err(failure(UNIMPLEMENTED, format!("unknown method {other:?}"))),
        }
    }

    fn configure(&mut self, request: ConfigureRequest) -> Vec<u8> {
        if let Some(timeout) = u64::try_from(request.request_timeout).ok().filter(|timeout| *timeout > 0) {
            // A longer limit would keep the other pods of the node waiting.
            self.limit = limit_of(Duration::from_millis(timeout).min(DEFAULT_REQUEST_TIMEOUT));
        }
        self.runtime = Some(RuntimeInfo { name: request.runtime_name, version: request.runtime_version });
        ConfigureResponse { events: event_bit(RUN_POD_SANDBOX) | event_bit(STOP_POD_SANDBOX) }.encode_to_vec()
    }

    async fn synchronize(&mut self, request: SynchronizeRequest) -> Vec<u8> {
        self.handler.synchronize(request.pods, self.limit).await;
        if let (false, Some(runtime)) = (request.more, &self.runtime) {
            self.is_synchronized = true;
            self.handler.synchronized(runtime);
        }
        SynchronizeResponse { more: request.more }.encode_to_vec()
    }

    async fn state_change(&self, change: StateChangeEvent) -> Answer {
        let Some(pod) = change.pod else { return Ok(Vec::new()) };
        match change.event {
            RUN_POD_SANDBOX => {
                let name = pod.full_name();
                self.handler.run_pod(pod, self.limit).await.map_err(|reason| {
                    warn!(pod = name, error = reason, "rejected pod");
                    failure(FAILED_PRECONDITION, format!("weir: pod {name}: {reason}"))
                })?;
            }
            STOP_POD_SANDBOX => self.handler.stop_pod(pod).await,
            _ => {}
        }
        Ok(Vec::new())
    }
}

fn check_registration(message: &TtrpcMessage) -> Result<(), SessionError> {
    let rejected = |reason: String| Err(SessionError::Rejected(reason));
    match Response::decode(message.payload.clone()) {
        Ok(Response { status: Some(Status { code, message }), .. }) if code != 0 => rejected(message),
        Ok(_) => Ok(()),
        Err(error) => rejected(format!("cannot parse its response: {error}")),
    }
}

#[cfg(test)]
mod tests;
