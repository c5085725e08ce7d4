//! A headless Chromium and the one page in it, driven by the DevTools protocol over a pipe: JSON messages that end with
//! a zero byte. (<https://chromedevtools.github.io/devtools-protocol/>)

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

/// How long one call may take. The first one waits for the browser to start, which on a cold disk is not done in a blink.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// A browser with one page. It ends, and its files go, with this value and with this process, for then its pipe closes.
pub(crate) struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    page: Option<String>,
    calls: u64,
    /// What went wrong in the page: exceptions, and what was written to its console as an error.
    errors: Vec<Value>,
}

impl Browser {
    /// Opens this page, 1280 pixels wide. `None` where no Chromium is installed, which is said on stderr; with
    /// `REQUIRE_CHROMIUM=1` in the environment that is a failure, not a skip.
    pub(crate) async fn open(url: &str) -> Option<Self> {
        let mut folders = env::split_paths(&env::var_os("PATH")?).collect::<Vec<_>>().into_iter();
        let Some(program) = folders.find_map(|folder| Some(folder.join("chromium")).filter(|program| program.exists()))
        else {
            assert!(env::var_os("REQUIRE_CHROMIUM").is_none_or(|value| value != "1"), "there is no Chromium here");
            // Not by a macro, whose words are kept from whoever runs the tests.
            let _ = writeln!(io::stderr(), "SKIPPED: the tests of the page, for there is no chromium here");
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
        // A shell in between makes of our pipe the descriptors that Chromium listens at, and cleans up behind it.
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"folder=$0; mkdir -p "$folder"; "$@" 3<&0 4>&1 </dev/null >/dev/null; rm -rf "$folder""#]);
        command.arg(&profile).arg(program);
        command.args(["--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"]);
        // Its sandbox is not to be had by root nor in most containers; it opens no page but ours.
        command.args(["--no-sandbox", "--disable-dev-shm-usage"]);
        // It talks to nobody but the services.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--no-proxy-server", "--disable-breakpad", "--disable-lcd-text", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", profile.display())).env("HOME", &profile).env("TMPDIR", &profile);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut process = command.spawn().expect("there is a shell");
        let (to, from) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        Self { process, to, from: BufReader::new(from), page: None, calls: 0, errors: Vec::new() }
    }

    /// One call of the protocol; what it answers.
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
                let message: Value = serde_json::from_slice(&message).expect("Chromium runs, and speaks JSON");
                if message["id"] == self.calls {
                    return message;
                }
                let (event, what) = (message["method"].as_str().unwrap_or_default(), &message["params"]);
                let console = event == "Runtime.consoleAPICalled" && what["type"] == "error";
                let log = event == "Log.entryAdded" && what["entry"]["level"] == "error";
                if console || log || event == "Runtime.exceptionThrown" {
                    self.errors.push(what.clone());
                }
            }
        };
        let answer = time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("no answer to {method}"));
        assert!(answer["error"].is_null(), "{method} {params}: {answer}");
        answer["result"].clone()
    }

    /// What this JavaScript is in the page.
    pub(crate) async fn evaluate(&mut self, script: &str) -> Value {
        let call = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", call).await;
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until this JavaScript is true in the page.
    ///
    /// # Panics
    /// If it does not become true; the message shows what the page reads.
    pub(crate) async fn until(&mut self, condition: &str) {
        let deadline = Instant::now() + DEADLINE;
        while self.evaluate(condition).await != true {
            if Instant::now() > deadline {
                panic!("never {condition}: {}", self.evaluate("document.body.innerText").await);
            }
            time::sleep(PAUSE).await;
        }
    }

    /// Clicks with the mouse in the middle of the element of this selector.
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

    /// Has the page believe that its reader prefers `light` or `dark`, and no motion.
    pub(crate) async fn prefers(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// Writes a picture of what is seen.
    pub(crate) async fn screenshot(&mut self, file: &Path) {
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        fs::write(file, picture).expect("a folder to write to");
    }

    /// What went wrong in the page since the last time this was asked.
    pub(crate) async fn errors(&mut self) -> Vec<Value> {
        self.evaluate("1").await; // what came before its answer has been read
        std::mem::take(&mut self.errors)
    }

    /// Ends it, and leaves nothing behind.
    pub(crate) async fn close(mut self) {
        self.page = None;
        self.call("Browser.close", json!({})).await;
        time::timeout(PATIENCE, self.process.wait()).await.expect("it closes").expect("it was started");
    }
}
