//! A small HTTP/1.1 server on a socket. It reads requests and writes responses, intact or damaged by a fault.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::faults::Fault;

/// Longest time that a stalled connection is kept open.
const MAX_STALL: Duration = Duration::from_secs(2);

/// The head of a request: method, target and headers.
pub(crate) struct RequestHead {
    pub(crate) method: String,
    /// Path and query, still encoded.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
}

impl RequestHead {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn remove_header(&mut self, name: &str) {
        self.headers.retain(|(key, _)| key != name);
    }

    /// Moves the start of the requested range by one byte, for [`Fault::WrongRange`].
    pub(crate) fn shift_range(&mut self) {
        let Some((from, _)) = self.range() else {
            return;
        };
        let moved = if from == 0 { 1 } else { from - 1 };
        self.remove_header("range");
        self.headers
            .push(("range".into(), format!("bytes={moved}-")));
    }

    /// First and last byte of `Range: bytes=FROM-[TO]`.
    pub(crate) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (from, to) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()))
    }

    /// The decoded segments of the path.
    pub(crate) fn segments(&self) -> Vec<String> {
        let path = self.target.split('?').next().unwrap_or_default();
        path.split('/').skip(1).map(percent_decode).collect()
    }

    /// The decoded value of a query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|field| {
            let (key, value) = field.split_once('=')?;
            (key == name).then(|| percent_decode(value))
        })
    }
}

/// Decodes percent-encoding.
fn percent_decode(text: &str) -> String {
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

/// A request.
pub(crate) struct Request {
    pub(crate) head: RequestHead,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The body as JSON; null if it is not JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// A response.
pub(crate) struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(crate) fn json(value: &Value) -> Self {
        let mut response = Self::new(200).with("content-type", "application/json; charset=utf-8");
        response.body = value.to_string().into_bytes();
        response
    }

    pub(crate) fn error(status: u16, code: Option<&str>, message: &str) -> Self {
        let mut response = Self::json(&json!({ "error": message }));
        response.status = status;
        if let Some(code) = code {
            response = response.with("x-error-code", code);
        }
        response.with("x-error-message", message)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The content of a file, whole or in the requested range.
    pub(crate) fn file(head: &RequestHead, data: Vec<u8>, etag: &str) -> Self {
        let etag = format!("\"{etag}\"");
        let total = data.len() as u64;
        let range_applies = head.header("if-range").is_none_or(|wanted| wanted == etag);
        let range = head.range().filter(|_| range_applies);
        let mut response = match range {
            Some((from, _)) if from >= total => {
                let size = format!("bytes */{total}");
                return Self::new(416)
                    .with("content-range", &size)
                    .with("etag", &etag);
            }
            Some((from, to)) => {
                let to = to.unwrap_or(total - 1).min(total - 1);
                let mut response = Self::new(206);
                response.body = data[from as usize..=to as usize].to_vec();
                response.with("content-range", &format!("bytes {from}-{to}/{total}"))
            }
            None => {
                let mut response = Self::new(200);
                response.body = data;
                response
            }
        };
        response = response.with("etag", &etag).with("accept-ranges", "bytes");
        response.with("content-type", "application/octet-stream")
    }
}

/// A connection to a client.
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

    /// Reads the head of the next request. `None` if the connection ended.
    pub(crate) fn read_head(&mut self) -> Option<RequestHead> {
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
        Some(RequestHead {
            method: request.method?.into(),
            target: request.path?.into(),
            headers: request
                .headers
                .iter()
                .map(|header| (header.name.to_ascii_lowercase(), value(header.value)))
                .collect(),
        })
    }

    /// Reads about half of the body of a request.
    pub(crate) fn read_half_body(&mut self, head: &RequestHead) {
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

    /// Reads the body of a request. `None` if the connection ended before its end.
    pub(crate) fn read_body(&mut self, head: RequestHead) -> Option<Request> {
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

    /// Makes the connection end with a reset instead of an end of file. Always false: the connection cannot be used again.
    pub(crate) fn reset(&mut self) -> bool {
        let _ = rustix::net::sockopt::set_socket_linger(self.stream, Some(Duration::ZERO));
        false
    }

    /// Sends a response, damaged by the fault. Returns whether the connection can be used again.
    pub(crate) fn send(
        &mut self,
        head: &RequestHead,
        response: &Response,
        fault: Option<&Fault>,
        stopped: &dyn Fn() -> bool,
    ) -> bool {
        if fault == Some(&Fault::Stall) && response.body.is_empty() {
            self.stall(stopped);
            return false;
        }
        let mut text = format!("HTTP/1.1 {} -\r\n", response.status);
        text += &format!(
            "content-length: {}\r\nx-request-id: fake-hub\r\n",
            response.body.len()
        );
        for (name, value) in &response.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        if self.stream.write_all(text.as_bytes()).is_err() {
            return false;
        }
        let body: &[u8] = if head.method == "HEAD" {
            &[]
        } else {
            &response.body
        };
        let half = &body[..body.len() / 2];
        match fault {
            Some(Fault::TruncateBody) => {
                let _ = self.stream.write_all(half);
                false
            }
            Some(Fault::ResetBody) => {
                let _ = self.stream.write_all(half);
                // Lets the bytes arrive before the reset discards them.
                std::thread::sleep(Duration::from_millis(2));
                self.reset()
            }
            Some(Fault::Stall) => {
                let _ = self.stream.write_all(half);
                self.stall(stopped);
                false
            }
            Some(Fault::SlowBody(pause)) => {
                let piece = (body.len() / 16).max(1);
                body.chunks(piece).all(|piece| {
                    std::thread::sleep(Duration::from_millis(*pause));
                    self.stream.write_all(piece).is_ok() && !stopped()
                })
            }
            _ => self.stream.write_all(body).is_ok(),
        }
    }

    /// Sends nothing until the client closes the connection, the server stops, or [`MAX_STALL`] has passed.
    fn stall(&mut self, stopped: &dyn Fn() -> bool) {
        let start = Instant::now();
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(5)));
        while start.elapsed() < MAX_STALL && !stopped() {
            match self.reader.fill_buf() {
                Ok([]) => return,
                Ok(received) => {
                    let count = received.len();
                    self.reader.consume(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}
