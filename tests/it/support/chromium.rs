//! Chromium without a window, driven over pipes (the DevTools protocol,
//! `--remote-debugging-pipe`): one message is JSON that ends with a zero byte.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::eventually::eventually;
use super::place::{Daemon, Place};

/// A browser with one page.
#[derive(Debug)]
pub(crate) struct Chromium {
    commands: File,
    answers: BufReader<File>,
    last_id: u64,
    session: Option<String>,
    login: Option<(String, String)>,
    daemon: Daemon,
}

impl Chromium {
    /// Starts the browser. Beyond loopback it resolves no name.
    pub(crate) fn start(place: &Place) -> Self {
        let [commands, answers] = ["commands", "answers"].map(|name| place.path().join(name));
        for pipe in [&commands, &answers] {
            place.run(&format!("mkfifo {}", pipe.display()));
        }
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec chromium "$@" 3<"$0/commands" 4>"$0/answers""#]);
        command.arg(place.path()).args([
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-crash-reporter",
            "--disable-breakpad",
            "--hide-scrollbars",
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]);
        command.arg(format!(
            "--user-data-dir={}",
            place.dir("profile").display()
        ));
        command
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let daemon = place.spawn("chromium", &mut command, || true);
        // The shell opens its ends in the same order.
        let commands = File::options().write(true).open(commands).unwrap();
        let answers = File::open(answers).unwrap();
        let mut this = Self {
            commands,
            answers: BufReader::new(answers),
            last_id: 0,
            session: None,
            login: None,
            daemon,
        };
        let target = this.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = this.call("Target.attachToTarget", &attach);
        this.session = attached["sessionId"].as_str().map(str::to_owned);
        this.call("Page.enable", &json!({}));
        this
    }

    /// Sets the width of the window, in pixels, and the colours that the reader prefers.
    pub(crate) fn look(&mut self, width: u32, scheme: &str) {
        let size = json!({
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call(
            "Emulation.setEmulatedMedia",
            &json!({"features": [feature]}),
        );
    }

    /// Answers challenges with this user from now on.
    pub(crate) fn sign_in_as(&mut self, user: &str, password: &str) {
        self.login = Some((user.to_owned(), password.to_owned()));
        self.call("Fetch.enable", &json!({"handleAuthRequests": true}));
    }

    /// Opens an address and waits until the page is loaded.
    pub(crate) fn open(&mut self, url: &str) {
        self.send("Page.navigate", &json!({"url": url}));
        self.loaded();
    }

    /// Waits until the next page is loaded.
    pub(crate) fn loaded(&mut self) {
        self.until(|message| message["method"] == "Page.loadEventFired");
    }

    /// Returns the value of an expression in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", &asked);
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Presses and releases a key, which has the number `code` and types `text`.
    pub(crate) fn press(&mut self, key: &str, code: u32, text: &str) {
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Returns the whole page as PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        let whole = json!({"format": "png", "captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", &whole);
        STANDARD.decode(answer["data"].as_str().unwrap()).unwrap()
    }

    /// Ends the browser, and waits for all of its processes in `place`. Some end a moment after it.
    pub(crate) fn close(mut self, place: &Place) {
        self.session = None;
        self.call("Browser.close", &json!({}));
        self.daemon.wait();
        eventually("the browser's processes have ended", || {
            let mut processes = place.processes().into_iter();
            !processes.any(|(_, line)| line.contains("chrom"))
        });
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let id = self.send(method, parameters);
        let answer = self.until(|message| message["id"] == id);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn send(&mut self, method: &str, parameters: &Value) -> u64 {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        self.last_id
    }

    fn until(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut bytes = Vec::new();
            self.answers.read_until(0, &mut bytes).unwrap();
            assert_eq!(
                bytes.pop(),
                Some(0),
                "the browser ended: {}",
                self.daemon.log()
            );
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            self.admit(&message);
            if is_wanted(&message) {
                return message;
            }
        }
    }

    /// Lets requests pass, and answers challenges.
    fn admit(&mut self, message: &Value) {
        let id = &message["params"]["requestId"];
        match message["method"].as_str() {
            Some("Fetch.requestPaused") => {
                self.send("Fetch.continueRequest", &json!({"requestId": id}));
            }
            Some("Fetch.authRequired") => {
                // Once: a second challenge means that the password is wrong.
                let answer = match self.login.take() {
                    Some((user, password)) => json!({
                        "response": "ProvideCredentials", "username": user, "password": password,
                    }),
                    None => json!({"response": "CancelAuth"}),
                };
                let answer = json!({"requestId": id, "authChallengeResponse": answer});
                self.send("Fetch.continueWithAuth", &answer);
            }
            _ => {}
        }
    }
}
