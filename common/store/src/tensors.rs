//! Safetensors files that are written as a stream and read by position.
//!
//! The writer takes the tensors in the declared order and never holds a whole one. The reader uses positioned reads, so that
//! a stage can work on a few windows of a large file. The data section starts at a multiple of 8 bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::atomic::{AtomicFile, Written};
use crate::error::StoreError;

/// Largest header that is read, in bytes: the limit of the safetensors format.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes that are read and converted at a time.
const PIECE: u64 = 8 << 20;

/// Element types of tensors in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TensorDtype {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit IEEE float.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 32-bit integer.
    U32,
}

impl TensorDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// Name, type and shape of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: TensorDtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

impl TensorDecl {
    /// The declaration of a tensor.
    pub fn new(name: impl Into<String>, dtype: TensorDtype, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    /// Size of the data in bytes, or `None` if it overflows.
    pub fn byte_len(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(self.dtype.size() as u64, |total, &dim| {
                total.checked_mul(dim as u64)
            })
    }
}

#[derive(Serialize, Deserialize)]
struct WireTensor {
    dtype: TensorDtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Writes the declared tensors one after another.
#[derive(Debug)]
pub struct TensorFileWriter {
    file: AtomicFile,
    expected: u64,
    written: u64,
}

impl TensorFileWriter {
    /// Writes the header. The data follows with [`TensorFileWriter::append`], in the order of `tensors`.
    pub fn create(path: &Utf8Path, tensors: &[TensorDecl]) -> Result<Self, StoreError> {
        Self::begin(AtomicFile::create(path)?, tensors)
    }

    pub(crate) fn begin(mut file: AtomicFile, tensors: &[TensorDecl]) -> Result<Self, StoreError> {
        let mut header = BTreeMap::new();
        let mut offset = 0u64;
        for tensor in tensors {
            let end = tensor
                .byte_len()
                .and_then(|len| offset.checked_add(len))
                .ok_or_else(|| {
                    StoreError::malformed(
                        file.target(),
                        "tensor file",
                        format!("shape {:?} of `{}`", tensor.shape, tensor.name),
                        "a size below 2^64 bytes",
                    )
                })?;
            let wire = WireTensor {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                data_offsets: (offset, end),
            };
            if header.insert(tensor.name.clone(), wire).is_some() {
                return Err(StoreError::malformed(
                    file.target(),
                    "tensor file",
                    format!("tensor `{}` twice", tensor.name),
                    "distinct names",
                ));
            }
            offset = end;
        }
        let mut text = serde_json::to_vec(&header)
            .map_err(|error| StoreError::io("encode", file.target())(error.into()))?;
        text.resize(text.len().next_multiple_of(8), b' ');
        file.append(&(text.len() as u64).to_le_bytes())?;
        file.append(&text)?;
        Ok(Self {
            file,
            expected: offset,
            written: 0,
        })
    }

    /// Appends data of the declared tensors, in order. A call may end within a tensor.
    pub fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.written += data.len() as u64;
        self.file.append(data)
    }

    /// Appends f32 values. Takes no more memory than a piece of them.
    pub fn append_f32(&mut self, values: &[f32]) -> Result<(), StoreError> {
        let pieces = values.chunks(PIECE as usize / 4);
        pieces
            .into_iter()
            .try_for_each(|piece| self.append(&f32_bytes(piece)))
    }

    /// The name under which the file will appear.
    pub fn target(&self) -> &Utf8Path {
        self.file.target()
    }

