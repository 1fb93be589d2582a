//! The plugin's side of a question.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};

use weir_protocol::agent::{ANSWER_MAX_BYTES, Agent, Answer, Question};

/// A full queue of connections cannot be waited for; it is tried again so often.
const RETRY: Duration = Duration::from_millis(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("the node agent is not running ({path}: {source})")]
    Down {
        /// The socket.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It took too long.
    #[error("the node agent did not answer within {} ms", .0.as_millis())]
    Slow(Duration),
    /// The connection broke.
    #[error("the node agent hung up: {0}")]
    Broken(io::Error),
    /// The answer is none.
    #[error("the node agent's answer cannot be read: {0}")]
    Protocol(String),
}

/// Asks, within the agent's time, whatever is at the other end.
///
/// # Errors
/// See [`AskError`].
pub fn ask(agent: &Agent, question: &Question) -> Result<Answer, AskError> {
    let call = Call { until: Instant::now() + agent.timeout, timeout: agent.timeout };
    let mut line = serde_json::to_vec(question).map_err(|error| AskError::Protocol(error.to_string()))?;
    line.push(b'\n');
    let stream = call.connect(&agent.socket)?;
    call.write(&stream, &line)?;
    let answer = call.read_line(&stream)?;
    serde_json::from_slice(&answer).map_err(|error| AskError::Protocol(error.to_string()))
}

struct Call {
    until: Instant,
    timeout: Duration,
}

impl Call {
    fn connect(&self, path: &Path) -> Result<OwnedFd, AskError> {
        let down = |errno: Errno| AskError::Down { path: path.display().to_string(), source: errno.into() };
        let address = UnixAddr::new(path).map_err(down)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(down)?;
        loop {
            match connect(stream.as_raw_fd(), &address) {
                Ok(()) => return Ok(stream),
                // The queue of connections is full (`unix(7)`): somebody listens, but does not get to it.
                Err(Errno::EAGAIN) if Instant::now() + RETRY < self.until => thread::sleep(RETRY),
                Err(Errno::EAGAIN) => return Err(AskError::Slow(self.timeout)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(down(errno)),
            }
        }
    }

    fn write(&self, stream: &OwnedFd, mut bytes: &[u8]) -> Result<(), AskError> {
        while !bytes.is_empty() {
            match send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => self.wait(stream, PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(AskError::Broken(errno.into())),
            }
        }
        Ok(())
    }

    fn read_line(&self, stream: &OwnedFd) -> Result<Vec<u8>, AskError> {
        let mut line = Vec::new();
        let mut chunk = [0; 4 << 10];
        loop {
            match nix::unistd::read(stream, &mut chunk) {
                Ok(0) => return Err(AskError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => match chunk[..count].iter().position(|&byte| byte == b'\n') {
                    Some(end) => {
                        line.extend_from_slice(&chunk[..end]);
                        return Ok(line);
                    }
                    None if line.len() + count > ANSWER_MAX_BYTES => {
                        return Err(AskError::Protocol(format!("it has more than {ANSWER_MAX_BYTES} bytes")));
                    }
                    None => line.extend_from_slice(&chunk[..count]),
                },
                Err(Errno::EAGAIN) => self.wait(stream, PollFlags::POLLIN)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(AskError::Broken(errno.into())),
            }
            // A trickle is no answer either.
            if Instant::now() >= self.until {
                return Err(AskError::Slow(self.timeout));
            }
        }
    }

    fn wait(&self, stream: &OwnedFd, what: PollFlags) -> Result<(), AskError> {
        // A moment longer rather than a moment shorter: a timeout of 0 would spin through the last millisecond.
        let left = self.until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), what)], timeout) {
            Ok(0) => Err(AskError::Slow(self.timeout)),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(AskError::Broken(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn question() -> Question {
        Question { v: 1, uid: "u".to_owned(), namespace: "shop".to_owned(), name: "web".to_owned() }
    }

    /// Asks an agent that does this with the connection.
    fn asked(timeout: Duration, serve: impl FnOnce(UnixStream) + Send) -> Result<Answer, AskError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || serve(listener.accept().unwrap().0));
            ask(&Agent { socket, timeout }, &question())
        })
    }

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn hears_an_answer_that_comes_in_pieces() {
        let answer = asked(LONG, |mut stream| {
            let mut question = [0; 100];
            let count = stream.read(&mut question).unwrap();
            assert_eq!(&question[..count], b"{\"v\":1,\"uid\":\"u\",\"namespace\":\"shop\",\"name\":\"web\"}\n");
            for piece in [&b"{\"decision\":\"skip\","[..], b"\"reason\":\"no\"}", b"\nrest"] {
                stream.write_all(piece).unwrap();
                thread::yield_now();
            }
        });
        assert_eq!(answer.unwrap(), Answer::Skip { reason: "no".to_owned() });
    }

    #[test]
    fn does_not_wait_for_the_silent_or_the_slow() {
        let silent = asked(SHORT, |mut stream| drop(stream.read_to_end(&mut Vec::new())));
        assert!(matches!(silent, Err(AskError::Slow(_))), "{silent:?}");
        let trickle = asked(SHORT, |mut stream| while stream.write_all(b" ").is_ok() {});
        assert!(matches!(trickle, Err(AskError::Slow(_) | AskError::Protocol(_))), "{trickle:?}");
    }

    #[test]
    fn tells_a_hang_up_and_nonsense_apart() {
        let hung_up = asked(LONG, drop);
        assert!(matches!(hung_up, Err(AskError::Broken(_))), "{hung_up:?}");
        for nonsense in ["\n", "[]\n", "{\"decision\":\"perhaps\"}\n"] {
            let answer = asked(LONG, |mut stream| stream.write_all(nonsense.as_bytes()).unwrap());
            assert!(matches!(answer, Err(AskError::Protocol(_))), "{answer:?}");
        }
        let endless = asked(LONG, |mut stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
        assert!(matches!(endless, Err(AskError::Protocol(_))), "{endless:?}");
    }

    #[test]
    fn says_that_nobody_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let agent = Agent { socket: socket.clone(), timeout: LONG };
        let absent = ask(&agent, &question()).unwrap_err();
        assert!(matches!(absent, AskError::Down { .. }), "{absent}");
        drop(UnixListener::bind(&socket).unwrap());
        let dead = ask(&agent, &question()).unwrap_err();
        assert!(dead.to_string().contains("is not running") && dead.to_string().contains("agent.sock"), "{dead}");
        let too_long = Agent { socket: dir.path().join("x".repeat(200)), timeout: LONG };
        assert!(matches!(ask(&too_long, &question()), Err(AskError::Down { .. })));
    }

    #[test]
    fn gives_up_on_a_queue_that_nobody_empties() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let mut waiting = Vec::new();
        let agent = Agent { socket, timeout: SHORT };
        // The connections of those who gave up are still in the queue, until it is full.
        let full = (0..10_000).find_map(|_| {
            let stream = try_connect(&agent.socket)?;
            match stream {
                Ok(stream) => {
                    waiting.push(stream);
                    None
                }
                Err(errno) => Some(errno),
            }
        });
        assert_eq!(full, Some(Errno::EAGAIN));
        assert!(matches!(ask(&agent, &question()), Err(AskError::Slow(_))));
    }

    /// A connection that does not wait for room in the queue.
    fn try_connect(path: &Path) -> Option<Result<OwnedFd, Errno>> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        Some(connect(stream.as_raw_fd(), &UnixAddr::new(path).ok()?).map(|()| stream))
    }
}
