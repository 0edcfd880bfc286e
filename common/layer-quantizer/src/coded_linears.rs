//! Coded linears on disk, in the order of the layer's plan: for each linear a frame with its parameters, then one frame for the
//! indices of each tile of the entropy coder.
//!
//! The passes over a layer write to the job's scratch folder ([`PassCodes`]), from which an interrupted job continues. The best
//! pass becomes a checkpoint ([`CodesCheckpoint`]), which holds the same frames. Tiles are encoded and decoded by all threads.

use std::borrow::Cow;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;
use uc_codec::layer::{CodedLinear, LinearParameters};
use uc_codec::{IndexBytes, rans};
use uc_pack::Linears;
use uc_store::atomic::{self, AtomicFile};
use uc_store::error::StoreError;
use uc_store::framed::{Frame, FramedFile, Journal};

/// A frame of the parameters of a linear or of the indices of a tile. An index takes one byte before compression. On the four
/// layers of the embedded model at 5 bits per weight, zstd at level 1 reduced 799758 bytes to 512213 (a factor of 0.64).
const FRAME: Frame = Frame {
    magic: *b"UCCODES\0",
    version: 4,
    what: "codes checkpoint",
    max_body: 1 << 32,
    zstd_level: Some(1),
};

/// The numbers of the first frames of the linears whose frames are all there, and of the first frame after them.
fn locate(frames: &FramedFile) -> anyhow::Result<Vec<usize>> {
    let mut firsts = vec![0];
    loop {
        let first = *firsts.last().expect("never empty");
        if first >= frames.len() {
            return Ok(firsts);
        }
        let parameters: LinearParameters = frames.get(first)?;
        let next = first + 1 + parameters.tiles();
        if next > frames.len() {
            return Ok(firsts);
        }
        firsts.push(next);
    }
}

/// The indices of a tile.
fn tile(frames: &FramedFile, first: usize, tile: usize) -> anyhow::Result<Cow<'static, [i16]>> {
    let IndexBytes(indices) = frames.get(first + 1 + tile)?;
    Ok(Cow::Owned(indices))
}

/// A checkpoint of coded linears: all linears of a layer, or none if `overlay-fit` keeps the codes of `quantize`.
#[derive(Debug)]
pub struct CodesCheckpoint {
    frames: FramedFile,
    /// See [`locate`].
    firsts: Vec<usize>,
}

impl CodesCheckpoint {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Those of [`FramedFile::open`], and if a linear is incomplete.
    pub fn open(path: &Utf8Path) -> anyhow::Result<Self> {
        let frames = FramedFile::open(FRAME, path)?;
        let firsts = locate(&frames)?;
        if firsts.last() != Some(&frames.len()) {
            let found = format!("{} frames", frames.len());
            let expected = "all tiles of the last linear";
            return Err(StoreError::malformed(path, FRAME.what, found, expected).into());
        }
        Ok(Self { frames, firsts })
    }

    /// Linear `index` with all of its indices, which take 2 bytes each.
    ///
    /// # Errors
    /// Those of [`FramedFile::get`].
    pub fn linear(&self, index: usize) -> anyhow::Result<CodedLinear> {
        let parameters = self.parameters(index)?.into_owned();
        let mut q = vec![0; parameters.code.rows * parameters.code.cols];
        let tiles = q.par_chunks_mut(parameters.tile_rows() * parameters.code.cols.max(1));
        tiles.enumerate().try_for_each(|(tile, out)| {
            let indices = self.indices(index, tile)?;
            let (found, expected) = (indices.len(), out.len());
            anyhow::ensure!(
                found == expected,
                "tile {tile} of {}: found {found} indices, expected {expected}; make the codes again",
                parameters.name
            );
            out.copy_from_slice(&indices);
            Ok(())
        })?;
        Ok(parameters.with_indices(q))
    }
}

impl Linears for CodesCheckpoint {
    type Error = anyhow::Error;

    fn count(&self) -> usize {
        self.firsts.len() - 1
    }

    fn parameters(&self, index: usize) -> anyhow::Result<Cow<'_, LinearParameters>> {
        Ok(Cow::Owned(self.frames.get(self.firsts[index])?))
    }

    fn indices(&self, index: usize, tile_number: usize) -> anyhow::Result<Cow<'_, [i16]>> {
        tile(&self.frames, self.firsts[index], tile_number)
    }
}

/// The coded linears of one pass, in the scratch folder of the job.
#[derive(Debug)]
pub struct PassCodes {
    journal: Journal,
    base: Utf8PathBuf,
    path: Utf8PathBuf,
    /// See [`locate`].
    firsts: Vec<usize>,
}

impl PassCodes {
    /// Opens the file of a pass below `base` with the linears that an interrupted job left in it, or creates an empty one.
    ///
    /// # Errors
    /// Those of [`Journal::open`].
    pub fn open(base: &Utf8Path, path: &Utf8Path) -> anyhow::Result<Self> {
        let mut journal = Journal::open(FRAME, base, path)?;
        let firsts = locate(journal.frames())?;
        journal.truncate(*firsts.last().expect("never empty"))?;
        Ok(Self {
            journal,
            base: base.to_owned(),
            path: path.to_owned(),
            firsts,
        })
    }