    /// Publishes the file. It is an error if the data is not as long as declared.
    pub fn commit(self) -> Result<Written, StoreError> {
        if self.written != self.expected {
            return Err(StoreError::malformed(
                self.file.target(),
                "tensor file",
                format!("{} bytes of data", self.written),
                format!("{} bytes as declared", self.expected),
            ));
        }
        self.file.commit()
    }
}

#[derive(Debug, Clone)]
struct Entry {
    decl: TensorDecl,
    offset: u64,
    len: u64,
}

/// A tensor file that is open for positioned reads; its header is valid.
#[derive(Debug)]
pub struct TensorFile {
    path: Utf8PathBuf,
    file: std::fs::File,
    entries: Vec<Entry>,
}

impl TensorFile {
    /// Opens a file and validates its header: size, bounds, overlaps, and that every range has the size of its shape.
    pub fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        let bad = |found: String, expected: &str| {
            StoreError::malformed(path, "tensor file", found, expected)
        };
        let file = uc_input::open(path).map_err(StoreError::io("open", path))?;
        let size = file.metadata().map_err(StoreError::io("open", path))?.len();
        let mut prefix = [0; 8];
        if size < 8 {
            return Err(bad(
                format!("{size} bytes"),
                "at least 8 bytes of header size",
            ));
        }
        file.read_exact_at(&mut prefix, 0)
            .map_err(StoreError::io("read", path))?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER || header_len > size - 8 {
            return Err(bad(
                format!("a header of {header_len} bytes"),
                "one within the file",
            ));
        }
        let mut text = vec![0; header_len as usize];
        file.read_exact_at(&mut text, 8)
            .map_err(StoreError::io("read", path))?;
        let mut header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)
            .map_err(|error| bad(format!("header: {error}"), "a JSON object of tensors"))?;
        header.remove("__metadata__");
        let data = 8 + header_len;
        let mut entries = Vec::with_capacity(header.len());
        for (name, value) in header {
            let wire: WireTensor = serde_json::from_value(value).map_err(|error| {
                bad(format!("tensor `{name}`: {error}"), "dtype, shape, offsets")
            })?;
            let (start, end) = wire.data_offsets;
            let decl = TensorDecl {
                name,
                dtype: wire.dtype,
                shape: wire.shape,
            };
            if start > end || end > size - data || decl.byte_len() != Some(end - start) {
                return Err(bad(
                    format!("tensor `{}` {:?} at {start}..{end}", decl.name, decl.shape),
                    "a range inside the file with the size of the shape",
                ));
            }
            entries.push(Entry {
                decl,
                offset: data + start,
                len: end - start,
            });
        }
        entries.sort_by_key(|entry| (entry.offset, entry.len));
        let mut expected = data;
        for entry in &entries {
            if entry.offset != expected {
                return Err(bad(
                    format!("tensor `{}` at byte {}", entry.decl.name, entry.offset),
                    "tensors without gaps or overlaps",
                ));
            }
            expected += entry.len;
        }
        if expected != size {
            return Err(bad(
                format!("{size} bytes"),
                "no bytes after the last tensor",
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            entries,
        })
    }

