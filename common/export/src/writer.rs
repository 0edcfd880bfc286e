//! Writes the files of an export into a folder beside its destination, in any order and over several calls.
//!
//! Owns the folder `NAME.partial`, its lock and its journal. A *part* is a layer, or the tensors outside the layers. Once the
//! tensors of a part are on disk, a line of the journal records the digest of what was written; a later call of the same export
//! reads those bytes again and writes only parts that are missing or differ. Nothing appears under the final name before
//! everything is there.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;
use uc_pack::Pack;
use uc_pack::layer::PieceBuffers;
use uc_store::sha::{Hasher, Sha256Digest, hash_bytes};
use uc_store::{StoreError, atomic};

use crate::catalog::{Catalog, PackTensor, PartFile};
use crate::encoding::{Adjustment, Encoding};
use crate::error::{ExportError, unsupported};
use crate::layout::{Layout, Placement, RowOrder};

/// Name of the journal in the folder.
const JOURNAL: &str = ".journal";
/// Largest journal that is read: 1001 lines of about 80 bytes.
const MAX_JOURNAL: u64 = 1 << 20;
/// Bytes that are read at once to check what a part wrote.
const READ_BYTES: usize = 1 << 20;

/// Progress of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the export that are on disk.
    pub done: u64,
    /// Bytes of the export.
    pub total: u64,
}

/// An export that is being written.
pub struct Writer<'a> {
    pack: &'a Pack,
    catalog: &'a Catalog,
    layout: &'a Layout,
    folder: Utf8PathBuf,
    files: Vec<File>,
    /// The journal, locked while the writer exists.
    journal: Mutex<File>,
    /// The digests of the parts that the journal lists.
    finished: BTreeMap<String, Sha256Digest>,
}

