use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(50);

fn query() -> PodQuery {
    PodQuery { v: 1, uid: "u".to_owned(), namespace: "shop".to_owned(), name: "web".to_owned() }
}

/// Queries an agent that handles the connection with `serve` on a thread of its own.
fn query_served(timeout: Duration, serve: impl FnOnce(UnixStream) + Send) -> Result<PodAnswer, AgentError> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || serve(listener.accept().unwrap().0));
        Exchange { deadline: Instant::now() + timeout, timeout }.attempt(&socket, &query())
    })
}

/// Queries an agent that has sent `answer` and closed the connection before the query is written.
fn query_after_close(answer: &[u8]) -> Result<PodAnswer, AgentError> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let exchange = Exchange { deadline: Instant::now() + LONG, timeout: LONG };
    let stream = exchange.connect(&socket).unwrap();
    listener.accept().unwrap().0.write_all(answer).unwrap();
    exchange.run(&stream, &query())
}

#[test]
fn reads_an_answer_that_comes_in_pieces() {
    let answer = query_served(LONG, |mut stream| {
        let mut query = [0; 100];
        let count = stream.read(&mut query).unwrap();
        assert_eq!(&query[..count], b"{\"v\":1,\"uid\":\"u\",\"namespace\":\"shop\",\"name\":\"web\"}\n");
        for piece in [&b"{\"decision\":\"skip\","[..], b"\"reason\":\"no\"}", b"\nrest"] {
            stream.write_all(piece).unwrap();
            thread::yield_now();
        }
    });
    assert_eq!(answer.unwrap(), PodAnswer::Skip { reason: "no".to_owned() });
}

#[test]
fn silent_and_slow_agents_time_out() {
    let silent = query_served(SHORT, |mut stream| drop(stream.read_to_end(&mut Vec::new())));
    assert!(matches!(silent, Err(AgentError::TimedOut(_))), "{silent:?}");
    let trickle = query_served(SHORT, |mut stream| while stream.write_all(b" ").is_ok() {});
    assert!(matches!(trickle, Err(AgentError::TimedOut(_) | AgentError::InvalidAnswer(_))), "{trickle:?}");
}

#[test]
fn an_answer_counts_although_the_query_was_not_read() {
    let answer = query_after_close(b"{\"decision\":\"unknown\",\"reason\":\"busy\"}\n");
    assert_eq!(answer.unwrap(), PodAnswer::Unknown { reason: "busy".to_owned() });
    for malformed in ["\n", "[]\n", "{\"decision\":\"perhaps\"}\n"] {
        let answer = query_after_close(malformed.as_bytes());
        assert!(matches!(answer, Err(AgentError::InvalidAnswer(_))), "{answer:?}");
    }
}

#[test]
fn a_closed_connection_is_reported_with_its_cause() {
    for partial in ["", "{\"decision\":"] {
        match query_after_close(partial.as_bytes()) {
            Err(AgentError::Disconnected(error)) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{partial:?}"),
            other => panic!("not disconnected: {other:?}"),
        }
    }
    // Closed with the query unread in its queue, and after reading it.
    let unread = query_served(LONG, |stream| {
        let mut byte = [0];
        nix::sys::socket::recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK).unwrap();
    });
    assert!(matches!(unread, Err(AgentError::Disconnected(_))), "{unread:?}");
    let read = query_served(LONG, |mut stream| drop(stream.read(&mut [0; 100])));
    assert!(matches!(read, Err(AgentError::Disconnected(_))), "{read:?}");
}

#[test]
fn an_answer_without_end_is_invalid() {
    let endless = query_served(LONG, |mut stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
    assert!(matches!(endless, Err(AgentError::InvalidAnswer(_))), "{endless:?}");
}

#[test]
fn a_missing_or_dead_socket_means_not_running() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let agent = AgentEndpoint { socket: socket.clone(), timeout: SHORT };
    let absent = query_agent(&agent, &query()).unwrap_err();
    assert!(matches!(absent, AgentError::NotRunning { .. }), "{absent}");
    drop(UnixListener::bind(&socket).unwrap());
    let dead = query_agent(&agent, &query()).unwrap_err();
    assert!(dead.to_string().contains("is not running") && dead.to_string().contains("agent.sock"), "{dead}");
    let too_long = AgentEndpoint { socket: dir.path().join("x".repeat(200)), timeout: LONG };
    assert!(matches!(query_agent(&too_long, &query()), Err(AgentError::NotRunning { .. })), "not waited for");
}

#[test]
fn an_agent_that_is_being_replaced_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let agent = AgentEndpoint { socket: socket.clone(), timeout: LONG };
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            // The first one is killed with the query in its queue, and leaves its socket; the next one removes it.
            let first = UnixListener::bind(&socket).unwrap();
            drop(first.accept().unwrap());
            drop(first);
            std::fs::remove_file(&socket).unwrap();
            let mut stream = UnixListener::bind(&socket).unwrap().accept().unwrap().0;
            stream.write_all(b"{\"decision\":\"skip\",\"reason\":\"no\"}\n").unwrap();
            // Closed when the plugin has read the answer.
            drop(stream.read_to_end(&mut Vec::new()));
        });
        query_agent(&agent, &query())
    });
    assert_eq!(answer.unwrap(), PodAnswer::Skip { reason: "no".to_owned() });
}

#[test]
fn a_full_backlog_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    // Without an `accept` they stay in the backlog until it is full.
    let mut waiting = Vec::new();
    let full = (0..10_000).find_map(|_| match try_connect(&socket) {
        Ok(stream) => {
            waiting.push(stream);
            None
        }
        Err(errno) => Some(errno),
    });
    assert_eq!(full, Some(Errno::EAGAIN));
    let agent = AgentEndpoint { socket, timeout: SHORT };
    assert!(matches!(query_agent(&agent, &query()), Err(AgentError::TimedOut(_))));
}

fn try_connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?).map(|()| stream)
}
