//! A client of a server that shows what is on the wire.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// What the client waits at most; a loaded machine may take long.
const PATIENCE: Duration = Duration::from_secs(300);

/// Requests to one server, each on a connection of its own. Its functions panic where there is no reply.
#[derive(Debug, Clone)]
pub struct Client {
    /// Address and port.
    pub address: String,
}

impl Client {
    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
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

    /// The reply to a GET.
    pub fn get(&self, path: &str) -> Reply {
        self.exchange(&self.request("GET", path, &[], b""))
    }

    /// The reply to a POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    /// The reply to a POST of these bytes.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.exchange(&self.request("POST", path, &[], body))
    }

    /// The answer to a request that succeeds.
    pub fn answer(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// Status and JSON of a request, with a key if one is given: a POST if there is a body.
    pub fn ask(&self, path: &str, body: Option<&Value>, key: Option<&str>) -> (u16, Value) {
        let key = key.map(|key| format!("Bearer {key}"));
        let headers = key.as_deref().map(|key| ("Authorization", key));
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = self.request(method, path, headers.as_slice(), body.as_bytes());
        let reply = self.exchange(&request);
        (reply.status, reply.json())
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
    /// The status code.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body, without the frame of its chunks.
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

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The body as a text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body as JSON.
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
