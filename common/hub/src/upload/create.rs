//! Creates the repository of an upload.

use serde_json::json;

use super::JSON;
use crate::Hub;
use crate::error::HubError;
use crate::repo::RepoName;

/// Who can see a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Its owner, and whoever the owner gives access.
    Private,
}

/// The result of [`Hub::create_repo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoCreation {
    /// The repository was created.
    Created,
    /// It existed before.
    AlreadyExists,
}

impl Hub {
    /// Creates a model repository. An existing one is not an error.
    ///
    /// # Errors
    /// [`HubError::Forbidden`] if the token lacks the permission. Transient errors are not retried here.
    pub fn create_repo(
        &self,
        repo: &RepoName,
        visibility: Visibility,
    ) -> Result<RepoCreation, HubError> {
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
            Ok(_) => Ok(RepoCreation::Created),
            Err(HubError::Conflict {
                request,
                status,
                detail,
                ..
            }) => {
                let message = detail.message.as_deref().unwrap_or_default();
                if message.contains("in progress") {
                    return Err(HubError::Server {
                        request,
                        status,
                        detail,
                    });
                }
                Ok(RepoCreation::AlreadyExists)
            }
            // The token may be valid for this repository only, without the permission to create others.
            Err(error @ (HubError::Unauthorized { .. } | HubError::Forbidden { .. })) => {
                match self.head(repo, "main") {
                    Ok(_) => Ok(RepoCreation::AlreadyExists),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}
