//! scaffold.uc: the model's exact tensors outside the layers (embeddings, final norm, output head).
//!
//! Owns the streaming writer and the reader, which reads values by position. Embeddings may take several GB: the reader
//! holds at most one tensor, the writer none. The byte layout is in the crate's documentation.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::check::check_unique;
use crate::error::{self, PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::{Cursor, check_zero, narrow, padding_to};
use crate::{
    FORMAT_VERSION, MAX_EXACT_TENSORS, MAX_NON_LAYER_HEADER, NON_LAYER_ALIGNMENT, NON_LAYER_FILE,
    NON_LAYER_FIXED, NON_LAYER_MAGIC, check_magic,
};

/// The header: its fixed part and the descriptors.
fn encode_header(decls: &[ExactDecl], origin: &str) -> Result<Vec<u8>, PackError> {
    let count: u16 = narrow(decls.len(), MAX_EXACT_TENSORS, "number of tensors", origin)?;
    let mut header = NON_LAYER_MAGIC.to_vec();
    header.extend(FORMAT_VERSION.to_le_bytes());
    header.extend(count.to_le_bytes());
    header.extend([0; 4]);
    for decl in decls {
        decl.put(&mut header, origin)?;
    }
    let length: u32 = narrow(header.len(), MAX_NON_LAYER_HEADER, "header length", origin)?;
    header[12..16].copy_from_slice(&length.to_le_bytes());
    check_names(decls, origin)?;
    Ok(header)
}

fn check_names(decls: &[ExactDecl], origin: &str) -> Result<(), PackError> {
    check_unique(
        origin,
        "tensor names",
        decls.iter().map(|decl| decl.name.as_str()),
    )
}

/// Offset of every tensor's values, and the length of the file, given the length of the header.
fn layout(header: u64, decls: &[ExactDecl], origin: &str) -> Result<(Vec<u64>, u64), PackError> {
    let mut end = header;
    let mut starts = Vec::with_capacity(decls.len());
    for decl in decls {
        end += padding_to(end, NON_LAYER_ALIGNMENT);
        starts.push(end);
        // Both terms are below 2^60, so the sum cannot overflow.
        end += decl.byte_len(origin)?;
        if end >= 1 << 60 {
            return Err(invalid(origin, "file length", end, "below 2^60"));
        }
    }
    Ok((starts, end))
}

/// Forwards bytes, and rejects any beyond the number that the descriptor declares.
struct BoundedWriter<'a, W> {
    out: &'a mut W,
    remaining: u64,
}

