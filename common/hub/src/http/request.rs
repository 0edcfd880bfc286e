//! A request before it is sent.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// The body of a request.
pub(crate) enum RequestBody<'a> {
    Empty,
    /// A content type and the bytes.
    Bytes(&'static str, &'a [u8]),
    /// A range of a file, read by position. `on_sent` receives the size of each piece that was read for sending.
    FileRange {
        file: &'a File,
        offset: u64,
        size: u64,
        on_sent: &'a mut dyn FnMut(u64),
    },
}

impl RequestBody<'_> {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(_, data) => data.len() as u64,
            Self::FileRange { size, .. } => *size,
        }
    }
}

/// A request.
pub(crate) struct HttpRequest<'a> {
    pub(crate) method: &'static str,
    pub(crate) url: String,
    /// Headers in addition to those that every request has.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: RequestBody<'a>,
    /// Expected size of the response body in bytes; 0 for a short one.
    pub(crate) expected_bytes: u64,
    /// Whether to send the token to the endpoint's origin. Signed URLs need none.
    pub(crate) with_token: bool,
}

impl<'a> HttpRequest<'a> {
    pub(crate) fn get(url: String) -> Self {
        Self::new("GET", url, RequestBody::Empty)
    }

    pub(crate) fn new(method: &'static str, url: String, body: RequestBody<'a>) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            body,
            expected_bytes: 0,
            with_token: true,
        }
    }
}

/// Reads a range of a file by position, so that readers of the same file do not share a cursor.
pub(super) struct FileRangeReader<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) remaining: u64,
    pub(super) on_sent: &'a mut dyn FnMut(u64),
}

impl Read for FileRangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (buffer.len() as u64).min(self.remaining) as usize;
        if length == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..length], self.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.remaining -= read as u64;
        (self.on_sent)(read as u64);
        Ok(read)
    }
}
