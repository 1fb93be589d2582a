//! Client of `agent.sock`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};

use weir_protocol::agent::{ANSWER_MAX_BYTES, AgentEndpoint, PodAnswer, PodQuery};

/// Pause between two attempts to connect while the listener's backlog is full: `poll` cannot wait for that.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Pause between two attempts while no agent is there.
const RESTART_INTERVAL: Duration = Duration::from_millis(50);

/// Error returned when the agent gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nothing listens on the socket.
    #[error("the node agent is not running ({path}: {source})")]
    NotRunning {
        /// Path of the socket.
        path: String,
        /// Error of `connect`.
        source: io::Error,
    },
    /// The agent's time is up.
    #[error("the node agent did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The connection ended before the answer was complete.
    #[error("the node agent closed the connection: {0}")]
    Disconnected(io::Error),
    /// The answer is malformed or too long.
    #[error("cannot parse the node agent's answer: {0}")]
    InvalidAnswer(String),
}

impl AgentError {
    /// Returns whether an agent that is being replaced looks like this: its successor may answer.
    fn is_of_a_restart(&self) -> bool {
        match self {
            Self::NotRunning { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Disconnected(_) => true,
            Self::TimedOut(_) | Self::InvalidAnswer(_) => false,
        }
    }
}

/// Sends a query to the agent and waits for the answer, at most for the agent's timeout. Within it, an agent that is absent, or that goes
/// away, is waited for: it may be being upgraded.
///
/// # Errors
/// See [`AgentError`]; that of the last attempt.
pub fn query_agent(agent: &AgentEndpoint, query: &PodQuery) -> Result<PodAnswer, AgentError> {
    let exchange = Exchange { deadline: Instant::now() + agent.timeout, timeout: agent.timeout };
    loop {
        match exchange.attempt(&agent.socket, query) {
            Err(error) if error.is_of_a_restart() && Instant::now() + RESTART_INTERVAL < exchange.deadline => {
                thread::sleep(RESTART_INTERVAL);
            }
            result => return result,
        }
    }
}

struct Exchange {
    deadline: Instant,
    timeout: Duration,
}

impl Exchange {
    fn attempt(&self, path: &Path, query: &PodQuery) -> Result<PodAnswer, AgentError> {
        self.run(&self.connect(path)?, query)
    }

    fn connect(&self, path: &Path) -> Result<OwnedFd, AgentError> {
        let not_running =
            |errno: Errno| AgentError::NotRunning { path: path.display().to_string(), source: errno.into() };
        let address = UnixAddr::new(path).map_err(not_running)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(not_running)?;
        loop {
            match connect(stream.as_raw_fd(), &address) {
                Ok(()) => return Ok(stream),
                // The backlog is full (`unix(7)`): the agent runs, but is slow to accept.
                Err(Errno::EAGAIN) if Instant::now() + RETRY_INTERVAL < self.deadline => thread::sleep(RETRY_INTERVAL),
                Err(Errno::EAGAIN) => return Err(AgentError::TimedOut(self.timeout)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(not_running(errno)),
            }
        }
    }

    fn run(&self, stream: &OwnedFd, query: &PodQuery) -> Result<PodAnswer, AgentError> {
        let mut line = serde_json::to_vec(query).map_err(|error| AgentError::InvalidAnswer(error.to_string()))?;
        line.push(b'\n');
        let written = self.write(stream, &line);
        let answer = match written {
            // An agent that is too busy answers and closes without reading the query: the answer is there all the same.
            Err(AgentError::Disconnected(error)) => match self.read_line(stream) {
                Err(AgentError::Disconnected(_)) => return Err(AgentError::Disconnected(error)),
                answer => answer?,
            },
            written => written.and_then(|()| self.read_line(stream))?,
        };
        serde_json::from_slice(&answer).map_err(|error| AgentError::InvalidAnswer(error.to_string()))
    }

    fn write(&self, stream: &OwnedFd, mut bytes: &[u8]) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            match send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => self.wait(stream, PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(AgentError::Disconnected(errno.into())),
            }
        }
        Ok(())
    }

    fn read_line(&self, stream: &OwnedFd) -> Result<Vec<u8>, AgentError> {
        let mut line = Vec::new();
        let mut chunk = [0; 4 << 10];
        loop {
            match nix::unistd::read(stream, &mut chunk) {
                Ok(0) => return Err(AgentError::Disconnected(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => match chunk[..count].iter().position(|&byte| byte == b'\n') {
                    Some(end) => {
                        line.extend_from_slice(&chunk[..end]);
                        return Ok(line);
                    }
                    None if line.len() + count > ANSWER_MAX_BYTES => {
                        return Err(AgentError::InvalidAnswer(format!("it exceeds {ANSWER_MAX_BYTES} bytes")));
                    }
                    None => line.extend_from_slice(&chunk[..count]),
                },
                Err(Errno::EAGAIN) => self.wait(stream, PollFlags::POLLIN)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(AgentError::Disconnected(errno.into())),
            }
            // Also for an agent that keeps sending, byte by byte.
            if Instant::now() >= self.deadline {
                return Err(AgentError::TimedOut(self.timeout));
            }
        }
    }

    fn wait(&self, stream: &OwnedFd, events: PollFlags) -> Result<(), AgentError> {
        // Rounded up: a timeout of 0 would spin through the last millisecond.
        let left = self.deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), events)], timeout) {
            Ok(0) => Err(AgentError::TimedOut(self.timeout)),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(AgentError::Disconnected(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests;
