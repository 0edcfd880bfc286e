//! scaffold.uc: the model's exact tensors outside the layers (embeddings, final norm, head).
//!
//! Owns: the streaming writer and the reader with positioned reads; embeddings may be several GB, so
//! neither holds more than one tensor, and the writer not even that. The byte layout is in the crate's
//! documentation.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{self, PackError, invalid};
use crate::exact::ExactDecl;
use crate::wire::{Cursor, check_zero, narrow, padding_to};
use crate::{
    FORMAT_VERSION, MAX_EXACT_TENSORS, MAX_NON_LAYER_HEAD, NON_LAYER_ALIGNMENT, NON_LAYER_FIXED,
    NON_LAYER_MAGIC, check_magic,
};

/// Fixed part and descriptors.
fn encode_head(decls: &[ExactDecl], origin: &str) -> Result<Vec<u8>, PackError> {
    let count: u16 = narrow(decls.len(), MAX_EXACT_TENSORS, "number of tensors", origin)?;
    let mut head = NON_LAYER_MAGIC.to_vec();
    head.extend(FORMAT_VERSION.to_le_bytes());
    head.extend(count.to_le_bytes());
    head.extend([0; 4]);
    for decl in decls {
        decl.put(&mut head, origin)?;
    }
    let length: u32 = narrow(head.len(), MAX_NON_LAYER_HEAD, "head length", origin)?;
    head[12..16].copy_from_slice(&length.to_le_bytes());
    check_unique(decls, origin)?;
    Ok(head)
}

fn check_unique(decls: &[ExactDecl], origin: &str) -> Result<(), PackError> {
    let mut seen = HashSet::new();
    match decls.iter().find(|d| !seen.insert(&d.name)) {
        Some(twice) => Err(invalid(
            origin,
            "tensor names",
            &twice.name,
            "every name once",
        )),
        None => Ok(()),
    }
}

/// Start of every tensor's data and the length of the file.
fn layout(head: u64, decls: &[ExactDecl], origin: &str) -> Result<(Vec<u64>, u64), PackError> {
    let mut at = head;
    let mut starts = Vec::with_capacity(decls.len());
    for decl in decls {
        at += padding_to(at, NON_LAYER_ALIGNMENT);
        starts.push(at);
        // Both are below 2^60: the sum of two cannot overflow, and is kept below by the check.
        at += decl.byte_len(origin)?;
        if at >= 1 << 60 {
            return Err(invalid(origin, "file length", at, "below 2^60"));
        }
    }
    Ok((starts, at))
}

