//! HTTP/1.1 on a socket by hand: requests in, answers out, whole or as a fault wants them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::faults::Fault;

/// How long a silence lasts at most.
const SILENCE: Duration = Duration::from_secs(2);

/// Method, target and headers.
pub(crate) struct Head {
    pub(crate) method: String,
    /// Path and query as they came.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn drop_header(&mut self, name: &str) {
        self.headers.retain(|(key, _)| key != name);
    }

    /// Moves the beginning of the range by one byte, for the fault.
    pub(crate) fn shift_range(&mut self) {
        let Some((from, _)) = self.range() else {
            return;
        };
        let moved = if from == 0 { 1 } else { from - 1 };
        self.drop_header("range");
        self.headers
            .push(("range".into(), format!("bytes={moved}-")));
    }

    /// `bytes=FROM-[TO]`.
    pub(crate) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (from, to) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()))
    }

    /// The path, segment by segment, decoded.
    pub(crate) fn segments(&self) -> Vec<String> {
        let path = self.target.split('?').next().unwrap_or_default();
        path.split('/').skip(1).map(decode).collect()
    }

    /// A field of the query.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|field| {
            let (key, value) = field.split_once('=')?;
            (key == name).then(|| decode(value))
        })
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut index) = (Vec::new(), 0);
    while index < bytes.len() {
        let hex = text.get(index + 1..index + 3);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[index] == b'%' => {
                out.push(byte);
                index += 3;
            }
            _ => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A request with its body.
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// An answer.
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(crate) fn json(value: &Value) -> Self {
        let mut answer = Self::new(200).with("content-type", "application/json; charset=utf-8");
        answer.body = value.to_string().into_bytes();
        answer
    }

    pub(crate) fn error(status: u16, code: Option<&str>, message: &str) -> Self {
        let mut answer = Self::json(&json!({ "error": message }));
        answer.status = status;
        if let Some(code) = code {
            answer = answer.with("x-error-code", code);
        }
        answer.with("x-error-message", message)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A file, whole or in the range that the request asks for.
    pub(crate) fn file(head: &Head, data: Vec<u8>, etag: &str) -> Self {
        let etag = format!("\"{etag}\"");
        let total = data.len() as u64;
        let same = head.header("if-range").is_none_or(|wanted| wanted == etag);
        let range = head.range().filter(|_| same);
        let mut answer = match range {
            Some((from, _)) if from >= total => {
                let size = format!("bytes */{total}");
                return Self::new(416)
                    .with("content-range", &size)
                    .with("etag", &etag);
            }
            Some((from, to)) => {
                let to = to.unwrap_or(total - 1).min(total - 1);
                let mut answer = Self::new(206);
                answer.body = data[from as usize..=to as usize].to_vec();
                answer.with("content-range", &format!("bytes {from}-{to}/{total}"))
            }
            None => {
                let mut answer = Self::new(200);
                answer.body = data;
                answer
            }
        };
        answer = answer.with("etag", &etag).with("accept-ranges", "bytes");
        answer.with("content-type", "application/octet-stream")
    }
}

/// A client's connection.
pub(crate) struct Connection<'a> {
    stream: &'a TcpStream,
    reader: BufReader<&'a TcpStream>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(stream: &'a TcpStream) -> Self {
        Self {
            stream,
            reader: BufReader::new(stream),
        }
    }

    /// The next request's head; `None` when the connection has ended.
    pub(crate) fn head(&mut self) -> Option<Head> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            if self.reader.read_until(b'\n', &mut text).ok()? == 0 || text.len() > 1 << 20 {
                return None;
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(&text).ok()?;
        let value = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Head {
            method: request.method?.into(),
            target: request.path?.into(),
            headers: request
                .headers
                .iter()
                .map(|header| (header.name.to_ascii_lowercase(), value(header.value)))
                .collect(),
        })
    }

    /// Reads about half of a request's body.
    pub(crate) fn half_body(&mut self, head: &Head) {
        let length = head
            .header("content-length")
            .and_then(|text| text.parse::<u64>().ok());
        let mut half = Vec::new();
        let _ = self
            .reader
            .by_ref()
            .take(length.unwrap_or(0) / 2)
            .read_to_end(&mut half);
    }

    /// The request with its body; `None` when the connection ended in it.
    pub(crate) fn body(&mut self, head: Head) -> Option<Request> {
        if head.header("expect").is_some() {
            self.stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .ok()?;
        }
        let mut body = Vec::new();
        if head
            .header("transfer-encoding")
            .is_some_and(|text| text.contains("chunked"))
        {
            loop {
                let mut line = String::new();
                self.reader.read_line(&mut line).ok()?;
                let size = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
                self.reader
                    .by_ref()
                    .take(size)
                    .read_to_end(&mut body)
                    .ok()?;
                self.reader.read_line(&mut line).ok()?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = head.header("content-length") {
            let length: u64 = length.parse().ok()?;
            self.reader
                .by_ref()
                .take(length)
                .read_to_end(&mut body)
                .ok()?;
            if body.len() as u64 != length {
                return None;
            }
        }
        Some(Request { head, body })
    }

    /// Ends the connection with a reset and not with an end of file.
    pub(crate) fn reset(&mut self) -> bool {
        let _ = rustix::net::sockopt::set_socket_linger(self.stream, Some(Duration::ZERO));
        false
    }

    /// Sends an answer, damaged as the fault wants it; whether the connection goes on.
    pub(crate) fn send(
        &mut self,
        head: &Head,
        answer: &Answer,
        damage: Option<&Fault>,
        stopped: &dyn Fn() -> bool,
    ) -> bool {
        if damage == Some(&Fault::Stall) && answer.body.is_empty() {
            self.be_silent(stopped);
            return false;
        }
        let mut text = format!("HTTP/1.1 {} -\r\n", answer.status);
        text += &format!(
            "content-length: {}\r\nx-request-id: fake-hub\r\n",
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        if self.stream.write_all(text.as_bytes()).is_err() {
            return false;
        }
        let body: &[u8] = if head.method == "HEAD" {
            &[]
        } else {
            &answer.body
        };
        let half = &body[..body.len() / 2];
        match damage {
            Some(Fault::CutBody) => {
                let _ = self.stream.write_all(half);
                false
            }
            Some(Fault::ResetBody) => {
                let _ = self.stream.write_all(half);
                // What was sent should arrive before the reset throws it away.
                std::thread::sleep(Duration::from_millis(2));
                self.reset()
            }
            Some(Fault::Stall) => {
                let _ = self.stream.write_all(half);
                self.be_silent(stopped);
                false
            }
            Some(Fault::Drip(pause)) => {
                let piece = (body.len() / 16).max(1);
                body.chunks(piece).all(|piece| {
                    std::thread::sleep(Duration::from_millis(*pause));
                    self.stream.write_all(piece).is_ok() && !stopped()
                })
            }
            _ => self.stream.write_all(body).is_ok(),
        }
    }

    /// Until the client has had enough.
    fn be_silent(&mut self, stopped: &dyn Fn() -> bool) {
        let start = Instant::now();
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(5)));
        while start.elapsed() < SILENCE && !stopped() {
            match self.reader.fill_buf() {
                Ok([]) => return,
                Ok(more) => {
                    let count = more.len();
                    self.reader.consume(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}