    /// The tensors in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorDecl> {
        self.entries.iter().map(|entry| &entry.decl)
    }

    /// The declaration of one tensor.
    pub fn tensor(&self, name: &str) -> Result<&TensorDecl, StoreError> {
        self.entry(name).map(|entry| &entry.decl)
    }

    /// The file's path.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// All bytes of one tensor.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let entry = self.entry(name)?;
        self.read_range(entry.offset, entry.len)
    }

    /// All values of one floating-point tensor as f32; exact for F32, F16 and BF16. Takes no more memory than the values.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, StoreError> {
        let entry = self.entry(name)?;
        self.floats(&entry.decl, entry.offset, entry.len)
    }

    /// Values of `count` rows of the leading dimension, beginning with row `first`, as f32.
    pub fn read_rows_f32(
        &self,
        name: &str,
        first: usize,
        count: usize,
    ) -> Result<Vec<f32>, StoreError> {
        let (offset, len) = self.rows(name, first, count)?;
        self.floats(self.tensor(name)?, offset, len)
    }

    /// All values of one tensor of 16-bit elements, as bits. Takes no more memory than the values.
    pub fn read_u16(&self, name: &str) -> Result<Vec<u16>, StoreError> {
        let mut values = Vec::with_capacity(self.entry(name)?.len as usize / 2);
        self.read_pieces(name, |bytes| {
            let (pairs, _) = bytes.as_chunks::<2>();
            values.extend(pairs.iter().map(|&pair| u16::from_le_bytes(pair)));
        })?;
        Ok(values)
    }

    /// Passes the bytes of one tensor to `sink`, in pieces.
    pub fn read_pieces(&self, name: &str, mut sink: impl FnMut(&[u8])) -> Result<(), StoreError> {
        let entry = self.entry(name)?;
        let mut bytes = Vec::new();
        for (offset, len) in pieces(entry.offset, entry.len) {
            self.read_into(&mut bytes, offset, len)?;
            sink(&bytes);
        }
        Ok(())
    }

    fn floats(&self, decl: &TensorDecl, offset: u64, len: u64) -> Result<Vec<f32>, StoreError> {
        let mut values = Vec::with_capacity(len as usize / decl.dtype.size());
        let mut bytes = Vec::new();
        for (offset, len) in pieces(offset, len) {
            self.read_into(&mut bytes, offset, len)?;
            if !extend_f32(&mut values, decl.dtype, &bytes) {
                return Err(StoreError::malformed(
                    &self.path,
                    "tensor file",
                    format!("`{}` of type {:?}", decl.name, decl.dtype),
                    "F32, F16 or BF16",
                ));
            }
        }
        Ok(values)
    }

    /// Bytes of `count` rows of the leading dimension, beginning with row `first`.
    pub fn read_rows(&self, name: &str, first: usize, count: usize) -> Result<Vec<u8>, StoreError> {
        let (offset, len) = self.rows(name, first, count)?;
        self.read_range(offset, len)
    }

    /// Offset and length of some rows.
    fn rows(&self, name: &str, first: usize, count: usize) -> Result<(u64, u64), StoreError> {
        let entry = self.entry(name)?;
        let rows = entry.decl.shape.first().copied().unwrap_or(1);
        if first.checked_add(count).is_none_or(|end| end > rows) {
            return Err(StoreError::malformed(
                &self.path,
                "tensor file",
                format!("rows {first}+{count} of `{name}` requested"),
                format!("at most {rows} rows"),
            ));
        }
        let row = if rows == 0 {
            0
        } else {
            entry.len / rows as u64
        };
        Ok((entry.offset + first as u64 * row, count as u64 * row))
    }

    fn entry(&self, name: &str) -> Result<&Entry, StoreError> {
        self.entries
            .iter()
            .find(|entry| entry.decl.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = self.tensors().map(|decl| decl.name.as_str()).collect();
                StoreError::malformed(
                    &self.path,
                    "tensor file",
                    format!("tensors {}", known.join(", ")),
                    format!("a tensor `{name}`"),
                )
            })
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.read_into(&mut bytes, offset, len)?;
        Ok(bytes)
    }

    fn read_into(&self, bytes: &mut Vec<u8>, offset: u64, len: u64) -> Result<(), StoreError> {
        bytes.resize(len as usize, 0);
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(StoreError::io("read", &self.path))
    }
}

/// Offsets and lengths of the pieces of a range that are read one at a time; whole elements of every type.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len.div_ceil(PIECE)).map(move |piece| {
        let start = piece * PIECE;
        (offset + start, PIECE.min(len - start))
    })
}

/// Little-endian values as f32; `None` for types that are not 16- or 32-bit floats.
pub fn to_f32(dtype: TensorDtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut values = Vec::with_capacity(bytes.len() / dtype.size());
    extend_f32(&mut values, dtype, bytes).then_some(values)
}

