//! A headless Chromium with one page, controlled by the DevTools protocol over a pipe: JSON messages that end with a zero
//! byte. (<https://chromedevtools.github.io/devtools-protocol/>)

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use system_tests::DEADLINE;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{self, Instant};

/// The time limit of a call. The first call waits for the browser to start, which takes long on a cold disk.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// A browser with one page. It ends with this value or this process, because its pipe then closes, and its files are removed.
pub(crate) struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    page: Option<String>,
    calls: u64,
    /// The exceptions of the page, and the errors on its console.
    errors: Vec<Value>,
}

impl Browser {
    /// Opens this page, 1280 pixels wide. Prints SKIPPED and returns `None` where Chromium is not installed, except with
    /// `REQUIRE_CHROMIUM=1` in the environment.
    pub(crate) async fn open(url: &str) -> Option<Self> {
        let mut folders = env::split_paths(&env::var_os("PATH")?).collect::<Vec<_>>().into_iter();
        let Some(program) = folders.find_map(|folder| Some(folder.join("chromium")).filter(|program| program.exists()))
        else {
            assert!(env::var_os("REQUIRE_CHROMIUM").is_none_or(|value| value != "1"), "chromium is not installed");
            // Not `eprintln!`: the test runner would hide it.
            let _ = writeln!(io::stderr(), "SKIPPED: the tests of the page: chromium is not installed");
            return None;
        };
        let mut browser = Self::start(&program);
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.page = browser.call("Target.attachToTarget", attach).await["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        let size = json!({"width": 1280, "height": 1020, "deviceScaleFactor": 1, "mobile": false});
        browser.call("Emulation.setDeviceMetricsOverride", size).await;
        browser.call("Page.navigate", json!({"url": url})).await;
        browser.until("document.readyState === 'complete' && location.href !== 'about:blank'").await;
        Some(browser)
    }

    fn start(program: &Path) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let folder = format!("chromium-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
        // A shell connects the pipe to the descriptors that Chromium uses, and removes its files afterwards.
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"folder=$0; mkdir -p "$folder"; "$@" 3<&0 4>&1 </dev/null >/dev/null; rm -rf "$folder""#]);
        command.arg(&profile).arg(program);
        command.args(["--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"]);
        // Its sandbox works neither for root nor in most containers. It opens only our page.
        command.args(["--no-sandbox", "--disable-dev-shm-usage"]);
        // It connects only to the services.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--no-proxy-server", "--disable-breakpad", "--disable-lcd-text", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", profile.display())).env("HOME", &profile).env("TMPDIR", &profile);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut process = command.spawn().expect("sh is installed");
        let (to, from) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        Self { process, to, from: BufReader::new(from), page: None, calls: 0, errors: Vec::new() }
    }

    /// Makes one call of the protocol and returns its result.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if let Some(page) = &self.page {
            message["sessionId"] = json!(page);
        }
        let answered = async {
            self.to.write_all(format!("{message}\0").as_bytes()).await.expect("Chromium runs");
            loop {
                let mut message = Vec::new();
                self.from.read_until(0, &mut message).await.expect("Chromium runs");
                message.pop();
                let message: Value = serde_json::from_slice(&message).expect("Chromium sends JSON");
                if message["id"] == self.calls {
                    return message;
                }
                let (event, params) = (message["method"].as_str().unwrap_or_default(), &message["params"]);
                let console = event == "Runtime.consoleAPICalled" && params["type"] == "error";
                let log = event == "Log.entryAdded" && params["entry"]["level"] == "error";
                if console || log || event == "Runtime.exceptionThrown" {
                    self.errors.push(params.clone());
                }
            }
        };
        let answer = time::timeout(CALL_TIMEOUT, answered).await.unwrap_or_else(|_| panic!("no response to {method}"));
        assert!(answer["error"].is_null(), "{method} {params}: {answer}");
        answer["result"].clone()
    }

    /// Evaluates JavaScript in the page.
    pub(crate) async fn evaluate(&mut self, script: &str) -> Value {
        let call = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", call).await;
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until this JavaScript is true in the page.
    ///
    /// # Panics
    /// If it does not become true. The message shows the text of the page.
    pub(crate) async fn until(&mut self, condition: &str) {
        let deadline = Instant::now() + DEADLINE;
        while self.evaluate(condition).await != true {
            if Instant::now() > deadline {
                panic!("never {condition}: {}", self.evaluate("document.body.innerText").await);
            }
            time::sleep(PAUSE).await;
        }
    }

    /// Clicks in the middle of the element with this selector.
    pub(crate) async fn click(&mut self, selector: &str) {
        let script = format!(
            "(() => {{ const element = document.querySelector({selector:?}); element.scrollIntoView({{block: 'nearest'}});
               const {{x, y, width, height}} = element.getBoundingClientRect();
               return {{x: x + width / 2, y: y + height / 2, button: 'left', clickCount: 1}} }})()"
        );
        let mut event = self.evaluate(&script).await;
        for kind in ["mousePressed", "mouseReleased"] {
            event["type"] = json!(kind);
            self.call("Input.dispatchMouseEvent", event.clone()).await;
        }
    }

    /// Presses a key, `Tab` or `Enter`.
    pub(crate) async fn press(&mut self, key: &str) {
        let code = if key == "Enter" { 13 } else { 9 };
        let text = if key == "Enter" { "\r" } else { "" };
        let mut event = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code, "text": text});
        self.call("Input.dispatchKeyEvent", event.clone()).await;
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", event).await;
    }

    /// Sets the preferred colour scheme, `light` or `dark`, and reduced motion.
    pub(crate) async fn prefers(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// Writes a screenshot.
    pub(crate) async fn screenshot(&mut self, file: &Path) {
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().expect("a screenshot")).expect("base64");
        fs::write(file, picture).expect("a folder to write to");
    }

    /// Returns the errors since the last call.
    pub(crate) async fn errors(&mut self) -> Vec<Value> {
        self.evaluate("1").await; // reads all messages before its response
        std::mem::take(&mut self.errors)
    }

    /// Ends the browser and removes its files.
    pub(crate) async fn close(mut self) {
        self.page = None;
        self.call("Browser.close", json!({})).await;
        time::timeout(CALL_TIMEOUT, self.process.wait()).await.expect("it closes").expect("it was started");
    }
}
