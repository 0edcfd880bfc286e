//! Errors in the weights of a model folder, one variant for each kind.

use std::fmt;
use std::path::PathBuf;

use uc_input::printable;

use super::dtype::SourceDtype;

/// Why weights are refused.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error("{}: cannot read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The folder has neither a weight file nor an index.
    #[error("{}: found {found}", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is there instead, what was expected and what to do.
        found: String,
    },
    /// The file ends before its header does.
    #[error("{}: truncated: found {found} bytes, but the header alone takes {expected}", path.display())]
    TruncatedHeader {
        /// The file.
        path: PathBuf,
        /// Size of the file.
        found: u64,
        /// Bytes of the header, including its length field.
        expected: u64,
    },
    /// The header is larger than the format allows.
    #[error("{}: header of {found} bytes, expected at most {expected}", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Size of the header.
        found: u64,
        /// The limit.
        expected: u64,
    },
    /// The header is not valid JSON, or not a header (wrong types, unknown element types).
    #[error("{}: invalid header", path.display())]
    HeaderJson {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// A header names a tensor twice.
    #[error("{}: duplicate tensor name {name}", path.display())]
    RepeatedName {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The byte count of a tensor does not match its shape and type.
    #[error("{}: tensor {name}: {found} bytes, expected {expected} for {dtype} {shape:?}", path.display())]
    ByteCount {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: SourceDtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes between its offsets; negative if they are swapped.
        found: i128,
        /// Bytes that follow from its shape and type.
        expected: u128,
    },
    /// A tensor extends beyond the end of its file.
    #[error("{}: tensor {name} ends at byte {expected}, but the file has only {found} bytes (truncated?)", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Size of the file.
        found: u64,
        /// Offset of the end of the tensor in the file.
        expected: u128,
    },
    /// Two tensors share bytes.
    #[error("{}: tensors {name} and {other} overlap", path.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor at the higher offset.
        name: String,
        /// The tensor at the lower offset.
        other: String,
    },
    /// Some bytes do not belong to any tensor.
    #[error("{}: {found} bytes at data offset {offset} do not belong to any tensor", path.display())]
    Unclaimed {
        /// The file.
        path: PathBuf,
        /// Where they begin, counted from the end of the header.
        offset: u64,
        /// Number of bytes.
        found: u64,
    },
    /// Two shards have a tensor of the same name.
    #[error("{}: tensor {name} is also in {}", path.display(), other.display())]
    DuplicateTensor {
        /// The later shard.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The earlier shard.
        other: PathBuf,
    },
    /// The index is not valid JSON, or not an index.
    #[error("{}: invalid index", path.display())]
    IndexJson {
        /// The index.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// The index names a shard by something other than a plain file name.
    #[error("{}: tensor {name}: found shard {shard:?}, expected a plain file name", path.display())]
    ShardPath {
        /// The index.
        path: PathBuf,
        /// A tensor of that shard.
        name: String,
        /// The shard as the index names it.
        shard: String,
    },
    /// The index names a shard that is not in the folder.
    #[error("{}: shard {shard} is not in the folder, expected every shard that holds a tensor of the model", path.display())]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The shard.
        shard: String,
    },
    /// The index and the shards disagree about the location of a tensor.
    #[error("{}: tensor {name}: found in {found}, expected in {expected} according to the index", path.display())]
    IndexMismatch {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shard that has it, or "no shard".
        found: String,
        /// The shard that the index names, or "no shard".
        expected: String,
    },
    /// A requested tensor does not exist.
    #[error("{}: no tensor {name}", path.display())]
    NoTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Requested rows of a tensor do not exist.
    #[error("{}: tensor {name}: requested {count} rows starting at row {first}, but it has {rows} rows", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First requested row.
        first: usize,
        /// Number of requested rows.
        count: usize,
        /// Number of rows of the tensor.
        rows: usize,
    },
    /// A tensor cannot be read as f32 because it does not have a weight type.
    #[error("{}: tensor {name}: found type {found}, expected F32, F16 or BF16", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        found: SourceDtype,
    },
    /// A weight is infinite or not a number.
    #[error("{}: tensor {name}: element {index} is {found}, expected a finite number", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Index of the first such element, in row-major order.
        index: usize,
        /// Its value.
        found: f32,
    },
    /// Every element of the embedding or of the head is zero: the model cannot tell one token from another.
    #[error(
        "{}: tensor {name}: found {count} zeros, expected weights; was the file downloaded or converted completely?",
        path.display()
    )]
    AllZero {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its number of elements.
        count: usize,
    },
    /// The tensors are not those of the configured model.
    #[error("{}: the tensors do not match config.json:{}", path.display(), list(findings))]
    Mismatch {
        /// The folder.
        path: PathBuf,
        /// All differences.
        findings: Vec<Finding>,
    },
    /// The weights are quantized.
    #[error(
        "{}: found quantized weights in {count} tensors ({name}: {found}), expected F32, F16 or BF16; convert the model \
         to one of these types first, or take the original",
        path.display()
    )]
    Quantized {
        /// The folder.
        path: PathBuf,
        /// One of the tensors.
        name: String,
        /// What it is.
        found: String,
        /// Number of such tensors.
        count: usize,
    },
    /// The names of all tensors begin differently.
    #[error(
        "{}: found {} before the names of the tensors, expected {}: {count} tensors are missing. The files hold another \
         class of model than config.json describes (a part of a larger model, or a model without its head); save them \
         from the AutoModelForCausalLM",
        path.display(), quoted(found), quoted(expected)
    )]
    Prefix {
        /// The folder.
        path: PathBuf,
        /// The prefix of the names.
        found: String,
        /// The prefix that they should have.
        expected: String,
        /// Number of tensors that are missing under their planned names.
        count: usize,
    },
    /// A name in a file cannot be printed as it is.
    #[error("{}: found the name {}, expected no control characters", path.display(), printable(name))]
    Name {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

/// One difference between the tensors of a folder and the plan of the configured model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Finding {
    /// The tensor is planned but not in the folder.
    Missing { name: String, expected: Vec<usize> },
    /// The tensor is in the folder but not planned.
    Unexpected { name: String, found: Vec<usize> },
    /// The shape differs.
    Shape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    /// The element type is not a weight type.
    Type { name: String, found: SourceDtype },
    /// The configuration ties the head to the embedding, but the folder has a different head.
    UntiedHead { name: String, embedding: String },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Missing { name, expected } => {
                write!(f, "{name}: missing, expected shape {expected:?}")
            }
            Finding::Unexpected { name, found } => {
                write!(f, "{name}: unexpected tensor of shape {found:?}")
            }
            Finding::Shape {
                name,
                found,
                expected,
            } => {
                write!(f, "{name}: shape: found {found:?}, expected {expected:?}")
            }
            Finding::Type { name, found } => {
                write!(f, "{name}: type: found {found}, expected F32, F16 or BF16")
            }
            Finding::UntiedHead { name, embedding } => {
                write!(
                    f,
                    "{name}: differs from {embedding}, expected the same values (tied head)"
                )
            }
        }
    }
}

/// Findings that are listed, at most.
const LISTED: usize = 20;

fn list(findings: &[Finding]) -> String {
    let listed = findings.iter().take(LISTED);
    let mut text: String = listed.map(|finding| format!("\n  {finding}")).collect();
    if findings.len() > LISTED {
        let more = findings.len() - LISTED;
        text += &format!("\n  and {more} more, {} in all", findings.len());
    }
    text
}

/// A prefix in quotation marks.
fn quoted(prefix: &str) -> String {
    match prefix {
        "" => "nothing".into(),
        prefix => format!("\"{}\"", printable(prefix)),
    }
}
