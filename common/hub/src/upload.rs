//! Uploads: create the repository, ask how each file is uploaded, send large files to storage, commit.
//!
//! Each step is a function of one or a few requests; [`crate::Hub::push`] combines them and retries. Large files go to
//! large file storage (LFS) first, at the signed URLs of an LFS batch; small ones go into the commit itself.
//!
//! | module | what it owns |
//! |---|---|
//! | `create` | [`crate::Hub::create_repo`] |
//! | `preupload` | [`crate::Hub::preupload`]: the upload mode of each file |
//! | `lfs_batch` | [`crate::Hub::lfs_batch`]: upload URLs for large files |
//! | `lfs_transfer` | [`crate::Hub::upload_lfs_file`]: a large file to storage, in parts |
//! | `commit` | [`crate::Hub::commit`] |
//! | `push` | [`crate::Hub::push`], [`crate::Hub::upload_without_commit`]: all steps, with retries |

mod commit;
mod create;
mod lfs_batch;
mod lfs_transfer;
mod preupload;
mod push;

use serde_json::Value;

use crate::Hub;
use crate::error::HubError;
use crate::http::{HttpRequest, HttpResponse, RequestBody};

pub use commit::CommitOutcome;
pub use create::{RepoCreation, Visibility};
pub use lfs_batch::BatchAction;
pub use lfs_transfer::UploadState;
pub use preupload::{Preupload, UploadMode};
pub use push::{Difference, PushOutcome, differences};

const JSON: &str = "application/json";
const LFS_JSON: &str = "application/vnd.git-lfs+json";
/// Files in one preupload or batch request.
const FILES_PER_REQUEST: usize = 100;

impl Hub {
    fn post(
        &self,
        url: String,
        content_type: &'static str,
        value: &Value,
    ) -> Result<HttpResponse, HubError> {
        let data = value.to_string();
        let body = RequestBody::Bytes(content_type, data.as_bytes());
        let mut request = HttpRequest::new("POST", url, body);
        request.headers.push(("accept", content_type.into()));
        self.http.send(request)
    }
}
