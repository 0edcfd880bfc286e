//! A file of the Hub to a file on disk, over any number of broken connections and ended processes.
//!
//! A download is asked for by commit, so that its content cannot change under it, and lies in a growing file whose name
//! carries the digest of that content. A resumed request says from which byte (`Range`) and of which version
//! (`If-Range`, when the server that holds the bytes gave a strong ETag); an answer that does not begin exactly there is
//! not spliced. Whatever happened on the way, the file appears under its name only if the whole has the Hub's digest.

use std::io::Read;

use camino::Utf8Path;
use uc_store::atomic::GrowingFile;

use crate::answer::header;
use crate::digest::{self, Running};
use crate::error::HubError;
use crate::http::{Call, Reply};
use crate::listing::RemoteFile;
use crate::name::{CommitId, RepoName, encode};
use crate::watchdog::{Attempt, Watchdog};
use crate::{Hub, Progress};

/// Bytes that go to disk at a time.
const PIECE: usize = 256 << 10;

/// What a download was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes that came over the wire; the rest was already here.
    pub received: u64,
}

/// A download between its attempts.
struct State<'a> {
    file: &'a RemoteFile,
    growing: GrowingFile,
    running: Running,
    /// The strong ETag of the bytes that are here.
    etag: Option<String>,
    /// Whole downloads that had another digest.
    wrong: u32,
    received: u64,
}

impl<'a> State<'a> {
    fn open(file: &'a RemoteFile, into: &Utf8Path) -> Result<Self, HubError> {
        let id = file.id.to_string();
        let mut state = Self {
            file,
            growing: GrowingFile::open(into, &id[..16])?,
            running: Running::like(&file.id, file.size),
            etag: None,
            wrong: 0,
            received: 0,
        };
        if state.growing.size() > file.size {
            state.restart()?;
        }
        let running = &mut state.running;
        state.growing.read(|piece| running.update(piece))?;
        Ok(state)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.growing.restart()?;
        self.running = Running::like(&self.file.id, self.file.size);
        self.etag = None;
        Ok(())
    }

    /// Checks the whole; a wrong one goes.
    fn check(&mut self) -> Result<(), HubError> {
        let next = Running::like(&self.file.id, self.file.size);
        let found = std::mem::replace(&mut self.running, next).finish();
        if found == self.file.id {
            return Ok(());
        }
        self.restart()?;
        self.wrong += 1;
        Err(HubError::Hash {
            file: self.file.path.clone(),
            kind: found.kind(),
            found: found.to_string(),
            expected: self.file.id.to_string(),
            repeated: self.wrong > 1,
        })
    }
}

impl Hub {
    /// Downloads a file of a commit to `into`, unless it is already there.
    ///
    /// # Errors
    /// A final error, or [`HubError::GaveUp`]; what came stays beside `into` and the next call goes on from it.
    pub fn download(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        file: &RemoteFile,
        into: &Utf8Path,
        watchdog: &mut Watchdog<'_>,
        mut progress: impl FnMut(Progress),
    ) -> Result<Downloaded, HubError> {
        let total = file.size;
        let here = std::fs::metadata(into).is_ok_and(|here| here.is_file() && here.len() == total);
        if here && digest::of_file(into, total, &file.id)? == file.id {
            progress(Progress { done: total, total });
            return Ok(Downloaded { received: 0 });
        }
        let mut state = State::open(file, into)?;
        let what = format!("download of {}", file.path);
        watchdog.run(&what, |attempt| {
            self.attempt(repo, commit, &mut state, attempt, &mut progress)
        })?;
        let received = state.received;
        state.growing.commit()?;
        Ok(Downloaded { received })
    }

    /// The first bytes of a file of a commit, in one request; they carry no digest of their own.
    ///
    /// # Errors
    /// What the request met; nothing is tried again here.
    pub fn beginning(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        file: &RemoteFile,
        bytes: u64,
    ) -> Result<Vec<u8>, HubError> {
        let bytes = bytes.min(file.size);
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let mut call = Call::get(self.resolved(repo, commit, file));
        call.expected = bytes;
        call.headers.push(("accept-encoding", "identity".into()));
        call.headers
            .push(("range", format!("bytes=0-{}", bytes - 1)));
        let mut reply = self.http.send(call)?;
        self.check_version(&reply, commit, file)?;
        let range = header(&reply.headers, "content-range").unwrap_or_default();
        let expected = format!("bytes 0-{}/{}", bytes - 1, file.size);
        // A server without ranges sends the whole, of which the rest is not read.
        if reply.status == 206 && range != expected {
            let at = reply.at.clone();
            let found = range;
            return Err(HubError::Range {
                at,
                found,
                expected,
            });
        }
        let (at, limit) = (reply.at.clone(), reply.limit());
        let mut data = Vec::new();
        let read = reply.body.as_reader().take(bytes).read_to_end(&mut data);
        let found = data.len() as u64;
        read.map_err(|error| self.http.cut(error, at.clone(), limit, found, Some(bytes)))?;
        match found == bytes {
            true => Ok(data),
            false => Err(HubError::Cut {
                at,
                found,
                expected: bytes,
            }),
        }
    }

