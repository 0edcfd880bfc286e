//! Everything that can be wrong with the weights of a model folder, one variant each.

use std::fmt;
use std::path::PathBuf;

use super::SourceDtype;

/// Why weights are refused.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder has neither a weight file nor an index.
    #[error("{}: neither model.safetensors nor model.safetensors.index.json is there", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The file ends before its header does.
    #[error("{}: truncated: {found} bytes, the header alone needs {expected}", path.display())]
    TruncatedHeader {
        /// The file.
        path: PathBuf,
        /// Size of the file.
        found: u64,
        /// Bytes that the header needs, its length field included.
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
    /// The header is not the JSON that it should be (syntax, types, unknown element types).
    #[error("{}: header: {source}", path.display())]
    HeaderJson {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// A header or an index names a tensor twice.
    #[error("{}: tensor {name} is named twice", path.display())]
    RepeatedName {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor's bytes do not fit its shape and type.
    #[error("{}: tensor {name}: {found} bytes, expected {expected} for {dtype} {shape:?}", path.display())]
    ByteCount {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Type of an element.
        dtype: SourceDtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes between its offsets (negative if they are swapped).
        found: i128,
        /// Bytes of its shape and type.
        expected: u128,
    },
    /// A tensor lies beyond the end of its file.
    #[error("{}: tensor {name} ends at byte {expected}, but the file has {found} bytes (truncated?)", path.display())]
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
        /// The later one.
        name: String,
        /// The earlier one.
        other: String,
    },
    /// Bytes that belong to no tensor.
    #[error("{}: {found} bytes at data offset {offset} belong to no tensor, expected none", path.display())]
    Unclaimed {
        /// The file.
        path: PathBuf,
        /// Where they begin, counted from the end of the header.
        offset: u64,
        /// How many.
        found: u64,
    },
    /// Two shards hold a tensor of the same name.
    #[error("{}: tensor {name} is also in {}", path.display(), other.display())]
    DuplicateTensor {
        /// The later shard.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The earlier shard.
        other: PathBuf,
    },
    /// The index is not the JSON that it should be.
    #[error("{}: {source}", path.display())]
    IndexJson {
        /// The index.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// The index is larger than any index.
    #[error("{}: {found} bytes, expected at most {expected}", path.display())]
    IndexTooLarge {
        /// The index.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The limit.
        expected: u64,
    },
    /// The index names a shard outside the folder.
    #[error("{}: tensor {name}: shard {shard:?}, expected a plain file name", path.display())]
    ShardPath {
        /// The index.
        path: PathBuf,
        /// A tensor that is said to be there.
        name: String,
        /// The shard as named.
        shard: String,
    },
    /// The index names a shard that is not there.
    #[error("{}: shard {shard} is not in the folder", path.display())]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The shard.
        shard: String,
    },
    /// The index and the shards do not agree about a tensor.
    #[error("{}: tensor {name}: the index says {expected}, found in {found}", path.display())]
    IndexMismatch {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Where it is: a shard, or nowhere.
        found: String,
        /// Where the index has it: a shard, or nowhere.
        expected: String,
    },
    /// A tensor that is not there was asked for.
    #[error("{}: there is no tensor {name}", path.display())]
    NoTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Rows that a tensor does not have were asked for.
    #[error("{}: tensor {name}: rows {first} + {count} asked for, it has {rows}", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First row asked for.
        first: usize,
        /// Rows asked for, at least 1.
        count: usize,
        /// Rows that there are.
        rows: usize,
    },
    /// A tensor that is not of a weight type was asked for as f32.
    #[error("{}: tensor {name}: {found}, expected F32, F16 or BF16", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: SourceDtype,
    },
    /// A weight is infinite or not a number.
    #[error("{}: tensor {name}: element {index} is {found}, expected a finite number", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Index of the first such element, row by row.
        index: usize,
        /// Its value.
        found: f32,
    },
    /// The tensors are not those of the configured model.
    #[error("{}: the tensors do not fit config.json:{}", path.display(), list(findings))]
    Mismatch {
        /// The folder.
        path: PathBuf,
        /// Every difference.
        findings: Vec<Finding>,
    },
}

/// One difference between the tensors of a folder and the plan of the configured model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Finding {
    /// The plan has it, the folder has not.
    Missing { name: String, expected: Vec<usize> },
    /// The folder has it, the plan has not.
    LeftOver { name: String, found: Vec<usize> },
    /// The shape differs.
    Shape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    /// The element type is not one of the weight types.
    Type { name: String, found: SourceDtype },
    /// The configuration ties the head to the embedding, but the folder has another head.
    OtherHead { name: String, embedding: String },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Missing { name, expected } => {
                write!(f, "{name}: missing, expected {expected:?}")
            }
            Finding::LeftOver { name, found } => {
                write!(
                    f,
                    "{name}: left over, found {found:?}, expected no such tensor"
                )
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
            Finding::OtherHead { name, embedding } => {
                write!(
                    f,
                    "{name}: differs from {embedding}, expected the same (tied head)"
                )
            }
        }
    }
}

fn list(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("\n  {finding}"))
        .collect()
}