impl<'a> Writer<'a> {
    /// Opens the folder `folder`, or creates it. What another export left there is removed. `identity` names the pack and the
    /// format.
    ///
    /// # Errors
    /// `Store`, also if another process writes there.
    pub fn open(
        pack: &'a Pack,
        catalog: &'a Catalog,
        layout: &'a Layout,
        folder: &Utf8Path,
        identity: &str,
    ) -> Result<Self, ExportError> {
        let path = folder.join(JOURNAL);
        let journal = atomic::open_partial_below(folder, &path)?;
        match journal.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ExportError::Store(StoreError::Locked {
                    path: folder.to_owned(),
                    holder: "another export to the same destination".into(),
                }));
            }
            Err(TryLockError::Error(error)) => {
                return Err(ExportError::Store(StoreError::io("lock", &path)(error)));
            }
        }
        let text =
            uc_input::read_text(&path, MAX_JOURNAL).map_err(StoreError::io("read", &path))?;
        let head = format!("{}\n", hash_bytes(identity.as_bytes()));
        let mut finished = BTreeMap::new();
        match text.strip_prefix(&head) {
            Some(lines) => {
                // A line without an end is that of a process that was killed while it wrote it.
                for line in lines
                    .split_inclusive('\n')
                    .filter(|line| line.ends_with('\n'))
                {
                    if let Some((part, digest)) = line.trim_end().split_once(' ')
                        && let Ok(digest) = digest.parse()
                    {
                        finished.insert(part.to_owned(), digest);
                    }
                }
            }
            None => {
                remove_all_but_journal(folder)?;
                let restart = journal
                    .set_len(0)
                    .and_then(|()| journal.write_all_at(head.as_bytes(), 0));
                restart.map_err(StoreError::io("write", &path))?;
            }
        }
        let mut files = Vec::with_capacity(layout.files.len());
        for file in &layout.files {
            let path = folder.join(&file.name);
            let output = atomic::open_partial_below(folder, &path)?;
            let sized = output
                .set_len(file.size)
                .and_then(|()| output.write_all_at(&file.header, 0));
            let mut computed = file.computed.iter();
            let written = sized.and_then(|()| {
                computed.try_for_each(|(offset, bytes)| output.write_all_at(bytes, *offset))
            });
            let synced = written.and_then(|()| output.sync_data());
            synced.map_err(StoreError::io("write", &path))?;
            files.push(output);
        }
        Ok(Self {
            pack,
            catalog,
            layout,
            folder: folder.to_owned(),
            files,
            journal: Mutex::new(journal),
            finished,
        })
    }

    /// Writes all tensors that are not there yet, with the threads of the current pool. Returns the bytes that an earlier
    /// call had written.
    ///
    /// # Errors
    /// Those of reading the pack and of writing the files; what was written stays for the next call.
    pub fn write(&self, progress: &(dyn Fn(Progress) + Sync)) -> Result<u64, ExportError> {
        let layers = self.pack.manifest().layers.len() as u32;
        let parts: Vec<Option<u32>> = [None].into_iter().chain((0..layers).map(Some)).collect();
        let total: u64 = parts.iter().map(|&part| self.part_bytes(part)).sum();
        let (done, kept) = (AtomicU64::new(0), AtomicU64::new(0));
        let report = |bytes: u64| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            progress(Progress { done, total });
        };
        report(0);
        // After an error the parts that have not begun are left out.
        let failed = AtomicBool::new(false);
        let results: Vec<Result<(), ExportError>> = parts
            .par_iter()
            .map(|&part| {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let bytes = self.part_bytes(part);
                let result = match self.is_finished(part) {
                    Ok(true) => {
                        kept.fetch_add(bytes, Ordering::Relaxed);
                        report(bytes);
                        Ok(())
                    }
                    Ok(false) => self.write_part(part, &report),
                    Err(error) => Err(error),
                };
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result
            })
            .collect();
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(kept.into_inner())
    }

    /// Removes the journal: from here on the folder holds the export only, and a crash starts it again.
    ///
    /// # Errors
    /// `Store`.
    pub fn finish(self) -> Result<(), ExportError> {
        for (file, output) in self.files.iter().zip(&self.layout.files) {
            let path = self.folder.join(&output.name);
            file.sync_all().map_err(StoreError::io("sync", &path))?;
        }
        atomic::remove_file_below(&self.folder, &self.folder.join(JOURNAL))?;
        Ok(())
    }

    /// Bytes of a part in the export.
    fn part_bytes(&self, part: Option<u32>) -> u64 {
        let tensors = self.catalog.part(part);
        let ranges = tensors.flat_map(|(index, _)| self.layout.placements[index].ranges());
        ranges.map(|(_, _, length)| length).sum()
    }

    /// Whether the journal lists a part and its bytes are still those that were written.
    fn is_finished(&self, part: Option<u32>) -> Result<bool, ExportError> {
        match self.finished.get(&part_name(part)) {
            None => Ok(false),
            Some(recorded) => Ok(self.part_digest(part)? == *recorded),
        }
    }

    /// The digest of the bytes of a part, read back from the files.
    fn part_digest(&self, part: Option<u32>) -> Result<Sha256Digest, ExportError> {
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; READ_BYTES]);
        for (index, _) in self.catalog.part(part) {
            for (file, mut offset, mut left) in self.layout.placements[index].ranges() {
                while left > 0 {
                    let count = left.min(READ_BYTES as u64) as usize;
                    let read = self.files[file].read_exact_at(&mut buffer[..count], offset);
                    read.map_err(self.failure("read", file))?;
                    hasher.update(&buffer[..count]);
                    (offset, left) = (offset + count as u64, left - count as u64);
                }
            }
        }
        Ok(hasher.finish().0)
    }

    fn write_part(
        &self,
        part: Option<u32>,
        report: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ExportError> {
        let source = PartFile::open(self.pack, part)?;
        let tensors: Vec<(usize, &PackTensor)> = self.catalog.part(part).collect();
        let results: Vec<Result<(), ExportError>> = tensors
            .par_iter()
            .map_init(PieceBuffers::default, |buffers, &(index, tensor)| {
                let placement = &self.layout.placements[index];
                let mut target = Target::new(self, tensor, placement);
                source.read(tensor, buffers, &mut |bytes| target.take(bytes))?;
                target.end()?;
                report(placement.ranges().map(|(_, _, length)| length).sum());
                Ok(())
            })
            .collect();
        results.into_iter().collect::<Result<(), _>>()?;
        for (file, output) in self.files.iter().zip(&self.layout.files) {
            let path = self.folder.join(&output.name);
            file.sync_data().map_err(StoreError::io("sync", &path))?;
        }
        let line = format!("{} {}\n", part_name(part), self.part_digest(part)?);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = std::io::Seek::seek(&mut *journal, std::io::SeekFrom::End(0))
            .and_then(|_| journal.write_all(line.as_bytes()));
        appended.map_err(StoreError::io("write", &self.folder.join(JOURNAL)))?;
        Ok(())
    }

    fn failure(
        &self,
        action: &'static str,
        file: usize,
    ) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
        let path = self.folder.join(&self.layout.files[file].name);
        move |source| StoreError::Io {
            action,
            path,
            source,
        }
    }
}

