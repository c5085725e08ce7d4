//! One running service.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::{Child, Command};
use tokio::time::{self, Instant};

use crate::PAUSE;
use crate::http::{self, Request, Response};
use crate::launch::Launch;

/// The time from the start to the start-up line, and from there until it is ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A process of one of the three services. It never outlives this value, nor this process, however that ends.
pub struct Service {
    launch: Launch,
    start_up_line: String,
    address: SocketAddr,
    child: Child,
    _lifeline: Child,
    http: reqwest::Client,
}

/// A signal that a process can receive.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// SIGTERM, from a supervisor.
    Terminate,
    /// SIGINT, from Ctrl-C.
    Interrupt,
    /// SIGSTOP: the process stands still with its connections open, as on a machine that swaps.
    Freeze,
    /// SIGCONT: the process continues.
    Thaw,
}

impl Service {
    /// Starts the service and waits until it is ready, or until it has ended again.
    ///
    /// # Errors
    /// If it does not become ready; the text has the output so far.
    pub async fn start(launch: Launch) -> Result<Self, String> {
        let mut service = Self::listen(launch).await?;
        let deadline = Instant::now() + START_LIMIT;
        while service.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if service.request("GET", "/readyz").try_send().await.is_ok_and(|answer| answer.status == 200) {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("{} is not ready{}", service.launch.service, service.launch.log));
            }
            time::sleep(PAUSE).await;
        }
        Ok(service)
    }

    /// Starts the service and waits for its start-up line. It may not be ready, because its database is away.
    ///
    /// # Errors
    /// If the line does not come; the text has the output so far.
    pub async fn listen(launch: Launch) -> Result<Self, String> {
        let service = launch.service;
        let spawned = launch.command()?.spawn();
        let mut child = spawned.map_err(|error| format!("cannot start {service}: {error}"))?;
        let lifeline = lifeline(&child).map_err(|error| format!("cannot start sh: {error}"))?;

        let (mut stdout, stderr) = (lines(child.stdout.take())?, lines(child.stderr.take())?);
        let stderr = tokio::spawn(launch.log.clone().follow(stderr));
        let started = time::timeout(START_LIMIT, start_up_line(&launch, &mut stdout)).await;
        let started = started.map_err(|_| format!("{service} does not start{}", launch.log))?;
        let Some((start_up_line, address)) = started else {
            let status = child.wait().await.map_err(|error| error.to_string())?;
            let _ = stderr.await;
            return Err(format!("{service} ended at its start, {status}{}", launch.log));
        };
        tokio::spawn(launch.log.clone().follow(stdout));
        Ok(Self { launch, start_up_line, address, child, _lifeline: lifeline, http: http::client()? })
    }

    /// Returns the name of the service.
    pub fn name(&self) -> &'static str {
        self.launch.service
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns its process id.
    ///
    /// # Panics
    /// If the process has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a process that runs has an id")
    }

    /// Returns the line that it printed when it listened.
    pub fn start_up_line(&self) -> &str {
        &self.start_up_line
    }

    /// Returns its output so far, restarts included.
    pub fn log(&self) -> Vec<String> {
        self.launch.log.lines()
    }

    /// Returns a request to it.
    pub fn request(&self, method: &str, path: &str) -> Request {
        Request::new(&self.http, method, format!("{}{path}", self.url()))
    }

    /// Returns a function from method and path to a request. It stays valid after a restart, and borrows nothing.
    pub fn requests(&self) -> impl Fn(&str, &str) -> Request + Clone + Send + Sync + use<> {
        let (http, url) = (self.http.clone(), self.url());
        move |method, path| Request::new(&http, method, format!("{url}{path}"))
    }

    /// Sends `GET path`.
    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await
    }

    /// Sends `POST path` with a JSON body.
    pub async fn post(&self, path: &str, json: serde_json::Value) -> Response {
        self.request("POST", path).json(&json).send().await
    }

    /// Sends `PATCH path` with a JSON body.
    pub async fn patch(&self, path: &str, json: serde_json::Value) -> Response {
        self.request("PATCH", path).json(&json).send().await
    }

    /// Returns the value of a metric, by its name with its labels as in `/metrics`. `None` if it has no such metric yet.
    ///
    /// # Panics
    /// If it does not answer, or the value is not a number.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.get("/metrics").await.expect(200).text;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(|value| value.parse().expect("a number"))
    }

    /// Returns how many requests it has answered so far, from its metrics: those with this method, a route that begins with
    /// `route`, and a status from `statuses`.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn answered(&self, method: &str, route: &str, statuses: RangeInclusive<u16>) -> u64 {
        let metrics = self.get("/metrics").await.expect(200).text;
        let beginning = format!(r#"http_requests_total{{method="{method}",route="{route}"#);
        let count = |line: &str| {
            let (_, rest) = line.strip_prefix(&beginning)?.split_once(r#"status=""#)?;
            let (status, count) = rest.split_once(r#""} "#)?;
            statuses.contains(&status.parse().ok()?).then(|| count.parse::<u64>().ok())?
        };
        metrics.lines().filter_map(count).sum()
    }

    /// Kills it with SIGKILL, as a power failure would, and waits until the process is gone.
    ///
    /// # Panics
    /// If the process has ended already.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("a process that runs can be killed");
    }

    /// Starts it again on the same port, so that its callers find it.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self) {
        let again = Self::start(self.launch.clone().port(self.address.port())).await;
        *self = again.unwrap_or_else(|reason| panic!("{reason}"));
    }

    /// Starts it again on the same port, with more environment variables. The next restart is without them.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart_with(&mut self, variables: &[(&str, &str)]) {
        let launch = self.launch.clone();
        for (variable, value) in variables {
            self.launch = self.launch.clone().env(variable, value);
        }
        self.restart().await;
        self.launch = launch;
    }

    /// Starts it again on the same port, from the binaries in this folder.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart_from(&mut self, binaries: &Path) {
        self.launch = self.launch.clone().binaries(binaries);
        self.restart().await;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If the process has ended.
    pub async fn signal(&self, signal: Signal) {
        let pid = self.pid().to_string();
        let name = match signal {
            Signal::Terminate => "TERM",
            Signal::Interrupt => "INT",
            Signal::Freeze => "STOP",
            Signal::Thaw => "CONT",
        };
        // In its own process group: a second Ctrl-C in the terminal must not end this shell.
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"kill -s "$0" "$1""#, name, &pid]).process_group(0);
        let sent = shell.status().await;
        assert!(sent.is_ok_and(|status| status.success()), "cannot signal {pid}");
    }

    /// Returns whether its end has not been observed yet.
    pub(crate) fn is_running(&self) -> bool {
        self.child.id().is_some()
    }

    /// Waits for its end, without a limit.
    ///
    /// # Panics
    /// If the operating system reports an error.
    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.expect("the parent can wait for a child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within the limit.
    pub async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let ended = time::timeout(limit, self.ended()).await;
        ended.unwrap_or_else(|_| panic!("{} runs after {limit:?}{}", self.launch.service, self.launch.log))
    }
}

