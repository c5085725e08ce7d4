//! The log line of a panic. The hook belongs to the whole process, so a child process panics.

use std::env;
use std::process::Command;
use std::thread;

use chassis::config::{LogFormat, Settings, defaults};
use chassis::telemetry;
use serde_json::Value;

/// Tells this program to be the child.
const CHILD: &str = "PANIC_IN_THIS_PROCESS";

#[test]
fn logs_a_panic_as_one_line_of_json() {
    if env::var_os(CHILD).is_some() {
        let settings = Settings { log_format: LogFormat::Json, ..defaults() };
        let _telemetry = telemetry::start("test", &settings).expect("telemetry starts");
        let panicked = thread::spawn(|| panic!("on\npurpose")).join();
        assert!(panicked.is_err());
        return;
    }
    let mut child = Command::new(env::current_exe().expect("this program"));
    child.args(["panics::logs_a_panic_as_one_line_of_json", "--exact", "--nocapture"]).env(CHILD, "1");
    let output = child.env_remove("RUST_BACKTRACE").output().expect("it runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !stderr.contains("panicked"), "{stdout}{stderr}");
    let line = stdout.lines().find(|line| line.contains("panicked")).unwrap_or_else(|| panic!("no line: {stdout}"));
    // The test harness does not end its own line.
    let line = line.find('{').map(|start| &line[start..]).expect("JSON");
    let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!((&json["level"], &json["cause"]), (&"ERROR".into(), &"on\npurpose".into()), "{json}");
    assert!(json["location"].as_str().is_some_and(|location| location.contains("panics.rs")), "{json}");
}