/// The name of a part in the journal.
fn part_name(part: Option<u32>) -> String {
    part.map_or_else(|| "non-layer".to_owned(), |layer| format!("layer-{layer}"))
}

/// Removes what another export left in the folder.
fn remove_all_but_journal(folder: &Utf8Path) -> Result<(), ExportError> {
    let entries = folder
        .read_dir_utf8()
        .map_err(StoreError::io("read", folder))?;
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read", folder))?;
        if entry.file_name() != JOURNAL {
            atomic::remove_dir_below(folder, entry.path())?;
        }
    }
    Ok(())
}

/// Writes the rows of one tensor to their places.
struct Target<'a> {
    writer: &'a Writer<'a>,
    tensor: &'a PackTensor,
    placement: &'a Placement,
    /// The next row.
    row: u64,
    /// A transposed matrix is gathered first.
    gathered: Vec<u8>,
    encoded: Vec<u8>,
}

impl<'a> Target<'a> {
    fn new(writer: &'a Writer<'a>, tensor: &'a PackTensor, placement: &'a Placement) -> Self {
        Self {
            writer,
            tensor,
            placement,
            row: 0,
            gathered: Vec::new(),
            encoded: Vec::new(),
        }
    }

    /// Takes whole rows of the pack's tensor.
    fn take(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        if self.placement.transposed {
            self.gathered.extend_from_slice(bytes);
            return Ok(());
        }
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        let is_copy = matches!(self.placement.encoding, Encoding::AsStored(_))
            && self.placement.adjustment == Adjustment::None;
        let written = match is_copy {
            true => self.put(bytes),
            false => self
                .encode(bytes, &mut encoded)
                .and_then(|()| self.put(&encoded)),
        };
        self.encoded = encoded;
        written
    }

    fn encode(&self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ExportError> {
        let (tensor, placement) = (self.tensor, self.placement);
        let values = Encoding::AsStored(tensor.dtype).decode(bytes);
        let mut values = values.ok_or_else(|| {
            unsupported(
                &tensor.name,
                format!("{:?}", tensor.dtype),
                "F32, F16 or BF16",
            )
        })?;
        placement.adjustment.apply(&mut values);
        placement.encoding.encode(&values, out).map_err(|value| {
            let expected = "values that float16 holds, at most 65504; export it as bf16";
            unsupported(&tensor.name, value, expected)
        })
    }

    /// Writes whole encoded rows, from row `self.row` on.
    fn put(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        let row_bytes = self.placement.row_bytes();
        let rows = self.row..self.row + bytes.len() as u64 / row_bytes;
        self.row = rows.end;
        for segment in &self.placement.segments {
            let (start, end) = (
                rows.start.max(segment.rows.start),
                rows.end.min(segment.rows.end),
            );
            if start >= end {
                continue;
            }
            let part = &bytes[((start - rows.start) * row_bytes) as usize
                ..((end - rows.start) * row_bytes) as usize];
            let at = |row: u64| segment.offset + (row - segment.rows.start) * row_bytes;
            match self.placement.order {
                RowOrder::Kept => self.write_at(part, segment.file, at(start))?,
                order => {
                    let each = part.chunks_exact(row_bytes as usize);
                    for (row, bytes) in (start..end).zip(each) {
                        self.write_at(bytes, segment.file, at(order.target(row)))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], file: usize, offset: u64) -> Result<(), ExportError> {
        let written = self.writer.files[file].write_all_at(bytes, offset);
        Ok(written.map_err(self.writer.failure("write", file))?)
    }

    /// Writes what was gathered.
    fn end(mut self) -> Result<(), ExportError> {
        if !self.placement.transposed {
            return Ok(());
        }
        let width = self.tensor.dtype.width() as usize;
        let (rows, columns) = (self.tensor.rows() as usize, self.tensor.columns() as usize);
        let gathered = std::mem::take(&mut self.gathered);
        let mut bytes = Vec::with_capacity(gathered.len());
        for column in 0..columns {
            for row in 0..rows {
                let at = (row * columns + column) * width;
                bytes.extend_from_slice(&gathered[at..at + width]);
            }
        }
        self.put(&bytes)
    }
}