/// Refuses more bytes than were declared.
struct Counted<'a, W> {
    out: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let message = format!(
                "{} bytes more than declared",
                bytes.len() as u64 - self.left
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Streams a scaffold file into `out`: `data(i, sink)` must write exactly the bytes of tensor `i`.
/// Returns the file's length.
///
/// # Errors
/// `Invalid` for a bad declaration or a wrong number of bytes, `Io` from the sink or from `data`.
pub fn write_non_layer<W: Write>(
    out: &mut W,
    decls: &[ExactDecl],
    mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<u64, PackError> {
    let origin = "scaffold";
    let head = encode_head(decls, origin)?;
    let (_, length) = layout(head.len() as u64, decls, origin)?;
    out.write_all(&head).map_err(error::io(origin))?;
    let mut at = head.len() as u64;
    for (i, decl) in decls.iter().enumerate() {
        let padding = padding_to(at, NON_LAYER_ALIGNMENT);
        out.write_all(&[0; NON_LAYER_ALIGNMENT][..padding as usize])
            .map_err(error::io(origin))?;
        let expected = decl.byte_len(origin)?;
        let mut sink = Counted {
            out,
            left: expected,
        };
        data(i, &mut sink).map_err(error::io(&decl.name))?;
        if sink.left != 0 {
            let found = format!("{} bytes", expected - sink.left);
            return Err(invalid(
                origin,
                &decl.name,
                found,
                format!("{expected} bytes"),
            ));
        }
        at += padding + expected;
    }
    debug_assert_eq!(at, length);
    Ok(length)
}

/// An open scaffold file whose head and padding were checked; the tensors' values are read on demand.
#[derive(Debug)]
pub struct NonLayerFile {
    file: File,
    origin: String,
    decls: Vec<ExactDecl>,
    starts: Vec<u64>,
}

impl NonLayerFile {
    /// Opens and checks everything but the values.
    ///
    /// # Errors
    /// `Io`, `Magic`, `Version`, `Truncated`, `Invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PackError> {
        let origin = path.as_ref().display().to_string();
        let file = File::open(path.as_ref()).map_err(error::io(&origin))?;
        let length = file.metadata().map_err(error::io(&origin))?.len();
        let mut fixed = Vec::new();
        (&file)
            .take(NON_LAYER_FIXED)
            .read_to_end(&mut fixed)
            .map_err(error::io(&origin))?;
        let mut cursor = Cursor::new(&fixed, &origin);
        check_magic(&mut cursor, NON_LAYER_MAGIC, "scaffold", &origin)?;
        let count = cursor.u16("number of tensors")?;
        let head_length = u64::from(cursor.u32("head length")?);
        if !(NON_LAYER_FIXED..=MAX_NON_LAYER_HEAD.min(length)).contains(&head_length) {
            let limit = MAX_NON_LAYER_HEAD.min(length);
            return Err(invalid(
                &origin,
                "head length",
                head_length,
                format!("16 to {limit}"),
            ));
        }
        let mut head = vec![0; (head_length - NON_LAYER_FIXED) as usize];
        file.read_exact_at(&mut head, NON_LAYER_FIXED)
            .map_err(error::io(&origin))?;
        let mut cursor = Cursor::new(&head, &origin);
        let mut decls = Vec::new();
        for _ in 0..count {
            decls.push(ExactDecl::take(&mut cursor, &origin)?);
        }
        cursor.finish("head length")?;
        check_unique(&decls, &origin)?;
        let (starts, expected) = layout(head_length, &decls, &origin)?;
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
        non_layer.check_padding(head_length)?;
        Ok(non_layer)
    }

    fn check_padding(&self, head_length: u64) -> Result<(), PackError> {
        let mut at = head_length;
        for (decl, start) in self.decls.iter().zip(&self.starts) {
            let mut padding = vec![0; (start - at) as usize];
            self.file
                .read_exact_at(&mut padding, at)
                .map_err(error::io(&self.origin))?;
            check_zero(&padding, &decl.name, &self.origin)?;
            at = start + decl.byte_len(&self.origin)?;
        }
        Ok(())
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &[ExactDecl] {
        &self.decls
    }

    fn find(&self, name: &str) -> Result<usize, PackError> {
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
        let i = self.find(name)?;
        self.read_range(i, 0, self.decls[i].byte_len(&self.origin)?)
    }

    /// Bytes of `count` rows of the leading dimension from row `first` on.
    ///
    /// # Errors
    /// `NoTensor`, `Io`, `Invalid` if the rows are not all there.
    pub fn read_rows(&self, name: &str, first: u64, count: u64) -> Result<Vec<u8>, PackError> {
        let i = self.find(name)?;
        let decl = &self.decls[i];
        let rows = decl.shape.first().copied().unwrap_or(1);
        if first > rows || count > rows - first {
            let found = format!("{count} from row {first}");
            return Err(invalid(
                &self.origin,
                format!("rows of {name}"),
                found,
                rows,
            ));
        }
        let width = decl.byte_len(&self.origin)? / rows;
        self.read_range(i, first * width, count * width)
    }

    fn read_range(&self, i: usize, offset: u64, count: u64) -> Result<Vec<u8>, PackError> {
        let mut bytes = vec![0; count as usize];
        let at = self.starts[i] + offset;
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(error::io(&self.origin))?;
        Ok(bytes)
    }

    /// Streams a tensor's bytes: for hashing what does not fit into memory.
    ///
    /// # Errors
    /// `NoTensor`.
    pub fn reader(&self, name: &str) -> Result<impl Read + '_, PackError> {
        let i = self.find(name)?;
        let left = self.decls[i].byte_len(&self.origin)?;
        Ok(SectionReader {
            file: &self.file,
            at: self.starts[i],
            left,
        })
    }
}

/// Sequential reads of one section by position.
struct SectionReader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for SectionReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
