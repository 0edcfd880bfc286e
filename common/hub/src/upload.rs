//! The steps of an upload: repository, how each file goes, large files to storage, commit.
//!
//! Each function is one step and one or a few requests; [`crate::Hub::push`] puts them together. Large files go to the
//! URLs of an LFS batch, in one piece or in parts read by position; what was sent is remembered in an [`UploadState`],
//! so that a broken connection costs one part. A signed URL gets no token.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroU64;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use uc_store::sha::Sha256Digest;

use crate::answer::header;
use crate::digest::FileId;
use crate::error::{At, HubError};
use crate::http::{Call, Payload, Reply};
use crate::local::LocalFile;
use crate::name::{CommitId, RepoName, check_revision, encode};
use crate::watchdog::Attempt;
use crate::{Hub, Progress};

const JSON: &str = "application/json";
const LFS_JSON: &str = "application/vnd.git-lfs+json";
/// Bytes of a file's beginning that the Hub looks at.
const SAMPLE: u64 = 512;
/// Files in one preupload or batch request.
const FILES_PER_REQUEST: usize = 100;
/// Parts that a storage of this kind takes.
const MOST_PARTS: u64 = 10_000;

/// Who sees a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Its owners.
    Private,
}

/// What became of [`Hub::create_repo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// It was there already.
    Existed,
}

/// How a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the commit itself.
    Regular,
    /// To large file storage first.
    Lfs,
}

/// What the Hub says of a file before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preupload {
    /// Its path.
    pub path: String,
    /// How it goes.
    pub mode: Mode,
    /// Whether a .gitignore excludes it.
    pub ignored: bool,
    /// What stands under this path at present.
    pub present: Option<FileId>,
}

/// Whereto a large file goes.
#[derive(Clone, PartialEq, Eq)]
pub struct BatchAction {
    /// Where it goes whole, or where its parts are put together.
    href: String,
    /// Size of the parts and their URLs, in order; none for a file that goes whole.
    parts: Option<(NonZeroU64, Vec<String>)>,
    /// Where to ask whether it arrived.
    verify: Option<String>,
}

impl std::fmt::Debug for BatchAction {
    // URLs are signed: whoever has one may write.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.parts.as_ref().map_or(1, |(_, urls)| urls.len());
        write!(f, "BatchAction({parts} parts)")
    }
}

/// What is sent of large files that are not whole in storage yet.
#[derive(Debug, Default)]
pub struct UploadState {
    open: HashMap<Sha256Digest, (BatchAction, Vec<Option<String>>)>,
}

/// A commit that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its id.
    pub commit: CommitId,
}

#[derive(Deserialize)]
struct WirePreupload {
    files: Vec<WirePreuploadFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePreuploadFile {
    path: String,
    upload_mode: Mode,
    #[serde(default)]
    should_ignore: bool,
    oid: Option<String>,
}

#[derive(Deserialize)]
struct WireBatch {
    objects: Vec<WireObject>,
}

#[derive(Deserialize)]
struct WireObject {
    oid: String,
    actions: Option<WireActions>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct WireActions {
    upload: Option<WireAction>,
    verify: Option<WireAction>,
}

#[derive(Deserialize)]
struct WireAction {
    href: String,
    #[serde(default)]
    header: HashMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireCommit {
    commit_oid: String,
}

impl Hub {
    fn post(&self, url: String, kind: &'static str, value: &Value) -> Result<Reply, HubError> {
        let data = value.to_string();
        let mut call = Call::new("POST", url, Payload::Bytes(kind, data.as_bytes()));
        call.headers.push(("accept", kind.into()));
        self.http.send(call)
    }

