//! Names that identify a repository, a revision and a file in it, with the checks that make them safe to use.

use std::fmt;
use std::str::FromStr;

use crate::error::HubError;

/// A repository, `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoName {
    org: String,
    name: String,
}

impl RepoName {
    /// The owner: an organisation or a user.
    pub fn org(&self) -> &str {
        &self.org
    }

    /// The name within the owner's namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl FromStr for RepoName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let is_valid = |segment: &str| {
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..=96).contains(&segment.len())
                && segment.bytes().all(is_allowed)
                && !segment.starts_with(['-', '.'])
                && !segment.ends_with(['-', '.'])
                && !segment.contains("--")
                && !segment.contains("..")
        };
        match text.split_once('/') {
            Some((org, name)) if is_valid(org) && is_valid(name) && !name.ends_with(".git") => {
                Ok(Self {
                    org: org.into(),
                    name: name.into(),
                })
            }
            _ => Err(HubError::InvalidName {
                what: "repository",
                found: text.into(),
                expected: "org/name of letters, digits, `-`, `_` and `.`",
            }),
        }
    }
}

/// A repository at a revision, `owner/name[@revision]`. The revision is a branch, a tag or a commit; the default is
/// `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoRef {
    /// The repository.
    pub repo: RepoName,
    /// The revision.
    pub revision: String,
}

impl FromStr for RepoRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        check_revision(revision)?;
        Ok(Self {
            repo: repo.parse()?,
            revision: revision.into(),
        })
    }
}

/// Rejects a text that cannot be the name of a git revision.
pub(crate) fn check_revision(revision: &str) -> Result<(), HubError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte);
    let valid = (1..=255).contains(&revision.len())
        && revision.bytes().all(is_allowed)
        && !revision.contains("..")
        && !revision.starts_with(['-', '/', '.'])
        && !revision.ends_with(['/', '.']);
    if valid {
        return Ok(());
    }
    Err(HubError::InvalidName {
        what: "revision",
        found: revision.into(),
        expected: "a branch, a tag or a commit",
    })
}

/// Whether a path of a repository, appended to a folder, stays below that folder.
pub(crate) fn is_safe_path(path: &str) -> bool {
    (1..=1024).contains(&path.len())
        && !path.contains(['\\', '\0'])
        && !path.chars().any(char::is_control)
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_name_has_an_owner_and_an_optional_revision() {
        let default: RepoRef = "meta-llama/Llama-3.1-8B".parse().expect("valid");
        assert_eq!(default.repo.to_string(), "meta-llama/Llama-3.1-8B");
        assert_eq!(default.revision, "main");
        let pinned: RepoRef = "a/b_c@refs/pr/1".parse().expect("valid");
        assert_eq!(
            (pinned.repo.name(), pinned.revision.as_str()),
            ("b_c", "refs/pr/1")
        );
        for bad in [
            "",
            "a",
            "/b",
            "a/",
            "a/b/c",
            "a b/c",
            "../x",
            "a/..",
            "a/b.git",
            "-a/b",
            "a/b--c",
            "a/b@",
            "a/b@-x",
            "a/b@x..y",
            "a/b@x y",
            "a/b@x?y",
            "https://h/a/b",
        ] {
            assert!(
                matches!(bad.parse::<RepoRef>(), Err(HubError::InvalidName { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_safe_path_cannot_leave_its_folder() {
        for good in ["a", "a/b.json", "ä/ö", "..a", "a b"] {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb",
        ] {
            assert!(!is_safe_path(bad), "{bad}");
        }
    }
}
