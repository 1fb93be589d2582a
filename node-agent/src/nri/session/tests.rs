use std::collections::BTreeMap;
use std::sync::Mutex;

use prost::bytes::Bytes;

use super::super::messages::{LinuxNamespace, LinuxPodSandbox};
use super::*;

/// A handler that records its calls, and rejects pods of the namespace `rejected`.
#[derive(Debug, Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
}

impl Recorder {
    fn record(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl PodHandler for Recorder {
    async fn synchronize(&self, pods: Vec<PodSandbox>, limit: Duration) {
        let names: Vec<String> = pods.iter().map(PodSandbox::full_name).collect();
        self.record(format!("synchronize {} within {limit:?}", names.join(",")));
    }

    fn synchronized(&self, runtime: &RuntimeInfo) {
        self.record(format!("synchronized {} {}", runtime.name, runtime.version));
    }

    async fn run_pod(&self, pod: PodSandbox, _: Duration) -> Result<(), String> {
        self.record(format!("run {} {:?}", pod.full_name(), pod.netns()));
        if pod.namespace == "rejected" { Err("x".repeat(10 * MAX_SENT)) } else { Ok(()) }
    }

    async fn stop_pod(&self, pod: PodSandbox) {
        self.record(format!("stop {}", pod.full_name()));
    }
}

fn pod(namespace: &str, path: &str) -> PodSandbox {
    PodSandbox {
        id: "s1".to_owned(),
        name: "web".to_owned(),
        uid: "u1".to_owned(),
        namespace: namespace.to_owned(),
        annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        linux: Some(LinuxPodSandbox {
            namespaces: vec![LinuxNamespace { kind: "network".to_owned(), path: path.to_owned() }],
        }),
        ..PodSandbox::default()
    }
}

/// The runtime's end of a connection.
struct Runtime {
    connection: Connection,
    stream: u32,
}

impl Runtime {
    /// Accepts the registration of a plugin.
    async fn accept(stream: UnixStream) -> Self {
        let mut connection = Connection::new(stream);
        let register = connection.receive().await.unwrap().unwrap();
        let request = Request::decode(register.payload).unwrap();
        assert_eq!((register.channel, request.method.as_str()), (Channel::Runtime, "RegisterPlugin"));
        let plugin = RegisterPluginRequest::decode(request.payload).unwrap();
        assert_eq!((plugin.plugin_name.as_str(), plugin.plugin_idx.as_str()), ("weir", "90"));
        connection.send(Channel::Runtime, register.stream, MessageType::Response, &[]).await.unwrap();
        Self { connection, stream: 1 }
    }

    async fn call_raw(&mut self, payload: &[u8]) -> Result<Bytes, Status> {
        self.stream += 2;
        self.connection.send(Channel::Plugin, self.stream, MessageType::Request, payload).await.unwrap();
        let answer = self.connection.receive().await.unwrap().unwrap();
        assert_eq!((answer.channel, answer.stream), (Channel::Plugin, self.stream));
        let response = Response::decode(answer.payload).unwrap();
        response.status.map_or(Ok(response.payload), Err)
    }

    async fn call(&mut self, method: &str, payload: Vec<u8>) -> Result<Bytes, Status> {
        let (service, method) = (PLUGIN_SERVICE.to_owned(), method.to_owned());
        let request = Request { service, method, payload: payload.into(), timeout_nano: 2_000_000_000 };
        self.call_raw(&request.encode_to_vec()).await
    }

    async fn event(&mut self, event: i32, pod: PodSandbox) -> Result<Bytes, Status> {
        self.call("StateChange", StateChangeEvent { event, pod: Some(pod) }.encode_to_vec()).await
    }
}

/// Plays a runtime against the plugin until it hangs up; returns how the session ends.
async fn play<F: Future<Output = ()>>(handler: &Recorder, runtime: impl FnOnce(UnixStream) -> F) -> SessionError {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::join!(serve(ours, handler), runtime(theirs)).0
}

#[tokio::test]
async fn a_runtime_registers_synchronizes_and_reports_pods() {
    let recorder = Recorder::default();
    let ended = play(&recorder, |stream| async {
        let mut runtime = Runtime::accept(stream).await;
        let configure = ConfigureRequest {
            runtime_name: "containerd".to_owned(),
            runtime_version: "2.1.9".to_owned(),
            request_timeout: 1000,
        };
        let answer = runtime.call("Configure", configure.encode_to_vec()).await.unwrap();
        assert_eq!(ConfigureResponse::decode(answer).unwrap().events, 0b11);
        // A runtime with many pods reports them in parts.
        for more in [true, false] {
            let request = SynchronizeRequest { pods: vec![pod("shop", "/run/netns/a")], more };
            let answer = runtime.call("Synchronize", request.encode_to_vec()).await.unwrap();
            assert_eq!(SynchronizeResponse::decode(answer).unwrap().more, more);
        }
        runtime.event(RUN_POD_SANDBOX, pod("shop", "/run/netns/b")).await.unwrap();
        runtime.event(RUN_POD_SANDBOX, pod("shop", "")).await.unwrap();
        runtime.event(STOP_POD_SANDBOX, pod("shop", "")).await.unwrap();
        let rejected = runtime.event(RUN_POD_SANDBOX, pod("rejected", "/run/netns/c")).await.unwrap_err();
        assert!(rejected.message.starts_with("weir: pod rejected/web: xxx"), "{}", rejected.message);
        // Events that were not subscribed to.
        for event in [0, 3, 6, 99, -1] {
            runtime.event(event, pod("rejected", "")).await.unwrap();
        }
        for method in ["CreateContainer", "UpdateContainer", "StopContainer", "UpdatePodSandbox", "Shutdown"] {
            assert_eq!(runtime.call(method, Vec::new()).await, Ok(Bytes::new()), "{method}");
        }
    })
    .await;
    assert!(matches!(ended, SessionError::Closed), "{ended}");
    assert_eq!(
        recorder.calls(),
        [
            "synchronize shop/web within 750ms",
            "synchronize shop/web within 750ms",
            "synchronized containerd 2.1.9",
            "run shop/web Some(\"/run/netns/b\")",
            "run shop/web Some(\"/proc/0/ns/net\")",
            "stop shop/web",
            "run rejected/web Some(\"/run/netns/c\")",
        ]
    );
}

#[tokio::test]
async fn requests_that_make_no_sense_are_errors_of_their_own() {
    let recorder = Recorder::default();
    play(&recorder, |stream| async {
        let mut runtime = Runtime::accept(stream).await;
        let other = Request { service: "io.other".to_owned(), method: "Configure".to_owned(), ..Request::default() };
        for (answer, code) in [
            (runtime.call_raw(&[0xff; 100]).await, INVALID_ARGUMENT),
            (runtime.call_raw(&other.encode_to_vec()).await, UNIMPLEMENTED),
            (runtime.call("Frobnicate", Vec::new()).await, UNIMPLEMENTED),
            (runtime.call("StateChange", vec![0xff; 10]).await, INVALID_ARGUMENT),
            (runtime.call("Synchronize", vec![0x0a, 0x7f]).await, INVALID_ARGUMENT),
        ] {
            assert_eq!(answer.unwrap_err().code, code);
        }
        // Not a response to anything, and a message of an unknown type: neither ends the session.
        runtime.connection.send(Channel::Runtime, 77, MessageType::Response, &[1]).await.unwrap();
        runtime.event(RUN_POD_SANDBOX, pod("shop", "/run/netns/b")).await.unwrap();
    })
    .await;
    assert_eq!(recorder.calls(), ["run shop/web Some(\"/run/netns/b\")"]);
}

#[tokio::test]
async fn a_rejected_registration_ends_the_session_with_the_reason() {
    let recorder = Recorder::default();
    let ended = play(&recorder, |stream| async {
        let mut connection = Connection::new(stream);
        let stream = connection.receive().await.unwrap().unwrap().stream;
        let response = Response { status: Some(failure(2, "plugins are disabled")), payload: Bytes::new() };
        connection.send(Channel::Runtime, stream, MessageType::Response, &response.encode_to_vec()).await.unwrap();
        assert_eq!(connection.receive().await.unwrap(), None);
    })
    .await;
    assert_eq!(ended.to_string(), "the runtime rejected the plugin: plugins are disabled");
}

#[tokio::test]
async fn a_runtime_that_does_not_register_is_left() {
    let (ours, _silent) = UnixStream::pair().unwrap();
    let limit = Duration::from_millis(20);
    let ended = serve_within(limit, ours, &Recorder::default()).await;
    assert!(matches!(ended, SessionError::RegistrationTimeout(_)), "{ended}");
}

#[tokio::test]
async fn a_peer_that_is_no_runtime_is_left() {
    use tokio::io::AsyncWriteExt as _;
    for noise in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]] {
        let recorder = Recorder::default();
        let ended = play(&recorder, |mut stream| async move {
            stream.write_all(noise).await.unwrap();
        })
        .await;
        assert!(matches!(ended, SessionError::Connection(_)), "{ended}");
        assert!(recorder.calls().is_empty());
    }
}