    /// Makes a repository for a model; one that is there already is no error.
    ///
    /// # Errors
    /// [`HubError::Forbidden`] where the token may not; transient ones are not tried again here.
    pub fn create_repo(
        &self,
        repo: &RepoName,
        visibility: Visibility,
    ) -> Result<Created, HubError> {
        let url = format!("{}/api/repos/create", self.endpoint().url());
        let visibility = match visibility {
            Visibility::Public => "public",
            Visibility::Private => "private",
        };
        let value = json!({
            "type": "model",
            "organization": repo.org(),
            "name": repo.name(),
            "visibility": visibility,
            "private": visibility == "private",
        });
        match self.post(url, JSON, &value) {
            Ok(_) => Ok(Created::New),
            Err(HubError::Conflict {
                at, status, said, ..
            }) => {
                let message = said.message.as_deref().unwrap_or_default();
                if message.contains("in progress") {
                    return Err(HubError::Server { at, status, said });
                }
                Ok(Created::Existed)
            }
            // A token that may write to the repository, but not create one.
            Err(error @ (HubError::Unauthorised { .. } | HubError::Forbidden { .. })) => {
                match self.head(repo, "main") {
                    Ok(_) => Ok(Created::Existed),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// How each file goes.
    ///
    /// # Errors
    /// [`HubError::Malformed`] if the Hub forgets a file; transient ones are not tried again here.
    pub fn preupload(
        &self,
        repo: &RepoName,
        branch: &str,
        files: &[&LocalFile],
    ) -> Result<Vec<Preupload>, HubError> {
        check_revision(branch)?;
        let mut modes = Vec::new();
        for files in files.chunks(FILES_PER_REQUEST) {
            let mut described = Vec::new();
            for file in files {
                let sample = BASE64.encode(file.beginning(SAMPLE)?);
                described.push(json!({"path": file.path, "size": file.size, "sample": sample}));
            }
            let url = self.api(repo, &format!("/preupload/{}", encode(branch, "")));
            let reply = self.post(url, JSON, &json!({ "files": described }))?;
            let at = reply.at.clone();
            let answer: WirePreupload = self.http.json(reply)?;
            let mut answers: HashMap<_, _> = answer
                .files
                .into_iter()
                .map(|file| (file.path.clone(), file))
                .collect();
            for file in files {
                let answer = answers
                    .remove(&file.path)
                    .ok_or_else(|| HubError::Malformed {
                        at: at.clone(),
                        found: format!("nothing about {}", file.path),
                        expected: "a mode for every file".into(),
                    })?;
                let present = answer.oid.as_deref().and_then(file_id);
                modes.push(Preupload {
                    path: answer.path,
                    // Storage takes no empty objects.
                    mode: if file.size == 0 {
                        Mode::Regular
                    } else {
                        answer.upload_mode
                    },
                    ignored: answer.should_ignore,
                    present,
                });
            }
        }
        Ok(modes)
    }

    /// Whereto large files go; `None` for one that storage has already.
    ///
    /// # Errors
    /// [`HubError::Quota`] and the like for a file that storage refuses; transient ones are not tried again here.
    pub fn lfs_batch(
        &self,
        repo: &RepoName,
        branch: &str,
        files: &[&LocalFile],
    ) -> Result<Vec<Option<BatchAction>>, HubError> {
        let url = format!(
            "{}/{repo}.git/info/lfs/objects/batch",
            self.endpoint().url()
        );
        let mut actions = Vec::new();
        for files in files.chunks(FILES_PER_REQUEST) {
            let objects: Vec<_> = files
                .iter()
                .map(|file| json!({"oid": file.sha256.to_string(), "size": file.size}))
                .collect();
            let value = json!({
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "hash_algo": "sha256",
                "ref": {"name": branch},
                "objects": objects,
            });
            let reply = self.post(url.clone(), LFS_JSON, &value)?;
            let at = reply.at.clone();
            let answer: WireBatch = self.http.json(reply)?;
            let mut answers: HashMap<_, _> = answer
                .objects
                .into_iter()
                .map(|object| (object.oid.clone(), object))
                .collect();
            for file in files {
                let object = answers.get_mut(&file.sha256.to_string());
                let object = object.ok_or_else(|| HubError::Malformed {
                    at: at.clone(),
                    found: format!("nothing about {}", file.path),
                    expected: "an answer for every object".into(),
                })?;
                actions.push(self.action(object, file, &at)?);
            }
        }
        Ok(actions)
    }

    fn action(
        &self,
        object: &mut WireObject,
        file: &LocalFile,
        at: &At,
    ) -> Result<Option<BatchAction>, HubError> {
        if let Some(error) = &object.error {
            return Err(self.http.refused(at.clone(), error.code, &error.message));
        }
        let Some(WireActions { upload, verify }) = object.actions.take() else {
            return Ok(None);
        };
        let Some(upload) = upload else {
            return Ok(None);
        };
        let verify = verify.map(|verify| self.endpoint().localised(&verify.href));
        let href = self.endpoint().localised(&upload.href);
        let Some(chunk) = upload.header.get("chunk_size") else {
            return Ok(Some(BatchAction {
                href,
                parts: None,
                verify,
            }));
        };
        let malformed = |found: String| HubError::Malformed {
            at: at.clone(),
            found,
            expected: format!(
                "parts that make up the {} bytes of {}",
                file.size, file.path
            ),
        };
        let text = chunk
            .as_str()
            .map_or_else(|| chunk.to_string(), ToOwned::to_owned);
        let size = text.parse::<NonZeroU64>();
        let size = size.map_err(|_| malformed(format!("parts of {text} bytes")))?;
        let mut urls: Vec<(u64, String)> = upload
            .header
            .iter()
            .filter_map(|(key, url)| {
                let url = self.endpoint().localised(url.as_str()?);
                Some((key.parse().ok()?, url))
            })
            .collect();
        urls.sort();
        let count = file.size.div_ceil(size.get());
        let numbers = urls.iter().map(|(number, _)| *number);
        if count > MOST_PARTS || !numbers.eq(1..=count) {
            return Err(malformed(format!("{} parts of {size} bytes", urls.len())));
        }
        let urls = urls.into_iter().map(|(_, url)| url).collect();
        Ok(Some(BatchAction {
            href,
            parts: Some((size, urls)),
            verify,
        }))
    }

    /// Brings a large file into storage: what `state` has of it stays sent.
    ///
    /// # Errors
    /// [`HubError::UploadLost`] (transient) when it has to begin again with new URLs; transient ones are not tried
    /// again here, but the next call goes on.
    pub fn send_lfs(
        &self,
        file: &LocalFile,
        action: BatchAction,
        state: &mut UploadState,
        attempt: &mut Attempt,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let parts = action.parts.as_ref().map_or(1, |(_, urls)| urls.len());
        let entry = (action, vec![None; parts]);
        let mut open = state.open.remove(&file.sha256).unwrap_or(entry);
        let outcome = self.send_open(file, &mut open, attempt, progress);
        // What expired is forgotten; what broke goes on where it was.
        if matches!(&outcome, Err(error) if !matches!(error, HubError::UploadLost { .. })) {
            state.open.insert(file.sha256, open);
        }
        outcome
    }

    fn send_open(
        &self,
        file: &LocalFile,
        (action, etags): &mut (BatchAction, Vec<Option<String>>),
        attempt: &mut Attempt,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let handle = file.open()?;
        let whole = NonZeroU64::new(file.size).expect("storage takes no empty objects");
        let (size, urls) = match &action.parts {
            Some((size, urls)) => (*size, urls.as_slice()),
            None => (whole, std::slice::from_ref(&action.href)),
        };
        for (index, url) in urls.iter().enumerate() {
            let offset = index as u64 * size.get();
            let bytes = size.get().min(file.size - offset);
            if etags[index].is_none() {
                etags[index] = Some(self.put(file, &handle, (offset, bytes), url, progress)?);
                attempt.progressed();
            }
            let done = offset + bytes;
            progress(Progress {
                done,
                total: file.size,
            });
        }
        if action.parts.is_some() {
            self.complete(file, &action.href, etags)?;
        }
        match &action.verify {
            Some(url) => self.verify(file, url),
            None => Ok(()),
        }
    }

    /// One part, or all of a file; returns the ETag.
    fn put(
        &self,
        file: &LocalFile,
        handle: &File,
        (offset, size): (u64, u64),
        url: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<String, HubError> {
        let mut out = offset;
        let total = file.size;
        let mut sent = |bytes| {
            out += bytes;
            progress(Progress { done: out, total });
        };
        let payload = Payload::Slice {
            file: handle,
            offset,
            size,
            sent: &mut sent,
        };
        let mut call = Call::new("PUT", url.into(), payload);
        call.token = false;
        let reply = self
            .http
            .send(call)
            .map_err(|error| lost(error, &file.path))?;
        Ok(header(&reply.headers, "etag").unwrap_or_default())
    }

    /// Puts the parts together.
    fn complete(
        &self,
        file: &LocalFile,
        url: &str,
        etags: &[Option<String>],
    ) -> Result<(), HubError> {
        let parts: Vec<_> = etags
            .iter()
            .enumerate()
            .map(|(index, etag)| json!({"partNumber": index + 1, "etag": etag}))
            .collect();
        let data = json!({"oid": file.sha256.to_string(), "parts": parts}).to_string();
        let mut call = Call::new(
            "POST",
            url.into(),
            Payload::Bytes(LFS_JSON, data.as_bytes()),
        );
        call.headers.push(("accept", LFS_JSON.into()));
        call.token = false;
        self.http
            .send(call)
            .map_err(|error| lost(error, &file.path))?;
        Ok(())
    }

    /// Asks whether a file arrived.
    fn verify(&self, file: &LocalFile, url: &str) -> Result<(), HubError> {
        let value = json!({"oid": file.sha256.to_string(), "size": file.size});
        match self.post(url.into(), LFS_JSON, &value) {
            Ok(_) => Ok(()),
            Err(error @ (HubError::Unauthorised { .. } | HubError::Forbidden { .. })) => Err(error),
            Err(error) => Err(lost(error, &file.path)),
        }
    }

    /// Adds files to a branch in one commit on top of `parent`: small ones with their bytes, large ones by digest.
    ///
    /// # Errors
    /// [`HubError::Conflict`] if the branch is no longer at `parent`. After a transient error the commit may have been
    /// made: the tree tells, which is why [`Hub::push`] looks there before it tries again.
    pub fn commit(
        &self,
        repo: &RepoName,
        branch: &str,
        parent: &CommitId,
        message: &str,
        files: &[(&LocalFile, Mode)],
    ) -> Result<Committed, HubError> {
        check_revision(branch)?;
        let mut lines = vec![json!({"key": "header", "value": {
            "summary": message,
            "description": "",
            "parentCommit": parent.to_string(),
        }})];
        for (file, mode) in files {
            lines.push(match mode {
                Mode::Regular => json!({"key": "file", "value": {
                    "path": file.path,
                    "encoding": "base64",
                    "content": BASE64.encode(file.bytes()?),
                }}),
                Mode::Lfs => json!({"key": "lfsFile", "value": {
                    "path": file.path,
                    "algo": "sha256",
                    "oid": file.sha256.to_string(),
                    "size": file.size,
                }}),
            });
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = self.api(repo, &format!("/commit/{}", encode(branch, "")));
        let payload = Payload::Bytes("application/x-ndjson", text.as_bytes());
        let reply = self.http.send(Call::new("POST", url, payload));
        let reply = reply.map_err(|error| match error {
            HubError::Conflict {
                at, status, said, ..
            } => HubError::Conflict {
                at,
                status,
                expected: parent.to_string(),
                said,
            },
            other => other,
        })?;
        let answer: WireCommit = self.http.json(reply)?;
        let commit = answer.commit_oid.parse()?;
        Ok(Committed { commit })
    }
}

/// SHA-256 of a large file or git blob id of another, told apart by their length.
fn file_id(text: &str) -> Option<FileId> {
    let sha256 = text.parse().ok().map(FileId::Sha256);
    sha256.or_else(|| text.parse().ok().map(FileId::Blob))
}

/// A refusal of storage means new URLs; everything else stays what it is.
fn lost(error: HubError, file: &str) -> HubError {
    let file = file.to_owned();
    let (at, status, said) = match error {
        HubError::Unauthorised { at, said } => (at, 401, said),
        HubError::Forbidden { at, said } => (at, 403, said),
        HubError::NotFound { at, said } => (at, 404, said),
        HubError::Conflict {
            at, status, said, ..
        }
        | HubError::Refused { at, status, said } => (at, status, said),
        other => return other,
    };
    HubError::UploadLost {
        at,
        status,
        file,
        said,
    }
}

impl UploadState {
    /// Whether a file has URLs that are still in use.
    pub(crate) fn open_action(&self, file: &LocalFile) -> Option<BatchAction> {
        self.open
            .get(&file.sha256)
            .map(|(action, _)| action.clone())
    }
}