impl<W: Write> Write for BoundedWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.remaining {
            let message = format!(
                "{} bytes more than declared",
                bytes.len() as u64 - self.remaining
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let written = self.out.write(bytes)?;
        self.remaining -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a file of non-layer tensors to `out` and returns its length. `write_values(i, sink)` must write exactly the
/// bytes of tensor `i` to the sink.
///
/// # Errors
/// `Invalid` for an invalid descriptor or a wrong number of bytes, `Io` with the error of `out` or of `write_values`.
pub fn write_non_layer<W: Write>(
    out: &mut W,
    decls: &[ExactDecl],
    mut write_values: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<u64, PackError> {
    let origin = NON_LAYER_FILE;
    let header = encode_header(decls, origin)?;
    let (_, length) = layout(header.len() as u64, decls, origin)?;
    out.write_all(&header).map_err(error::io(origin))?;
    let mut written = header.len() as u64;
    for (i, decl) in decls.iter().enumerate() {
        let padding = padding_to(written, NON_LAYER_ALIGNMENT);
        out.write_all(&[0; NON_LAYER_ALIGNMENT][..padding as usize])
            .map_err(error::io(origin))?;
        let expected = decl.byte_len(origin)?;
        let mut sink = BoundedWriter {
            out,
            remaining: expected,
        };
        write_values(i, &mut sink).map_err(error::io(&decl.name))?;
        if sink.remaining != 0 {
            let found = format!("{} bytes", expected - sink.remaining);
            return Err(invalid(
                origin,
                &decl.name,
                found,
                format!("{expected} bytes"),
            ));
        }
        written += padding + expected;
    }
    debug_assert_eq!(written, length);
    Ok(length)
}

/// An open file of non-layer tensors. Its header and padding have been checked; values are read on demand.
#[derive(Debug)]
pub struct NonLayerFile {
    file: File,
    origin: String,
    decls: Vec<ExactDecl>,
    /// `[decls]` offset of each tensor's values.
    starts: Vec<u64>,
}

impl NonLayerFile {
    /// Opens a file and checks everything but the values.
    ///
    /// # Errors
    /// `Io`, `Magic`, `Version`, `Truncated`, `Invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let file = uc_input::open(path.as_ref()).map_err(error::io(&origin))?;
        Self::from_file(file, &origin)
    }

    /// As [`NonLayerFile::open`], for an open file; `origin` names it in errors.
    ///
    /// # Errors
    /// `Io`, `Magic`, `Version`, `Truncated`, `Invalid`.
    pub fn from_file(file: File, origin: &str) -> Result<Self, PackError> {
        let origin = origin.to_owned();
        let length = file.metadata().map_err(error::io(&origin))?.len();
        let (header_length, decls) = read_header(&file, length, &origin)?;
        let (starts, expected) = layout(header_length, &decls, &origin)?;
        if length != expected {
            let found = format!("{length} bytes");
            return Err(invalid(
                &origin,
                "file length",
                found,
                format!("{expected} bytes"),
            ));
        }
        let non_layer = Self {
            file,
            origin,
            decls,
            starts,
        };
        non_layer.check_padding(header_length)?;
        Ok(non_layer)
    }

    fn check_padding(&self, header_length: u64) -> Result<(), PackError> {
        let mut end = header_length;
        for (decl, start) in self.decls.iter().zip(&self.starts) {
            let mut padding = vec![0; (start - end) as usize];
            self.file
                .read_exact_at(&mut padding, end)
                .map_err(error::io(&self.origin))?;
            check_zero(&padding, &decl.name, &self.origin)?;
            end = start + decl.byte_len(&self.origin)?;
        }
        Ok(())
    }

    /// The descriptors of the tensors, in file order.
    pub fn tensors(&self) -> &[ExactDecl] {
        &self.decls
    }

    fn index_of(&self, name: &str) -> Result<usize, PackError> {
        let missing = || PackError::NoTensor {
            origin: self.origin.clone(),
            tensor: name.to_owned(),
        };
        self.decls
            .iter()
            .position(|d| d.name == name)
            .ok_or_else(missing)
    }

    /// All bytes of a tensor.
    ///
    /// # Errors
    /// `NoTensor`, `Io`.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, PackError> {
        let i = self.index_of(name)?;
        self.read_range(i, 0, self.decls[i].byte_len(&self.origin)?)
    }

    /// The bytes of `count` rows of the leading dimension, beginning with row `first`.
    ///
    /// # Errors
    /// `NoTensor`, `Io`, `Invalid` if the tensor does not have all of these rows.
    pub fn read_rows(&self, name: &str, first: u64, count: u64) -> Result<Vec<u8>, PackError> {
        let i = self.index_of(name)?;
        let decl = &self.decls[i];
        let rows = decl.shape.first().copied().unwrap_or(1);
        if first > rows || count > rows - first {
            let found = format!("{count} from row {first}");
            return Err(invalid(
                &self.origin,
                format!("rows of {name}"),
                found,
                format!("rows below {rows}"),
            ));
        }
        let row_bytes = decl.byte_len(&self.origin)? / rows;
        self.read_range(i, first * row_bytes, count * row_bytes)
    }

    /// `count` bytes of tensor `i` from byte `offset` of its values.
    fn read_range(&self, i: usize, offset: u64, count: u64) -> Result<Vec<u8>, PackError> {
        let mut bytes = vec![0; count as usize];
        self.file
            .read_exact_at(&mut bytes, self.starts[i] + offset)
            .map_err(error::io(&self.origin))?;
        Ok(bytes)
    }

    /// A reader of the bytes of a tensor.
    ///
    /// # Errors
    /// `NoTensor`, `Invalid` if the tensor's size does not fit.
    pub fn read_values(&self, name: &str) -> Result<impl Read + '_, PackError> {
        self.reader(self.index_of(name)?)
    }

    /// A reader of the bytes of tensor `index`, for hashing a tensor that does not fit in memory.
    ///
    /// # Errors
    /// `Invalid` if the tensor's size does not fit.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn reader(&self, index: usize) -> Result<impl Read + '_, PackError> {
        let remaining = self.decls[index].byte_len(&self.origin)?;
        Ok(SectionReader {
            file: &self.file,
            offset: self.starts[index],
            remaining,
        })
    }
}

/// Length of the header, and the descriptors in it. `length` is the length of the file.
fn read_header(file: &File, length: u64, origin: &str) -> Result<(u64, Vec<ExactDecl>), PackError> {
    let mut fixed = Vec::new();
    file.take(NON_LAYER_FIXED)
        .read_to_end(&mut fixed)
        .map_err(error::io(origin))?;
    let mut cursor = Cursor::new(&fixed, origin);
    check_magic(&mut cursor, NON_LAYER_MAGIC, "non-layer tensor", origin)?;
    let count = cursor.u16("number of tensors")?;
    let header_length = u64::from(cursor.u32("header length")?);
    let limit = MAX_NON_LAYER_HEADER.min(length);
    if !(NON_LAYER_FIXED..=limit).contains(&header_length) {
        return Err(invalid(
            origin,
            "header length",
            header_length,
            format!("{NON_LAYER_FIXED} to {limit}"),
        ));
    }
    let mut descriptors = vec![0; (header_length - NON_LAYER_FIXED) as usize];
    file.read_exact_at(&mut descriptors, NON_LAYER_FIXED)
        .map_err(error::io(origin))?;
    let mut cursor = Cursor::new(&descriptors, origin);
    let mut decls = Vec::new();
    for _ in 0..count {
        decls.push(ExactDecl::take(&mut cursor, origin)?);
    }
    cursor.finish("header length")?;
    check_names(&decls, origin)?;
    Ok((header_length, decls))
}

/// Reads one section of a file from its beginning to its end, by position.
struct SectionReader<'a> {
    file: &'a File,
    offset: u64,
    remaining: u64,
}

impl Read for SectionReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}
