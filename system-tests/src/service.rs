//! One service that runs.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::{Child, Command};
use tokio::time;

use crate::http::{self, Received, Sending};
use crate::launch::Launch;

/// How long a service may take from its start to its start-up line.
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

/// What a process can be told from outside.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// To end, as a supervisor says it: SIGTERM.
    Terminate,
    /// To end, as Ctrl-C says it: SIGINT.
    Interrupt,
    /// To stand still, with its connections open: SIGSTOP. So a machine that swaps looks to its callers.
    Freeze,
    /// To go on where it stood still: SIGCONT.
    Thaw,
}

impl Service {
    /// Starts it and waits for its start-up line.
    ///
    /// # Errors
    /// If it does not come that far; the text has what it wrote.
    pub async fn start(launch: Launch) -> Result<Self, String> {
        let service = launch.service;
        let spawned = launch.command()?.spawn();
        let mut child = spawned.map_err(|error| format!("cannot start {service}: {error}"))?;
        let lifeline = lifeline(&child).map_err(|error| format!("cannot start sh: {error}"))?;

        let (mut stdout, stderr) = (lines(child.stdout.take())?, lines(child.stderr.take())?);
        let stderr = tokio::spawn(launch.log.clone().follow(stderr));
        let said = time::timeout(START_LIMIT, start_up_line(&launch, &mut stdout)).await;
        let said = said.map_err(|_| format!("{service} does not start{}", launch.log))?;
        let Some((start_up_line, address)) = said else {
            let status = child.wait().await.map_err(|error| error.to_string())?;
            let _ = stderr.await;
            return Err(format!("{service} ended at its start, {status}{}", launch.log));
        };
        tokio::spawn(launch.log.clone().follow(stdout));
        Ok(Self { launch, start_up_line, address, child, _lifeline: lifeline, http: http::client()? })
    }

    /// Which of the three it is.
    pub fn name(&self) -> &'static str {
        self.launch.service
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it is gone.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a process that runs has an id")
    }

    /// What it said when it was ready.
    pub fn start_up_line(&self) -> &str {
        &self.start_up_line
    }

    /// All that it has written so far, in all its lives.
    pub fn log(&self) -> Vec<String> {
        self.launch.log.lines()
    }

    /// A request to it.
    pub fn request(&self, method: &str, path: &str) -> Sending {
        Sending::new(&self.http, method, format!("{}{path}", self.url()))
    }

    /// Makes requests to it (method, path), in whichever of its lives, and whoever holds it meanwhile.
    pub fn caller(&self) -> impl Fn(&str, &str) -> Sending + Clone + Send + Sync + use<> {
        let (http, url) = (self.http.clone(), self.url());
        move |method, path| Sending::new(&http, method, format!("{url}{path}"))
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Received {
        self.request("GET", path).send().await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, json: serde_json::Value) -> Received {
        self.request("POST", path).json(&json).send().await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch(&self, path: &str, json: serde_json::Value) -> Received {
        self.request("PATCH", path).json(&json).send().await
    }

    /// How many requests it has answered so far, by its own count: of this method, with a route that begins so, and with a
    /// status from `statuses`.
    ///
    /// # Panics
    /// If it does not tell.
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

    /// The power fails: SIGKILL, after which it is gone.
    ///
    /// # Panics
    /// If it is gone already.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("a process that runs can be killed");
    }

    /// Starts it once more, at the same port, so that those who call it find it again.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self) {
        let again = Self::start(self.launch.clone().port(self.address.port())).await;
        *self = again.unwrap_or_else(|reason| panic!("{reason}"));
    }

    /// Starts it once more, at the same port, with these variables in its environment, for this one life.
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

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone already.
    pub async fn signal(&self, signal: Signal) {
        let pid = self.pid().to_string();
        let name = match signal {
            Signal::Terminate => "TERM",
            Signal::Interrupt => "INT",
            Signal::Freeze => "STOP",
            Signal::Thaw => "CONT",
        };
        // In a group of its own: a second Ctrl-C in the terminal must not end the messenger.
        let mut messenger = Command::new("sh");
        messenger.args(["-c", r#"kill -s "$0" "$1""#, name, &pid]).process_group(0);
        let sent = messenger.status().await;
        assert!(sent.is_ok_and(|status| status.success()), "cannot signal {pid}");
    }

    /// Whether nobody has been told yet that it has ended.
    pub(crate) fn is_running(&self) -> bool {
        self.child.id().is_some()
    }

    /// Waits for its end, however long that takes.
    ///
    /// # Panics
    /// If the operating system does not tell.
    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.expect("a child can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it goes on running.
    pub async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let ended = time::timeout(limit, self.ended()).await;
        ended.unwrap_or_else(|_| panic!("{} runs on after {limit:?}{}", self.launch.service, self.launch.log))
    }
}

/// The first line that says where the service listens, without what JSON puts around it, and the address in it; none if its
/// output ends before.
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

/// A shell that reads from us. When this process ends, in whatever way, also by SIGKILL, its pipe closes, and the shell
/// kills the service. When the service is dropped before, so is the shell.
fn lifeline(child: &Child) -> std::io::Result<Child> {
    let pid = child.id().unwrap_or_default().to_string();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"read -r line; kill -s KILL "$0""#, &pid]).stdin(Stdio::piped());
    shell.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).kill_on_drop(true).spawn()
}
