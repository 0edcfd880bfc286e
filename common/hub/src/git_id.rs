//! SHA-1 ids that git gives to commits and blobs.

use std::fmt;
use std::str::FromStr;

use crate::error::HubError;

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
                    Err(_) => Err(HubError::InvalidName {
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
    /// The id of a git blob: SHA-1 over a header (`blob`, the size, a zero byte) and the content.
    BlobId,
    "git blob"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_forty_hexadecimal_digits() {
        let text = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(text.parse::<BlobId>().expect("valid").to_string(), text);
        assert!(matches!(
            "ce01".parse::<CommitId>(),
            Err(HubError::InvalidName { .. })
        ));
    }
}