/// Returns the start-up line, as text, and the address in it. Returns `None` if the output ends before.
async fn start_up_line(
    launch: &Launch,
    lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>,
) -> Option<(String, SocketAddr)> {
    let beginning = format!("{} listens on http://", launch.service);
    while let Ok(Some(line)) = lines.next_line().await {
        launch.log.add(line.clone());
        let json = serde_json::from_str::<serde_json::Value>(&line).ok();
        let line = json.and_then(|json| Some(json["message"].as_str()?.to_owned())).unwrap_or(line);
        let address = line.strip_prefix(&beginning).and_then(|rest| rest.split(',').next()?.parse().ok());
        if let Some(address) = address {
            return Some((line, address));
        }
    }
    None
}

fn lines<R: AsyncRead>(pipe: Option<R>) -> Result<Lines<BufReader<R>>, String> {
    pipe.map(|pipe| BufReader::new(pipe).lines()).ok_or_else(|| "a child without a pipe".to_owned())
}

/// Starts a shell that kills the service when this process ends. Even after a SIGKILL, the shell reads the end of its pipe.
/// Dropping the service ends the shell.
fn lifeline(child: &Child) -> std::io::Result<Child> {
    let pid = child.id().unwrap_or_default().to_string();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"read -r line; kill -s KILL "$0""#, &pid]).stdin(Stdio::piped());
    shell.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).kill_on_drop(true).spawn()
}
