//! Names: repositories, revisions, files in them, commits and git blobs.

use std::fmt;
use std::str::FromStr;

use crate::error::HubError;

/// `org/name`, as the Hub spells it.
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

    /// The name below the owner.
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
        let part = |part: &str| {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..=96).contains(&part.len())
                && part.bytes().all(word)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        match text.split_once('/') {
            Some((org, name)) if part(org) && part(name) && !name.ends_with(".git") => Ok(Self {
                org: org.into(),
                name: name.into(),
            }),
            _ => Err(HubError::Name {
                what: "repository",
                found: text.into(),
                expected: "org/name of letters, digits, `-`, `_` and `.`",
            }),
        }
    }
}

/// `org/name[@revision]`; the revision is a branch, a tag or a commit, `main` when none is given.
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

/// Refuses what git does not take as the name of a revision.
pub(crate) fn check_revision(revision: &str) -> Result<(), HubError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte);
    let ok = (1..=255).contains(&revision.len())
        && revision.bytes().all(word)
        && !revision.contains("..")
        && !revision.starts_with(['-', '/', '.'])
        && !revision.ends_with(['/', '.']);
    if ok {
        return Ok(());
    }
    Err(HubError::Name {
        what: "revision",
        found: revision.into(),
        expected: "a branch, a tag or a commit",
    })
}

/// Whether a path of a repository stays below the folder that it is put into.
pub(crate) fn is_safe_path(path: &str) -> bool {
    (1..=1024).contains(&path.len())
        && !path.contains(['\\', '\0'])
        && !path.chars().any(char::is_control)
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
}

macro_rules! git_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 20]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = HubError;

            fn from_str(text: &str) -> Result<Self, HubError> {
                let mut bytes = [0; 20];
                match hex::decode_to_slice(text, &mut bytes) {
                    Ok(()) => Ok(Self(bytes)),
                    Err(_) => Err(HubError::Name {
                        what: $what,
                        found: text.chars().take(80).collect(),
                        expected: "40 hexadecimal digits",
                    }),
                }
            }
        }
    };
}

git_id!(
    /// The id of a commit.
    CommitId,
    "commit"
);
git_id!(
    /// The id of a git blob: SHA-1 over `blob`, its size and its bytes.
    BlobId,
    "git blob"
);

/// Percent-encodes everything but unreserved characters and those in `keep`.
pub(crate) fn encode(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if plain || keep.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_with_an_owner_and_perhaps_a_revision() {
        let plain: RepoRef = "meta-llama/Llama-3.1-8B".parse().expect("valid");
        assert_eq!(plain.repo.to_string(), "meta-llama/Llama-3.1-8B");
        assert_eq!(plain.revision, "main");
        let at: RepoRef = "a/b_c@refs/pr/1".parse().expect("valid");
        assert_eq!((at.repo.name(), at.revision.as_str()), ("b_c", "refs/pr/1"));
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
                matches!(bad.parse::<RepoRef>(), Err(HubError::Name { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_path_cannot_leave_its_folder() {
        for good in ["a", "a/b.json", "ä/ö", "..a", "a b"] {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb",
        ] {
            assert!(!is_safe_path(bad), "{bad}");
        }
    }

    #[test]
    fn ids_are_forty_digits() {
        let text = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(text.parse::<BlobId>().expect("valid").to_string(), text);
        assert!(matches!(
            "ce01".parse::<CommitId>(),
            Err(HubError::Name { .. })
        ));
        assert_eq!(encode("a b/ü?", "/"), "a%20b/%C3%BC%3F");
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
