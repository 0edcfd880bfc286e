//! Files of hidden states in bfloat16, compressed: those of the sensitivity pass, which all wait on disk for the backward sweep.
//!
//! A value has a byte of sign and mantissa, stored as it is, and a byte of exponent. The exponents of a window are compressed: they
//! take 2.6 to 2.9 bits in SmolLM2-135M, as most values of a layer are within a few powers of two. A window is a frame, found by an
//! index at the end of the file, so windows are read by position.
//!
//! Layout, little-endian: magic; frames; for each window the length of its frame (`u64`); windows, length, width (`u64` each); magic.
//! A frame is `length · width` bytes of sign and mantissa, then the exponents as one frame of zstd.

use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use uc_codec::bf16;
use uc_store::StoreError;
use uc_store::atomic::AtomicFile;
use uc_store::stream::{RowSink, RowSource};

const MAGIC: [u8; 8] = *b"UCSTATE1";
/// Magic and dimensions at the end.
const TAIL: usize = 3 * 8 + MAGIC.len();
/// The fastest level that codes literals by their frequencies; exponents hardly repeat in sequences.
const LEVEL: i32 = 1;

/// Whether a file is one of packed states.
pub fn is_packed(path: &Utf8Path) -> Result<bool, StoreError> {
    let file = uc_input::open(path).map_err(StoreError::io("open", path))?;
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => Ok(magic == MAGIC),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// Writes the states of windows, one after another.
pub struct PackedWriter {
    file: AtomicFile,
    dims: [usize; 3],
    /// Lengths of the frames written.
    lengths: Vec<u64>,
}

impl PackedWriter {
    /// A file of states `[windows, length, width]`.
    pub fn new(mut file: AtomicFile, dims: [usize; 3]) -> Result<Self, StoreError> {
        file.append(&MAGIC)?;
        Ok(PackedWriter {
            file,
            dims,
            lengths: Vec::new(),
        })
    }

    /// Completes the file with its index; the caller publishes it.
    pub fn finish(mut self) -> Result<AtomicFile, StoreError> {
        let [windows, ..] = self.dims;
        if self.lengths.len() != windows {
            let found = format!("{} windows", self.lengths.len());
            let expected = format!("{windows} as announced");
            return Err(malformed(self.file.target(), found, expected));
        }
        let dims = self.dims.map(|dim| dim as u64);
        for number in self.lengths.iter().chain(&dims) {
            self.file.append(&number.to_le_bytes())?;
        }
        self.file.append(&MAGIC)?;
        Ok(self.file)
    }
}

impl RowSink for PackedWriter {
    fn append_rows(&mut self, values: &[f32]) -> Result<(), StoreError> {
        let [_, length, width] = self.dims;
        for window in values.chunks((length * width).max(1)) {
            let (mut frame, mut exponents) = (Vec::new(), Vec::new());
            for &value in window {
                let bits = bf16::round_nearest_even(value);
                frame.push((bits >> 8 & 0x80 | bits & 0x7f) as u8);
                exponents.push((bits >> 7) as u8);
            }
            let compressed = zstd::bulk::compress(&exponents, LEVEL);
            frame.extend(compressed.map_err(StoreError::io("compress", self.file.target()))?);
            self.file.append(&frame)?;
            self.lengths.push(frame.len() as u64);
        }
        Ok(())
    }
}

/// States that are read by window.
pub struct PackedStates {
    path: Utf8PathBuf,
    file: std::fs::File,
    /// `[windows, length, width]`
    pub dims: [usize; 3],
    /// Where each frame begins, and where the last one ends.
    offsets: Vec<u64>,
}

impl PackedStates {
    /// Opens a file and reads its index.
    pub fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        let file = uc_input::open(path).map_err(StoreError::io("open", path))?;
        let size = file.metadata().map_err(StoreError::io("open", path))?.len();
        let at = |end: u64, buffer: &mut [u8]| {
            let start = size.checked_sub(end).ok_or_else(|| {
                malformed(path, format!("{size} bytes"), format!("at least {end}"))
            })?;
            let read = file.read_exact_at(buffer, start);
            read.map_err(StoreError::io("read", path))
        };
        let mut tail = [0; TAIL];
        at(TAIL as u64, &mut tail)?;
        let dims = [0, 8, 16].map(|at| number(&tail[at..]));
        let values = dims.iter().try_fold(1u64, |all, &dim| all.checked_mul(dim));
        let index = dims[0].checked_mul(8).filter(|&index| index <= size);
        let (Some(_), Some(index)) = (values, index) else {
            let found = format!("dimensions {dims:?}");
            return Err(malformed(path, found, "those of states in the file".into()));
        };
        let mut lengths = vec![0; index as usize];
        at(TAIL as u64 + index, &mut lengths)?;
        let mut offsets = vec![MAGIC.len() as u64];
        for bytes in lengths.chunks_exact(8) {
            let end = offsets[offsets.len() - 1].saturating_add(number(bytes));
            offsets.push(end);
        }
        let end = offsets[offsets.len() - 1];
        if tail[24..] != MAGIC || end != size - TAIL as u64 - index {
            let found = format!("frames up to byte {end} of {size}");
            return Err(malformed(path, found, "frames, index and magic".into()));
        }
        Ok(PackedStates {
            path: path.to_owned(),
            file,
            dims: dims.map(|dim| dim as usize),
            offsets,
        })
    }
}

