//! Coded linears on disk: one frame per linear, in the order of the layer's plan.
//!
//! The passes over a layer write to an unnamed temporary file ([`SpilledCodes`]). The best pass becomes a checkpoint
//! ([`CodesCheckpoint`]), which holds the same frames.

use std::borrow::Cow;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use uc_codec::layer::CodedLinear;
use uc_pack::Linears;
use uc_store::atomic::AtomicFile;
use uc_store::error::StoreError;
use uc_store::framed::{Frame, FramedFile};
use uc_store::spill::Spill;

/// The frame of one linear. An index takes one byte before compression. On the four layers of the embedded model at 5 bits
/// per weight, zstd at level 1 reduced 799758 bytes to 512213 (a factor of 0.64).
const LINEAR_FRAME: Frame = Frame {
    magic: *b"UCCODES\0",
    version: 3,
    what: "codes checkpoint",
    max_body: 1 << 36,
    zstd_level: Some(1),
};

/// A checkpoint of coded linears: all linears of a layer, or none if `overlay-fit` keeps the codes of `quantize`.
#[derive(Debug)]
pub struct CodesCheckpoint(FramedFile);

impl CodesCheckpoint {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Those of [`FramedFile::open`].
    pub fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        Ok(Self(FramedFile::open(LINEAR_FRAME, path)?))
    }
}

impl Linears for CodesCheckpoint {
    type Error = anyhow::Error;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn linear(&self, index: usize) -> anyhow::Result<Cow<'_, CodedLinear>> {
        Ok(Cow::Owned(self.0.get(index)?))
    }
}

/// The coded linears of one pass, in an unnamed temporary file. The file disappears when this value is dropped or the
/// process ends.
#[derive(Debug)]
pub struct SpilledCodes {
    spill: Spill,
    folder: Utf8PathBuf,
    count: usize,
}

impl SpilledCodes {
    /// An empty temporary file in `folder`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn new(folder: &Utf8Path) -> Result<Self, StoreError> {
        Ok(Self {
            spill: Spill::new(folder)?,
            folder: folder.to_owned(),
            count: 0,
        })
    }

    /// Appends the next linear.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, linear: &CodedLinear) -> Result<(), StoreError> {
        let bytes = LINEAR_FRAME.encode(linear, &self.folder)?;
        self.spill.append(&self.count.to_string(), &bytes)?;
        self.count += 1;
        Ok(())
    }

    /// The encoded frame of linear `index`.
    fn frame(&self, index: usize) -> anyhow::Result<Vec<u8>> {
        let mut pieces = self.spill.pieces(&index.to_string());
        Ok(pieces
            .next()
            .with_context(|| format!("linear {index} was never appended"))??)
    }

    /// Writes the linears to a checkpoint file. The caller commits the file.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, file: &mut AtomicFile) -> anyhow::Result<()> {
        for index in 0..self.count {
            file.append(&self.frame(index)?)?;
        }
        Ok(())
    }
}

impl Linears for SpilledCodes {
    type Error = anyhow::Error;

    fn count(&self) -> usize {
        self.count
    }

    fn linear(&self, index: usize) -> anyhow::Result<Cow<'_, CodedLinear>> {
        let bytes = self.frame(index)?;
        Ok(Cow::Owned(LINEAR_FRAME.decode(&bytes, &self.folder)?))
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

    #[test]
    fn linears_on_disk_encode_to_the_same_bytes_as_linears_in_memory() {
        let temporary = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(temporary.path()).expect("utf-8");
        let linears = [linear("q.weight", 40), linear("k.weight", 8)];
        let bytes = encode_layer(3, &linears, &[]).expect("encoded");

        let mut spilled = SpilledCodes::new(&folder.join("work")).expect("made");
        linears
            .iter()
            .for_each(|linear| spilled.append(linear).expect("appended"));
        let coder = LayerCoder::new(3, &spilled, &[]).expect("counted");
        assert_eq!(coder.length(), bytes.len() as u64);
        let mut written = Vec::new();
        coder.write(&spilled, &mut written).expect("written");
        assert_eq!(written, bytes);

        let path = folder.join("codes.bin");
        let mut file = AtomicFile::create(&path).expect("made");
        spilled.write(&mut file).expect("written");
        file.commit().expect("published");
        let codes = CodesCheckpoint::open(&path).expect("opened");
        let mut written = Vec::new();
        coder.write(&codes, &mut written).expect("written");
        assert_eq!(written, bytes);
    }
}
