//! stdout and stderr that are full, closed or not read: no log keeps a service from starting, serving or ending.

use std::io::{self, PipeReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use system_tests::{Launch, ORDERS, PRODUCTS, USERS, build, eventually};

/// The time in which a process must end: its flush takes two seconds at most.
const SOON: Duration = Duration::from_secs(10);

/// What is behind stdout and stderr.
#[derive(Clone, Copy, Debug)]
enum Output {
    /// A disk that is full.
    FullDisk,
    Closed,
    /// A pipe whose reader has ended.
    BrokenPipe,
    /// A pipe that is full, and whose reader does not read.
    Unread,
}

const OUTPUTS: [Output; 4] = [Output::FullDisk, Output::Closed, Output::BrokenPipe, Output::Unread];

/// A process, and the reader of its output, if it lives.
struct Started {
    child: Child,
    address: SocketAddr,
    _reader: Option<PipeReader>,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a service that inherits a listening socket, so that its address is known without its output.
fn start(service: &str, output: Output, variables: &[(&str, &str)]) -> Started {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let redirection = match output {
        Output::FullDisk => ">/dev/full 2>/dev/full",
        Output::Closed => ">&- 2>&-",
        Output::BrokenPipe | Output::Unread => "",
    };
    let (reader, writer) = io::pipe().expect("a pipe");
    let reader = match output {
        Output::Unread => {
            let mut filler = writer.try_clone().expect("a second writer");
            thread::spawn(move || filler.write_all(&[b'\n'; 1 << 20])); // blocks when the pipe is full, until the test ends
            Some(reader)
        }
        _ => None,
    };
    let mut command = Command::new("sh");
    let script = format!(r#"exec 3<&0 </dev/null; export LISTEN_FDS=1; exec "$0" {redirection}"#);
    command.args(["-c", &script]).arg(build().expect("the services compile").join(service));
    command.env_clear().env("DRAIN_SECONDS", "0").envs(variables.iter().copied());
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(writer.try_clone().expect("a second writer")).stderr(writer);
    Started { child: command.spawn().expect("there is a shell"), address, _reader: reader }
}

async fn status(address: SocketAddr, path: &str) -> u16 {
    let http = reqwest::Client::builder().no_proxy().timeout(SOON).build().expect("a client");
    http.get(format!("http://{address}{path}")).send().await.map_or(0, |answer| answer.status().as_u16())
}

async fn end(started: &mut Started) -> Option<ExitStatus> {
    let ended = tokio::time::timeout(SOON, async {
        loop {
            if let Some(status) = started.child.try_wait().expect("the parent can wait for a child") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ended.await.ok()
}

#[tokio::test]
async fn serves_and_exits_when_its_output_is_broken() {
    for service in [USERS, PRODUCTS, ORDERS] {
        for output in OUTPUTS {
            for format in ["text", "json"] {
                let mut started = start(service, output, &[("LOG_FORMAT", format)]);
                let address = started.address;
                assert_eq!(eventually(200, || status(address, "/livez")).await, 200, "{service} {output:?} {format}");
                for _ in 0..200 {
                    assert_eq!(status(address, "/none").await, 404, "{service} {output:?} {format}");
                }
                let pid = started.child.id().to_string();
                Command::new("kill").args(["-TERM", &pid]).status().expect("there is a kill");
                let ended = end(&mut started).await;
                assert!(ended.is_some_and(|status| status.success()), "{service} {output:?} {format}: {ended:?}");
            }
        }
    }
}

#[tokio::test]
async fn exits_with_1_when_its_output_is_broken() {
    for output in OUTPUTS {
        for format in ["text", "json"] {
            let mut started = start(USERS, output, &[("LOG_FORMAT", format), ("DATABASE_URL", "mysql://none")]);
            let ended = end(&mut started).await;
            assert_eq!(ended.and_then(|status| status.code()), Some(1), "{output:?} {format}: {ended:?}");
        }
    }
}

#[test]
fn prints_help_into_a_pipe_that_is_closed_early() {
    for service in [USERS, PRODUCTS, ORDERS] {
        for script in [r#""$0" --help | true"#, r#""$0" --help | head -1 >/dev/null"#, r#""$0" --help >/dev/full"#] {
            let program = build().expect("the services compile").join(service);
            let shown = Command::new("sh").args(["-c", script]).arg(program).output().expect("there is a shell");
            assert_eq!(String::from_utf8_lossy(&shown.stderr), "", "{script}");
        }
    }
}

#[tokio::test]
async fn writes_every_line_as_json_if_log_format_is_json() {
    let output = Launch::of(USERS).env("LOG_FORMAT", "json").env("DATABASE_URL", "mysql://none").output(&[]).await;
    let lines = [output.stdout, output.stderr].concat();
    let lines = String::from_utf8(lines).expect("text");
    assert!(lines.contains("DATABASE_URL"), "{lines}");
    for line in lines.lines() {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(json["level"] == "ERROR" && json["message"].is_string() && json["timestamp"].is_string(), "{line}");
    }
}
