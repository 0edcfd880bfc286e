//! A server with the embedded model on a loopback port, and a client that shows what is on the wire.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use uc_infer::{
    Arithmetic, BatchSettings, Dense, InferError, Matrix, MemoryForm, Model, Precision, Source,
    Template,
};
use uc_model::{LayerPlan, ModelConfig, SourceFolder, Tokenizer};
use uc_serve::{Access, Control, Ended, Served, Server, Settings};

/// What the client waits at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// The model's name.
pub const NAME: &str = "tiny-stories";
/// The fingerprint that the server is given.
pub const FINGERPRINT: &str = "f00d";

/// A chat template with tools in the style of Hermes.
pub const TAGGED: &str = "{% if tools %}Tools:{% for t in tools %} {{ t.function.name }}{% endfor %}. <tool_call>\n{% endif %}\
                          {% for m in messages %}{% if m.content == 'fail' %}{{ raise_exception('no such talk') }}{% endif %}\
                          {{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{{ '\n' }}\
                          {% endfor %}assistant: {{ mood }}";
/// One in the style of Llama 3.1.
pub const BARE: &str =
    "{% if tools %}<|python_tag|>{% endif %}{% for m in messages %}{{ m.content }}\n{% endfor %}";

/// The folder of the embedded model.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-stories")
}

/// The tensors of the embedded model, uncompressed.
struct Exact<'a> {
    source: &'a SourceFolder,
    plan: Option<LayerPlan>,
}

impl Source for Exact<'_> {
    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, InferError> {
        let values = self.exact(name, &[rows, cols])?;
        Ok(Matrix::Dense { values, cols })
    }

    fn exact(&self, name: &str, _: &[usize]) -> Result<Dense, InferError> {
        let values = match &self.plan {
            Some(plan) => self.source.read_planned_f32(plan, name),
            None => self.source.read_f32(name),
        };
        Ok(Dense::F32(values.unwrap()))
    }
}

/// The embedded model with this chat template.
pub fn served(template: Option<&str>) -> Served {
    let folder = folder();
    let config = ModelConfig::load(&folder).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let exact = |plan| Exact {
        source: &source,
        plan,
    };
    let model = Model::new(
        config,
        Arithmetic::Exact,
        MemoryForm::Resident,
        &exact(None),
        |index| Ok(exact(Some(plans[index].clone()))),
    );
    let template = template.map(|text| Template::parse(b"{}", Some(text.to_owned())).unwrap());
    Served {
        name: NAME.to_owned(),
        fingerprint: FINGERPRINT.to_owned(),
        model: Arc::new(model.unwrap()),
        arithmetic: Arithmetic::Exact,
        tokenizer: Arc::new(Tokenizer::load(&folder).unwrap()),
        template,
        stop_tokens: Vec::new(),
    }
}

/// Settings for tests.
pub fn settings() -> Settings {
    Settings {
        batch: BatchSettings {
            slots: 4,
            step_tokens: 64,
            context: 256,
            precision: Precision::F32,
            prefix_bytes: 8 << 20,
        },
        queue: 64,
        body_bytes: 1 << 20,
        body_time: Duration::from_secs(5),
        timeout: Duration::from_secs(60),
        write_time: Duration::from_secs(5),
        head_time: Duration::from_secs(5),
        drain: Duration::from_secs(20),
        connections: 256,
        log_prompts: false,
        access: Access::default(),
    }
}

/// A running server; it is ended when this is dropped.
pub struct Running {
    pub address: SocketAddr,
    pub control: Control,
    thread: Option<JoinHandle<Ended>>,
}

impl Running {
    /// Starts a server.
    pub fn start(served: Served, settings: Settings) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        let server = Server::new(served, settings, Arc::new(pool.unwrap())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let control = server.control();
        let thread = std::thread::spawn(move || server.run(listener).unwrap());
        Running {
            address,
            control,
            thread: Some(thread),
        }
    }

    /// A server with the usual settings.
    pub fn usual() -> Self {
        Self::start(served(Some(TAGGED)), settings())
    }

    /// Waits for the end.
    pub fn join(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The bytes of a request.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.address
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if method == "POST" {
            head += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// Sends bytes and reads the reply.
    pub fn exchange(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        Reply::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.exchange(&self.request("GET", path, &[], b""))
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.exchange(&self.request("POST", path, &[], body))
    }

    /// The answer to a request that succeeds.
    pub fn answer(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// The objects of a stream, without the mark of its end.
    pub fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let mut events = events(&reply.text());
        assert_eq!(events.pop(), Some(Value::from("[DONE]")));
        events
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.cut();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// The data of the events in a text; `[DONE]` as a text.
pub fn events(text: &str) -> Vec<Value> {
    let data = text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into()))
        .collect()
}

/// A reply.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    /// Reads until the server closes the connection.
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Reply::parse(&bytes)
            .unwrap_or_else(|| panic!("no reply: {:?}", String::from_utf8_lossy(&bytes)))
    }

    /// Parses the bytes of a whole reply.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut reply = Reply {
            status,
            head,
            body: bytes[end + 4..].to_vec(),
        };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = chunks(&reply.body)?;
        }
        Some(reply)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// Checks that this is an error of the API; its message.
    pub fn error(&self, status: u16, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["param"].as_str(), param, "{json}");
        let fields: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["message", "type", "param", "code"]);
        assert!(error["type"].is_string());
        error["message"].as_str().unwrap().to_owned()
    }
}

/// The bytes of a chunked body; none if it is cut off.
fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}
