//! How a service is started.

use std::fmt;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, BufReader, Lines};
use tokio::process::Command;
use tokio::time;

use crate::DEADLINE;
use crate::binaries;

/// A service to be started: where it listens, what is in its environment, and what becomes of its lines.
///
/// As [`Launch::of`] makes it, it takes a free port and has an empty environment but for what [`Launch::env`] adds: what
/// a developer's shell has set changes no test.
#[derive(Clone)]
pub struct Launch {
    pub(crate) service: &'static str,
    pub(crate) log: Log,
    port: Option<u16>,
    inherits: bool,
    with_fault_injection: bool,
    env: Vec<(String, String)>,
    socket: Option<Arc<TcpListener>>,
    open_files: Option<u32>,
}

impl Launch {
    /// Of the service of this name.
    pub fn of(service: &'static str) -> Self {
        Self {
            service,
            log: Log::Kept(Arc::default()),
            port: Some(0),
            inherits: false,
            with_fault_injection: false,
            env: Vec::new(),
            socket: None,
            open_files: None,
        }
    }

    /// With one more environment variable.
    pub fn env(mut self, variable: &str, value: impl ToString) -> Self {
        self.env.push((variable.to_owned(), value.to_string()));
        self
    }

    /// At this port.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// On this socket, which it inherits as from systemd: several processes may have the same one at the same time.
    pub fn socket(mut self, socket: TcpListener) -> Self {
        self.socket = Some(Arc::new(socket));
        self
    }

    /// With no more than so many open files.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// As a user starts it: with the environment of this process, at the service's own port.
    pub fn inherits(mut self) -> Self {
        (self.inherits, self.port) = (true, None);
        self
    }

    /// Built with crash points and mistakes on demand: see `chassis::fault_injection`.
    pub fn with_fault_injection(mut self) -> Self {
        self.with_fault_injection = true;
        self
    }

    /// Its lines are not kept, but shown on stdout as they come, each behind this prefix.
    pub fn shown(mut self, prefix: String) -> Self {
        self.log = Log::Shown(prefix.into());
        self
    }

    /// Its lines are dropped, at next to no cost: for loads that would have millions of them kept.
    pub fn unheard(mut self) -> Self {
        self.log = Log::Dropped;
        self
    }

    /// The service's name.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Runs it with these arguments to its end: for what is no service, like `--help` or a start that fails.
    ///
    /// # Panics
    /// If it goes on running.
    pub async fn output(&self, arguments: &[&str]) -> Output {
        let mut command = self.command().expect("the services compile");
        let output = time::timeout(DEADLINE, command.args(arguments).output()).await;
        output.unwrap_or_else(|_| panic!("{} {arguments:?} goes on running", self.service)).expect("it was built")
    }

    pub(crate) fn command(&self) -> Result<Command, String> {
        // A shell in between can do what a process cannot have done to its child without `unsafe`.
        let mut before = String::new();
        if self.socket.is_some() {
            before += "exec 3<&0 </dev/null; export LISTEN_FDS=1; ";
        }
        if let Some(limit) = self.open_files {
            before += &format!("ulimit -n {limit}; ");
        }
        let mut command = Command::new("sh");
        let folder =
            if self.with_fault_injection { binaries::build_with_fault_injection()? } else { binaries::build()? };
        command.args(["-c", &format!(r#"{before}exec "$0" "$@""#)]).arg(folder.join(self.service));
        if !self.inherits {
            command.env_clear();
        }
        match self.port {
            Some(port) => command.env("PORT", port.to_string()),
            None => command.env_remove("PORT"),
        };
        command.envs(self.env.iter().cloned());
        let socket = self.socket.as_ref().map(|socket| socket.try_clone()).transpose();
        let socket = socket.map_err(|error| format!("cannot hand the socket over: {error}"))?;
        command.stdin(socket.map_or_else(Stdio::null, |socket| OwnedFd::from(socket).into()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.process_group(0); // Ctrl-C in a terminal is for us, who then stop the services in order
        Ok(command)
    }
}

/// What becomes of the lines that a process writes.
#[derive(Clone)]
pub(crate) enum Log {
    /// They are kept, for the message of a test that fails. The lock is held for one push or one copy.
    Kept(Arc<Mutex<Vec<String>>>),
    /// They are shown behind this prefix.
    Shown(Arc<str>),
    /// Nobody wants them.
    Dropped,
}

impl Log {
    pub(crate) fn add(&self, line: String) {
        match self {
            Self::Kept(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).push(line),
            Self::Shown(prefix) => {
                let _ = writeln!(io::stdout(), "{prefix}{line}"); // nobody may be reading any more
            }
            Self::Dropped => {}
        }
    }

    pub(crate) async fn follow(self, mut lines: Lines<BufReader<impl AsyncRead + Unpin>>) {
        if matches!(self, Self::Dropped) {
            let _ = tokio::io::copy(&mut lines.into_inner(), &mut tokio::io::sink()).await; // as if it were at an end
            return;
        }
        while let Ok(Some(line)) = lines.next_line().await {
            self.add(line);
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Kept(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Self::Shown(_) | Self::Dropped => Vec::new(),
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}
