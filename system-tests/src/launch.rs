//! How a service is started.

use std::fmt;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, BufReader, Lines};
use tokio::process::Command;
use tokio::time;

use crate::DEADLINE;
use crate::binaries;

/// A service to be started: its port, its environment, and what happens to its output.
///
/// By default it uses a free port, and its environment has only what [`Launch::env`] adds: a developer's shell changes no
/// test.
#[derive(Clone)]
pub struct Launch {
    pub(crate) service: &'static str,
    pub(crate) log: Log,
    port: Option<u16>,
    inherits_environment: bool,
    with_fault_injection: bool,
    binaries: Option<PathBuf>,
    env: Vec<(String, String)>,
    socket: Option<Arc<TcpListener>>,
    open_files: Option<u32>,
}

impl Launch {
    /// Returns the default launch of this service.
    pub fn of(service: &'static str) -> Self {
        Self {
            service,
            log: Log::Kept(Arc::default()),
            port: Some(0),
            inherits_environment: false,
            with_fault_injection: false,
            binaries: None,
            env: Vec::new(),
            socket: None,
            open_files: None,
        }
    }

    /// Adds an environment variable.
    pub fn env(mut self, variable: &str, value: impl ToString) -> Self {
        self.env.push((variable.to_owned(), value.to_string()));
        self
    }

    /// Sets the port.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Passes a listening socket, as systemd does. Several processes may have the same socket at the same time.
    pub fn socket(mut self, socket: TcpListener) -> Self {
        self.socket = Some(Arc::new(socket));
        self
    }

    /// Limits the number of open files.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Starts the service as a user would: with the environment of this process, and on the service's default port.
    pub fn inherit_environment(mut self) -> Self {
        (self.inherits_environment, self.port) = (true, None);
        self
    }

    /// Uses a build with the hooks of `chassis::fault_injection`.
    pub fn with_fault_injection(mut self) -> Self {
        self.with_fault_injection = true;
        self
    }

    /// Uses the binaries in this folder, and builds none.
    pub fn binaries(mut self, folder: impl Into<PathBuf>) -> Self {
        self.binaries = Some(folder.into());
        self
    }

    /// Prints each output line on stdout with this prefix, and keeps none.
    pub fn show_output(mut self, prefix: String) -> Self {
        self.log = Log::Shown(prefix.into());
        self
    }

    /// Discards the output: load tests would keep millions of lines.
    pub fn discard_output(mut self) -> Self {
        self.log = Log::Discarded;
        self
    }

    /// Returns the name of the service.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Runs the binary with these arguments to its end, for example for `--help` or for a start that fails.
    ///
    /// # Panics
    /// If the process does not end within the [`DEADLINE`].
    pub async fn output(&self, arguments: &[&str]) -> Output {
        let mut command = self.command().expect("the services compile");
        let output = time::timeout(DEADLINE, command.args(arguments).output()).await;
        output.unwrap_or_else(|_| panic!("{} {arguments:?} does not end", self.service)).expect("it was built")
    }

    pub(crate) fn command(&self) -> Result<Command, String> {
        // A shell sets up what Rust's `Command` cannot do to a child without `unsafe`.
        let mut before = String::new();
        if self.socket.is_some() {
            before += "exec 3<&0 </dev/null; export LISTEN_FDS=1; ";
        }
        if let Some(limit) = self.open_files {
            before += &format!("ulimit -n {limit}; ");
        }
        let mut command = Command::new("sh");
        let folder = match &self.binaries {
            Some(folder) => folder,
            None if self.with_fault_injection => binaries::build_with_fault_injection()?,
            None => binaries::build()?,
        };
        command.args(["-c", &format!(r#"{before}exec "$0" "$@""#)]).arg(folder.join(self.service));
        if !self.inherits_environment {
            command.env_clear();
        }
        match self.port {
            Some(port) => command.env("PORT", port.to_string()),
            None => command.env_remove("PORT"),
        };
        command.envs(self.env.iter().cloned());
        let socket = self.socket.as_ref().map(|socket| socket.try_clone()).transpose();
        let socket = socket.map_err(|error| format!("cannot pass the socket: {error}"))?;
        command.stdin(socket.map_or_else(Stdio::null, |socket| OwnedFd::from(socket).into()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.process_group(0); // Ctrl-C in a terminal reaches only this process, which stops the services in order
        Ok(command)
    }
}

/// What happens to the output of a process.
#[derive(Clone)]
pub(crate) enum Log {
    /// Lines are kept for the message of a failed test. The lock is held for one push or one copy.
    Kept(Arc<Mutex<Vec<String>>>),
    /// Lines are printed with this prefix.
    Shown(Arc<str>),
    /// Lines are discarded.
    Discarded,
}

impl Log {
    pub(crate) fn add(&self, line: String) {
        match self {
            Self::Kept(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).push(line),
            Self::Shown(prefix) => {
                let _ = writeln!(io::stdout(), "{prefix}{line}"); // fails if the reader of stdout is gone
            }
            Self::Discarded => {}
        }
    }

    pub(crate) async fn follow(self, mut lines: Lines<BufReader<impl AsyncRead + Unpin>>) {
        if matches!(self, Self::Discarded) {
            let _ = tokio::io::copy(&mut lines.into_inner(), &mut tokio::io::sink()).await; // ends with the process
            return;
        }
        while let Ok(Some(line)) = lines.next_line().await {
            self.add(line);
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Kept(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Self::Shown(_) | Self::Discarded => Vec::new(),
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}