    /// The URL of a file of a commit.
    fn resolved(&self, repo: &RepoName, commit: &CommitId, file: &RemoteFile) -> String {
        let path = encode(&file.path, "/");
        format!("{}/{repo}/resolve/{commit}/{path}", self.endpoint().url())
    }

    /// One request for what is missing.
    fn attempt(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        state: &mut State<'_>,
        attempt: &mut Attempt,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), HubError> {
        let total = state.file.size;
        let tell = |done| Progress { done, total };
        progress(tell(state.growing.size()));
        if state.growing.size() < total {
            let mut reply = self.ask(repo, commit, state)?;
            self.check_version(&reply, commit, state.file)?;
            self.begin(&reply, state)?;
            let start = state.growing.size();
            let outcome = self.receive(&mut reply, state, &mut |done| progress(tell(done)));
            if state.growing.size().saturating_sub(start) >= self.http.limits.progress {
                attempt.progressed();
            }
            outcome?;
        }
        state.check()
    }

    fn ask(
        &self,
        repo: &RepoName,
        commit: &CommitId,
        state: &mut State<'_>,
    ) -> Result<Reply, HubError> {
        let mut call = Call::get(self.resolved(repo, commit, state.file));
        call.expected = state.file.size - state.growing.size();
        // A compressed body has neither the size nor the ranges of the file.
        call.headers.push(("accept-encoding", "identity".into()));
        if state.growing.size() > 0 {
            let range = format!("bytes={}-", state.growing.size());
            call.headers.push(("range", range));
            if let Some(etag) = &state.etag {
                call.headers.push(("if-range", etag.clone()));
            }
        }
        let reply = self.http.send(call);
        if matches!(reply, Err(HubError::Range { .. })) {
            state.restart()?;
        }
        reply
    }

    /// Whether the Hub still says of the file what its listing said.
    fn check_version(
        &self,
        reply: &Reply,
        commit: &CommitId,
        file: &RemoteFile,
    ) -> Result<(), HubError> {
        let changed = |what, found: String, expected: String| HubError::Changed {
            at: reply.at.clone(),
            what,
            found: found.chars().take(100).collect(),
            expected,
        };
        let linked = &reply.linked;
        if let Some(found) = linked
            .commit
            .as_ref()
            .filter(|found| **found != commit.to_string())
        {
            return Err(changed("commit", found.clone(), commit.to_string()));
        }
        if let Some(found) = linked.size.filter(|size| *size != file.size) {
            return Err(changed("size", found.to_string(), file.size.to_string()));
        }
        let (etag, id) = (linked.etag.as_deref().map(bare), file.id.to_string());
        // Another kind of tag (of a mirror, say) proves nothing; the digest of the whole decides.
        let comparable =
            |etag: &&str| etag.len() == id.len() && etag.bytes().all(|b| b.is_ascii_hexdigit());
        match etag.filter(comparable) {
            Some(etag) if !etag.eq_ignore_ascii_case(&id) => {
                Err(changed("ETag", etag.to_owned(), id))
            }
            _ => Ok(()),
        }
    }

    /// Makes the growing file end where the body begins.
    fn begin(&self, reply: &Reply, state: &mut State<'_>) -> Result<(), HubError> {
        let (here, total) = (state.growing.size(), state.file.size);
        let length =
            header(&reply.headers, "content-length").and_then(|text| text.parse::<u64>().ok());
        let wrong = |found: String, expected: String| HubError::Range {
            at: reply.at.clone(),
            found,
            expected,
        };
        let begins = if reply.status == 206 {
            let text = header(&reply.headers, "content-range").unwrap_or_default();
            let expected = format!("bytes {here}-{}/{total}", total.saturating_sub(1));
            if text != expected {
                state.restart()?;
                return Err(wrong(text, expected));
            }
            here
        } else {
            if here > 0 {
                // No ranges here, or another version: from the beginning.
                state.restart()?;
            }
            0
        };
        if let Some(length) = length.filter(|length| *length != total - begins) {
            return Err(wrong(
                format!("{length} bytes"),
                format!("{} bytes", total - begins),
            ));
        }
        let etag = header(&reply.headers, "etag").filter(|etag| etag.starts_with('"'));
        state.etag = etag;
        Ok(())
    }

    /// The body to disk.
    fn receive(
        &self,
        reply: &mut Reply,
        state: &mut State<'_>,
        done: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let (at, limit, total) = (reply.at.clone(), reply.limit(), state.file.size);
        let mut reader = reply.body.as_reader();
        let mut piece = vec![0; PIECE];
        loop {
            let read = match reader.read(&mut piece) {
                Ok(read) => read,
                Err(error) => {
                    let found = state.growing.size();
                    return Err(self.http.cut(error, at, limit, found, Some(total)));
                }
            };
            let found = state.growing.size() + read as u64;
            if read == 0 && found == total {
                return Ok(());
            }
            if read == 0 {
                let expected = total;
                return Err(HubError::Cut {
                    at,
                    found,
                    expected,
                });
            }
            if found > total {
                state.restart()?;
                return Err(HubError::Range {
                    at,
                    found: format!("more than {total} bytes"),
                    expected: format!("{total} bytes"),
                });
            }
            state.growing.append(&piece[..read])?;
            state.running.update(&piece[..read]);
            state.received += read as u64;
            done(found);
        }
    }
}

/// An ETag without weakness and quotes.
fn bare(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}
