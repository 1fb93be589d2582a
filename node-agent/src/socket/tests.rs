use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::pods::facts;
use crate::stop;

/// Longer than anything here should take.
const BOUND: Duration = Duration::from_secs(30);

fn pod(name: &str, uid: &str, status: bool) -> PodFacts {
    let annotations = if status { json!({"sidecar.istio.io/status": "{}"}) } else { json!({}) };
    facts(json!({
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "annotations": annotations},
        "spec": {"containers": [{"name": "istio-proxy", "securityContext": {"runAsUser": 1500}}]},
    }))
}

fn answerer(fetch: Option<Fetch>) -> Answerer {
    Answerer { pods: Pods::default(), fetch, budget: Duration::from_millis(300), counts: Counts::default() }
}

fn question(uid: &str, name: &str) -> Question {
    Question { v: VERSION, uid: uid.to_owned(), namespace: "shop".to_owned(), name: name.to_owned() }
}

fn reason(answer: Answer) -> String {
    match answer {
        Answer::Unknown { reason } => reason,
        other => panic!("known: {other:?}"),
    }
}

#[tokio::test]
async fn answers_about_the_pods_it_knows() {
    let answerer = answerer(None);
    answerer.pods.replace(vec![pod("in", "u1", true), pod("out", "u2", false)]);
    let capture = answerer.answer(&question("u1", "in")).await;
    assert_eq!(capture, Answer::Capture { capture: r#"{"v":1,"proxyUids":[1500]}"#.to_owned() });
    let skip = answerer.answer(&question("", "out")).await;
    assert!(matches!(&skip, Answer::Skip { reason } if reason.contains("not in the mesh")), "{skip:?}");
    let other = answerer.answer(&Question { v: 2, ..question("u1", "in") }).await;
    assert!(reason(other).contains("version"));
}

#[tokio::test]
async fn waits_for_a_pod_that_is_about_to_come() {
    let answerer = Answerer { budget: BOUND, ..answerer(None) };
    answerer.pods.replace(vec![pod("web-0", "old", true)]);
    let pods = answerer.pods.clone();
    let asking = tokio::spawn(async move { answerer.answer(&question("new", "web-0")).await });
    tokio::task::yield_now().await;
    pods.put(pod("web-0", "new", true));
    assert!(matches!(asking.await.unwrap(), Answer::Capture { .. }));
}

#[tokio::test]
async fn turns_to_the_api_server_and_then_says_what_is_missing() {
    let fetch = |result: Result<Option<PodFacts>, String>| -> Option<Fetch> {
        Some(Arc::new(move |_, _| {
            let result = result.clone();
            Box::pin(async move { result })
        }))
    };
    let found = answerer(fetch(Ok(Some(pod("web", "u1", true))))).answer(&question("u1", "web")).await;
    assert!(matches!(found, Answer::Capture { .. }));
    for (result, part) in [
        (Ok(Some(pod("web", "u2", true))), "another pod of that name, u2"),
        (Ok(None), "no such pod"),
        (Err("401 Unauthorized".to_owned()), "401 Unauthorized"),
    ] {
        let reason = reason(answerer(fetch(result)).answer(&question("u1", "web")).await);
        assert!(reason.contains(part), "{reason}");
    }
    let hangs: Fetch = Arc::new(|_, _| Box::pin(std::future::pending()));
    assert!(reason(answerer(Some(hangs)).answer(&question("u1", "web")).await).contains("in time"));
    let alone = answerer(None);
    alone.pods.troubled("connection refused".to_owned());
    let reason = reason(alone.answer(&question("u1", "web")).await);
    assert!(reason.contains("not seen the pod yet; connection refused"), "{reason}");
}

struct Served {
    _dir: tempfile::TempDir,
    path: PathBuf,
    stopper: stop::Stopper,
    task: tokio::task::JoinHandle<()>,
    counts: Counts,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/agent.sock");
    let (stopper, stop) = stop::pair();
    let answerer = answerer(None);
    answerer.pods.replace(vec![pod("in", "u1", true)]);
    let counts = answerer.counts.clone();
    let task = tokio::spawn(answerer.serve(path.clone(), stop));
    until(|| path.exists()).await;
    Served { _dir: dir, path, stopper, task, counts }
}

async fn until(holds: impl Fn() -> bool) {
    timeout(BOUND, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

async fn say(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = String::new();
    let _ = timeout(BOUND, stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn lives_through_whatever_is_said_to_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let served = served().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&served.path), mode(served.path.parent().unwrap())), (0o600, 0o750));

    let good = serde_json::to_vec(&question("u1", "in")).unwrap();
    let mut line = good.clone();
    line.push(b'\n');
    for nonsense in [&b"\n"[..], b"{}\n", b"[1,2\n", b"\xff\xfe\n", br#"{"v":1,"namespace":7,"name":"x"}"#] {
        assert!(say(&served.path, nonsense).await.contains("cannot be read"), "{nonsense:?}");
    }
    // Too long, silent, and gone at once; more of the silent than there is room for.
    assert_eq!(say(&served.path, &[b'x'; 3 * QUESTION_MAX_BYTES]).await, "");
    drop(UnixStream::connect(&served.path).await.unwrap());
    let mut silent = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        silent.push(UnixStream::connect(&served.path).await.unwrap());
    }
    until(|| served.counts.questions.get_or_create(&Answered { outcome: "busy" }).get() > 0).await;
    // Their time is up after a while, without their doing anything.
    timeout(BOUND, async {
        while !say(&served.path, &line).await.contains("capture") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert!(say(&served.path, &line).await.ends_with("}\n"));

    served.stopper.stop();
    timeout(BOUND, served.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn takes_over_and_comes_back_when_the_socket_is_removed() {
    let first = served().await;
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&first.path);
    // Another agent takes the name over; the first leaves it that way.
    let second = Bound::stream(&first.path).unwrap();
    assert_ne!(inode(&first.path), before);
    assert!(second.is_reachable(&first.path));
    let old = Bound::stream(&first.path.with_file_name("old.sock")).unwrap();
    assert!(old.is_reachable(&first.path), "somebody else's that is served");
    drop(second);
    assert!(!old.is_reachable(&first.path), "somebody else's that is dead");
    std::fs::remove_file(&first.path).unwrap();
    until(|| first.path.exists()).await;
    let line = serde_json::to_string(&question("u1", "in")).unwrap() + "\n";
    assert!(say(&first.path, line.as_bytes()).await.contains("capture"));
    first.stopper.stop();
}
