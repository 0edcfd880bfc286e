//! Coded linears on disk: one frame each, in the order of the layer's plan.

use std::borrow::Cow;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use uc_codec::layer::CodedLinear;
use uc_pack::Linears;
use uc_store::atomic::AtomicFile;
use uc_store::error::StoreError;
use uc_store::framed::{Frame, FramedFile};
use uc_store::spill::Spill;

/// One linear. Indices stand in one byte each before compression; on the four layers of the embedded model at 5 bits
/// zstd at level 1 made 799758 bytes 512213 (0.64).
const LINEAR: Frame = Frame {
    magic: *b"UCCODES\0",
    version: 2,
    what: "codes checkpoint",
    max_body: 1 << 36,
    zstd_level: Some(1),
};

/// The linears of a checkpoint: all of a layer, or none where a stage has nothing to say.
#[derive(Debug)]
pub struct Codes(FramedFile);

impl Codes {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Those of [`FramedFile::open`].
    pub fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        Ok(Self(FramedFile::open(LINEAR, path)?))
    }
}

impl Linears for Codes {
    type Error = anyhow::Error;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn linear(&self, index: usize) -> anyhow::Result<Cow<'_, CodedLinear>> {
        Ok(Cow::Owned(self.0.get(index)?))
    }
}

/// Linears that wait in a nameless file until it is known whether they are the layer's.
#[derive(Debug)]
pub struct SpilledCodes {
    spill: Spill,
    folder: Utf8PathBuf,
    count: usize,
}

impl SpilledCodes {
    /// An empty spilled in `folder`, which is made if it is missing.
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

    /// Puts the next linear away.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put(&mut self, linear: &CodedLinear) -> Result<(), StoreError> {
        let bytes = LINEAR.encode(linear, &self.folder)?;
        self.spill.append(&self.count.to_string(), &bytes)?;
        self.count += 1;
        Ok(())
    }

    fn frame(&self, index: usize) -> anyhow::Result<Vec<u8>> {
        let mut pieces = self.spill.pieces(&index.to_string());
        Ok(pieces.next().context("no such linear")??)
    }

    /// Writes the linears as a checkpoint, to be committed by the file's owner.
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
        Ok(Cow::Owned(LINEAR.decode(&bytes, &self.folder)?))
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
    fn a_layer_from_disk_gives_the_bytes_of_a_layer_in_memory() {
        let keep = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(keep.path()).expect("utf-8");
        let linears = [linear("q.weight", 40), linear("k.weight", 8)];
        let bytes = encode_layer(3, &linears, &[]).expect("encoded");

        let mut spilled = SpilledCodes::new(&folder.join("work")).expect("made");
        linears
            .iter()
            .for_each(|linear| spilled.put(linear).expect("put"));
        let coder = LayerCoder::new(3, &spilled, &[]).expect("counted");
        assert_eq!(coder.length(), bytes.len() as u64);
        let mut found = Vec::new();
        coder.write(&spilled, &mut found).expect("written");
        assert_eq!(found, bytes);

        let path = folder.join("codes.bin");
        let mut file = AtomicFile::create(&path).expect("made");
        spilled.write(&mut file).expect("written");
        file.commit().expect("published");
        let codes = Codes::open(&path).expect("opened");
        let mut found = Vec::new();
        coder.write(&codes, &mut found).expect("written");
        assert_eq!(found, bytes);
    }
}