    /// Appends the next linear. Besides the linear, this takes some tiles in memory for each thread.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, linear: &CodedLinear) -> Result<(), StoreError> {
        let code = &linear.code;
        self.journal.append(&linear.parameters())?;
        let indices = rans::tile_rows(code.rows, code.cols) as usize * code.cols;
        let window = rayon::current_num_threads() * indices.max(1);
        let encode = |q: &[i16]| FRAME.encode(&IndexBytes(q.to_vec()), &self.path);
        for window in code.q.chunks(window) {
            let tiles = window.par_chunks(indices.max(1)).map(encode);
            for tile in tiles.collect::<Result<Vec<_>, _>>()? {
                self.journal.append_encoded(&tile)?;
            }
        }
        self.firsts.push(self.journal.frames().len());
        Ok(())
    }

    /// Writes the linears to a checkpoint file. The caller commits the file.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, file: &mut AtomicFile) -> anyhow::Result<()> {
        let frames = self.journal.frames();
        for index in 0..frames.len() {
            file.append(&frames.bytes(index)?)?;
        }
        Ok(())
    }

    /// Deletes the file.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn discard(self) -> anyhow::Result<()> {
        let removed = atomic::remove_file_below(&self.base, &self.path);
        removed.with_context(|| format!("cannot discard the pass {}", self.path))
    }
}

impl Linears for PassCodes {
    type Error = anyhow::Error;

    fn count(&self) -> usize {
        self.firsts.len() - 1
    }

    fn parameters(&self, index: usize) -> anyhow::Result<Cow<'_, LinearParameters>> {
        Ok(Cow::Owned(self.journal.frames().get(self.firsts[index])?))
    }

    fn indices(&self, index: usize, tile_number: usize) -> anyhow::Result<Cow<'_, [i16]>> {
        tile(self.journal.frames(), self.firsts[index], tile_number)
    }
}

#[cfg(test)]
mod tests {
    use uc_codec::TensorCode;
    use uc_pack::{LayerCoder, encode_layer};

    use super::*;

    fn linear(name: &str, rows: usize) -> CodedLinear {
        let q: Vec<i16> = (0..rows * 24).map(|i| (i * 7 % 13) as i16 - 6).collect();
        let column_log2_eighths = vec![3; 24];
        CodedLinear {
            name: name.into(),
            input: "x".into(),
            code: TensorCode {
                rows,
                cols: 24,
                step: 0.25,
                row_log2_eighths: uc_codec::contexts::row_log2_eighths(
                    &q,
                    rows,
                    &column_log2_eighths,
                )
                .expect("shapes agree"),
                column_log2_eighths,
                row_step_log2_eighths: vec![0; rows],
                q,
                overlay: None,
            },
        }
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let temporary = tempfile::tempdir().expect("folder");
        let folder = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).expect("utf-8");
        (temporary, folder)
    }

    #[test]
    fn linears_on_disk_encode_to_the_same_bytes_as_linears_in_memory() {
        let (_keep, folder) = folder();
        // The first linear has three tiles.
        let linears = [linear("q.weight", 100_000), linear("k.weight", 8)];
        let bytes = encode_layer(3, &linears, &[]).expect("encoded");

        let mut codes = PassCodes::open(&folder, &folder.join("work/pass")).expect("made");
        linears
            .iter()
            .for_each(|linear| codes.append(linear).expect("appended"));
        assert_eq!(codes.parameters(0).expect("read").tiles(), 3);
        let coder = LayerCoder::new(3, &codes, &[]).expect("counted");
        assert_eq!(coder.length(), bytes.len() as u64);
        let mut written = Vec::new();
        coder.write(&codes, &mut written).expect("written");
        assert!(written == bytes);

        let path = folder.join("codes.bin");
        let mut file = AtomicFile::create(&path).expect("made");
        codes.write(&mut file).expect("written");
        file.commit().expect("published");
        let checkpoint = CodesCheckpoint::open(&path).expect("opened");
        let mut written = Vec::new();
        coder.write(&checkpoint, &mut written).expect("written");
        assert!(written == bytes);
    }

    #[test]
    fn a_pass_continues_after_its_last_whole_linear() {
        let (_keep, folder) = folder();
        let path = folder.join("pass");
        let linears = [linear("q.weight", 100_000), linear("k.weight", 8)];
        let mut codes = PassCodes::open(&folder, &path).expect("made");
        codes.append(&linears[0]).expect("appended");
        let first = std::fs::metadata(&path).expect("file").len() as usize;
        codes.append(&linears[1]).expect("appended");
        let whole = std::fs::read(&path).expect("read");
        for (cut, kept) in [(whole.len(), 2), (whole.len() - 1, 1), (first - 1, 0)] {
            atomic::write_bytes(&path, &whole[..cut]).expect("written");
            let mut codes = PassCodes::open(&folder, &path).expect("opened");
            assert_eq!(codes.count(), kept, "cut at {cut}");
            let missing = linears.iter().skip(kept);
            missing.for_each(|linear| codes.append(linear).expect("appended"));
            assert!(std::fs::read(&path).expect("read") == whole, "cut at {cut}");
            let cut_off = CodesCheckpoint::open(&path).map(|codes| codes.count());
            assert_eq!(cut_off.expect("whole"), 2);
        }
        atomic::write_bytes(&path, &whole[..first - 1]).expect("written");
        assert!(CodesCheckpoint::open(&path).is_err());
    }
}
