//! The page in a real browser, driven by the keyboard through the protocol of Chromium. Says so and passes where no browser is
//! installed. `UC_SCREENSHOT=FILE.png` keeps a picture of the page.
#![allow(clippy::disallowed_methods)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Running, served, settings};

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }} {% endfor %}";

/// The browser of this machine.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut candidates =
        std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    candidates.find(|file| file.is_file())
}

/// A browser with one page.
struct Page {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    next: u64,
    _folder: tempfile::TempDir,
}

impl Page {
    /// Opens an address.
    fn open(browser: &PathBuf, address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The protocol's pipe is on the descriptors 3 and 4.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" 3<&0 4>&1", "sh"])
            .arg(browser);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            "--window-size=900,700",
        ]);
        command.arg(format!("--user-data-dir={}", folder.path().display()));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        let mut page = Page {
            child,
            to,
            from,
            session: None,
            next: 0,
            _folder: folder,
        };
        let target = page.call("Target.createTarget", json!({"url": address}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = page.call("Target.attachToTarget", attach);
        page.session = session["sessionId"].as_str().map(str::to_owned);
        page
    }

    /// The result of a command.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to
            .write_all(format!("{message}\0").as_bytes())
            .unwrap();
        self.to.flush().unwrap();
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "the browser has ended");
            let reply: Value = serde_json::from_slice(&bytes).unwrap();
            if reply["id"] == id {
                assert!(reply["error"].is_null(), "{method}: {reply}");
                return reply["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let result = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "returnByValue": true}),
        );
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    fn until(&mut self, expression: &str) {
        let start = Instant::now();
        while self.value(expression) != true {
            let seen = || format!("never: {expression}");
            assert!(start.elapsed() < Duration::from_secs(30), "{}", seen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types text where the focus is.
    fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a key.
    fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_conversation_in_the_page_works_by_keyboard_alone() {
    let Some(browser) = browser() else {
        eprintln!("skipped: found no chromium, chromium-browser or google-chrome in PATH");
        return;
    };
    const KEY: &str = "0123456789abcdef0123";
    let mut settings = settings();
    settings.access.key = Some(KEY.to_owned());
    settings.batch.slots = 1;
    let server = Running::start(served(Some(TEMPLATE)), settings);
    let mut page = Page::open(&browser, &format!("http://{}/", server.address));
    // It asks for the key, and the focus is where the key is entered.
    page.until("document.activeElement.id === 'key'");
    page.write(KEY);
    page.press("Tab", 9);
    page.until("document.title === 'tiny-stories'");
    page.value("by('temperature').value = '0'; by('max_tokens').value = '30'; by('text').focus()");
    let answer = |text: &str| {
        format!(
            "document.querySelectorAll('article.assistant')[{text}].querySelector('p').textContent"
        )
    };
    let ended = |count: usize| {
        format!(
            "document.querySelectorAll('article.assistant footer')[{count}]?.textContent.includes('tokens')"
        )
    };
    page.write("Once upon a time");
    page.press("Enter", 13);
    page.until(&ended(0));
    let shown = page.value(&answer("0"));
    // What the page shows is what the API answers.
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "max_tokens": 30, "temperature": 0}).to_string();
        let bearer = format!("Bearer {KEY}");
        let headers = [("Authorization", bearer.as_str())];
        let request = server.request("POST", "/v1/chat/completions", &headers, body.as_bytes());
        server.exchange(&request).json()["choices"][0]["message"]["content"].clone()
    };
    let first = json!({"role": "user", "content": "Once upon a time"});
    assert_eq!(shown, ask(json!([first])));
    // The conversation goes on.
    page.until("document.activeElement.id === 'text'");
    page.write("And then?");
    page.press("Enter", 13);
    page.until(&ended(1));
    let talk = json!([first, {"role": "assistant", "content": shown}, {"role": "user", "content": "And then?"}]);
    assert_eq!(page.value(&answer("1")), ask(talk));
    assert_eq!(page.value("document.querySelectorAll('.error').length"), 0);
    if let Some(file) = std::env::var_os("UC_SCREENSHOT") {
        let picture = page.call("Page.captureScreenshot", json!({"format": "png"}));
        std::fs::write(
            file,
            STANDARD.decode(picture["data"].as_str().unwrap()).unwrap(),
        )
        .unwrap();
    }
    // Errors are shown.
    page.write(&"once ".repeat(400));
    page.press("Enter", 13);
    page.until("document.querySelector('.error')?.textContent.includes('context')");
    // Values out of range are not sent.
    page.value("by('settings').open = false; by('max_tokens').value = '0'; by('text').focus()");
    page.write("x");
    page.press("Enter", 13);
    page.until("by('settings').open");
    assert_eq!(
        page.value("document.querySelectorAll('article.assistant').length"),
        3
    );
    // A new conversation is empty. Escape stops an answer, here one that waits for others.
    page.value("by('max_tokens').value = '30'; by('clear').click()");
    assert_eq!(page.value("document.querySelectorAll('article').length"), 0);
    let many = json!({"prompt": "Once", "max_tokens": 250, "n": 60, "stream": true}).to_string();
    let bearer = format!("Bearer {KEY}");
    let headers = [("Authorization", bearer.as_str())];
    let many = server.request("POST", "/v1/completions", &headers, many.as_bytes());
    let mut others = server.connect();
    others.write_all(&many).unwrap();
    std::io::Read::read_exact(&mut others, &mut [0; 64]).unwrap();
    page.until("document.activeElement.id === 'text'");
    page.press("Enter", 13);
    page.until("!by('stop').disabled");
    page.press("Escape", 27);
    page.until("document.querySelector('article.assistant footer')?.textContent === 'stopped'");
    page.until("document.activeElement.id === 'text' && !by('send').disabled");
}