/// Appends little-endian values as f32; false for types that are not 16- or 32-bit floats.
fn extend_f32(values: &mut Vec<f32>, dtype: TensorDtype, bytes: &[u8]) -> bool {
    let words = bytes.chunks_exact(4);
    let halves = bytes.chunks_exact(2);
    let halves = halves.map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        TensorDtype::F32 => {
            values.extend(words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        TensorDtype::BF16 => {
            values.extend(halves.map(|bits| f32::from_bits(u32::from(bits) << 16)))
        }
        TensorDtype::F16 => values.extend(halves.map(|bits| half::f16::from_bits(bits).to_f32())),
        _ => return false,
    }
    true
}

/// f32 values as little-endian bytes.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(folder: &Utf8Path) -> Utf8PathBuf {
        let path = folder.join("t.safetensors");
        let decls = [
            TensorDecl::new("b", TensorDtype::F32, &[3, 2]),
            TensorDecl::new("a", TensorDtype::U8, &[5]),
        ];
        let mut writer = TensorFileWriter::create(&path, &decls).expect("header");
        let floats: Vec<u8> = (0..6u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
        writer.append(&floats[..7]).expect("data");
        writer.append(&floats[7..]).expect("data");
        writer.append(&[1, 2, 3, 4, 5]).expect("data");
        writer.commit().expect("published");
        path
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("utf-8");
        (folder, path)
    }

    #[test]
    fn tensors_are_read_whole_and_by_rows() {
        let (_keep, folder) = folder();
        let file = TensorFile::open(&sample(&folder)).expect("valid");
        assert_eq!(
            file.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(),
            ["b", "a"]
        );
        assert_eq!(file.read("a").expect("a"), [1, 2, 3, 4, 5]);
        let row = file.read_rows("b", 1, 1).expect("row");
        assert_eq!(row, [2f32.to_le_bytes(), 3f32.to_le_bytes()].concat());
        assert!(file.read("c").is_err());
        assert!(file.read_rows("b", 2, 2).is_err());
    }

    #[test]
    fn floats_of_three_types_are_read_exactly_and_integers_are_refused() {
        let (_keep, folder) = folder();
        let path = folder.join("f");
        let decls = [
            ("x", TensorDtype::F32),
            ("y", TensorDtype::BF16),
            ("z", TensorDtype::F16),
            ("i", TensorDtype::I16),
        ]
        .map(|(name, dtype)| TensorDecl::new(name, dtype, &[1]));
        let mut writer = TensorFileWriter::create(&path, &decls).expect("header");
        writer.append_f32(&[1.5]).expect("f32");
        writer.append(&[0xc0, 0x3f]).expect("bf16 1.5");
        writer
            .append(&[0x00, 0x3e, 0, 0])
            .expect("f16 1.5 and an integer");
        writer.commit().expect("published");
        let file = TensorFile::open(&path).expect("valid");
        for name in ["x", "y", "z"] {
            assert_eq!(file.read_f32(name).expect(name), [1.5]);
        }
        assert!(matches!(
            file.read_f32("i"),
            Err(StoreError::Malformed { .. })
        ));
    }

    #[test]
    fn the_safetensors_crate_reads_what_is_written() {
        let (_keep, folder) = folder();
        let bytes = std::fs::read(sample(&folder)).expect("file");
        let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
        assert_eq!(parsed.tensor("b").expect("b").shape(), [3, 2]);
        assert_eq!(parsed.tensor("a").expect("a").data(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn missing_data_and_duplicate_names_are_refused() {
        let (_keep, folder) = folder();
        let path = folder.join("t");
        let decl = TensorDecl::new("a", TensorDtype::U8, &[5]);
        let writer = TensorFileWriter::create(&path, std::slice::from_ref(&decl)).expect("header");
        assert!(matches!(writer.commit(), Err(StoreError::Malformed { .. })));
        assert!(!path.exists());
        assert!(TensorFileWriter::create(&path, &[decl.clone(), decl]).is_err());
        let huge = TensorDecl::new("a", TensorDtype::F32, &[usize::MAX, 2]);
        assert!(TensorFileWriter::create(&path, &[huge]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn truncated_or_flipped_headers_never_panic(cut in 0usize..220, at in 0usize..120, bit in 0u8..8) {
            let (_keep, folder) = folder();
            let path = sample(&folder);
            let mut bytes = std::fs::read(&path).expect("file");
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            bytes.truncate(bytes.len().saturating_sub(cut % bytes.len()));
            crate::atomic::write_bytes(&path, &bytes).expect("written");
            if let Ok(file) = TensorFile::open(&path) {
                for decl in file.tensors().cloned().collect::<Vec<_>>() {
                    let _ = file.read(&decl.name);
                }
            }
        }
    }
}