impl RowSource for PackedStates {
    fn rows(&self) -> usize {
        self.dims[0]
    }

    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
        let [_, length, width] = self.dims;
        let mut values = Vec::new();
        for window in first..first + count {
            let (start, end) = (self.offsets[window], self.offsets[window + 1]);
            let mut frame = vec![0; (end - start) as usize];
            let read = self.file.read_exact_at(&mut frame, start);
            read.map_err(StoreError::io("read", &self.path))?;
            let Some((mantissas, compressed)) = frame.split_at_checked(length * width) else {
                let found = format!("a frame of {} bytes", frame.len());
                let expected = format!("at least {} bytes", length * width);
                return Err(malformed(&self.path, found, expected));
            };
            let exponents = zstd::bulk::decompress(compressed, length * width);
            let exponents = exponents.map_err(StoreError::io("decompress", &self.path))?;
            if exponents.len() != mantissas.len() {
                let found = format!("{} exponents", exponents.len());
                return Err(malformed(&self.path, found, mantissas.len().to_string()));
            }
            let pairs = mantissas.iter().zip(&exponents);
            values.extend(pairs.map(|(&mantissa, &exponent)| {
                let (mantissa, exponent) = (u16::from(mantissa), u16::from(exponent));
                bf16::to_f32((mantissa & 0x80) << 8 | exponent << 7 | mantissa & 0x7f)
            }));
        }
        Ok(values)
    }
}

/// The `u64` at the beginning of at least eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |&bytes| u64::from_le_bytes(bytes))
}

fn malformed(path: &Utf8Path, found: String, expected: String) -> StoreError {
    StoreError::malformed(path, "file of hidden states", found, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(values: &[f32], dims: [usize; 3]) -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("states")).unwrap();
        let file = AtomicFile::create(&path).unwrap();
        let mut writer = PackedWriter::new(file, dims).unwrap();
        writer.append_rows(values).unwrap();
        writer.finish().unwrap().commit().unwrap();
        (folder, path)
    }

    fn replace(path: &Utf8Path, bytes: &[u8]) {
        let mut file = AtomicFile::create(path).unwrap();
        file.append(bytes).unwrap();
        file.commit().unwrap();
    }

    #[test]
    fn windows_are_read_as_they_were_written_rounded_to_bfloat16() {
        let special = [0.0, -0.0, 1e-40, f32::INFINITY, -3.0e38, 1.0 + 1.0 / 512.0];
        let ordinary = (0..54).map(|i| (i as f32 - 20.0) * 0.37);
        let values: Vec<f32> = special.into_iter().chain(ordinary).collect();
        let (_keep, path) = written(&values, [3, 4, 5]);
        let states = PackedStates::open(&path).unwrap();
        assert!(is_packed(&path).unwrap());
        assert_eq!(states.dims, [3, 4, 5]);
        let rounded = |value: &f32| bf16::to_f32(bf16::round_nearest_even(*value)).to_bits();
        let found = |first, count| -> Vec<u32> {
            let values = states.read(first, count).unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let expected: Vec<u32> = values.iter().map(rounded).collect();
        assert_eq!(found(0, 3), expected);
        assert_eq!(found(1, 1), expected[20..40]);
    }

    #[test]
    fn values_of_one_scale_take_eleven_bits() {
        let values: Vec<f32> = (0..100_000)
            .map(|i| ((i * 7919 % 10_007) as f32 / 5003.5 - 1.0).powi(3))
            .collect();
        let (_keep, path) = written(&values, [1, 1000, 100]);
        let bits = 8 * std::fs::metadata(&path).unwrap().len();
        assert!(bits < 1_150_000, "{bits}");
    }

    #[test]
    fn damaged_files_are_refused() {
        let (_keep, path) = written(&[1.5; 24], [2, 3, 4]);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 20, TAIL, whole.len() - 1] {
            replace(&path, &whole[..length]);
            assert!(PackedStates::open(&path).is_err(), "{length} bytes");
        }
        for at in 8..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x41;
            replace(&path, &damaged);
            if let Ok(states) = PackedStates::open(&path) {
                // A frame may still decode: the driver compares hashes. It must not panic.
                drop(states.read(0, states.rows().min(2)));
            }
        }
        let mut short = PackedWriter::new(AtomicFile::create(&path).unwrap(), [2, 3, 4]).unwrap();
        short.append_rows(&[0.0; 12]).unwrap();
        assert!(short.finish().is_err());
    }
}
