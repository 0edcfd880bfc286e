//! Tiny packs on disk for tests, made by this crate's writers.
#![allow(clippy::disallowed_methods)]

use std::path::Path;

use uc_codec::layer::CodedLinear;
use uc_codec::{LowRank, TensorCode, contexts};

use crate::manifest::{Calibration, Codec, FileEntry, NonLayerEntry, Source, Tool};
use crate::totals::Totals;
use crate::{
    CONFIG_FILE, DIGEST_FILE, Digest, ExactDtype, ExactTensor, LayerEntry, LayerFile,
    MANIFEST_FILE, Manifest, NON_LAYER_FILE, Pack, encode_layer, layer_file_name, write_non_layer,
};

/// A pack of one layer.
pub(crate) struct SamplePack {
    folder: tempfile::TempDir,
    pub(crate) manifest: Manifest,
}

/// A linear of small indices that depend on `seed`, with some rows of zeros if it has an overlay of rank 1 or more.
pub(crate) fn linear(
    name: &str,
    [rows, cols]: [usize; 2],
    seed: usize,
    rank: usize,
) -> CodedLinear {
    let index = |i: usize| (i.wrapping_mul(2_654_435_761).wrapping_add(977 * seed) >> 7) % 13;
    let mut q: Vec<i16> = (0..rows * cols).map(|i| index(i) as i16 - 6).collect();
    let column_log2_eighths: Vec<u8> = (0..cols).map(|j| (j % 5) as u8).collect();
    let logs = contexts::row_log2_eighths(&q, rows, &column_log2_eighths);
    let mut row_log2_eighths = logs.expect("logarithms");
    if rank > 0 {
        q[..cols].fill(0);
        row_log2_eighths[0] = 0;
    }
    let factor = |count: usize| (0..count).map(|i| 0x3c00 + (i % 50) as u16).collect();
    CodedLinear {
        name: name.to_owned(),
        input: format!("input of {cols}").replace(' ', "_"),
        code: TensorCode {
            rows,
            cols,
            step: 0.01 + 0.001 * seed as f32,
            column_log2_eighths,
            row_log2_eighths,
            row_step_log2_eighths: (0..rows).map(|i| (i % 3) as u8).collect(),
            q,
            overlay: (rank > 0).then(|| LowRank {
                rank,
                u: factor(rows * rank),
                v: factor(rank * cols),
            }),
        },
    }
}

/// An exact tensor of one dimension.
pub(crate) fn exact(name: &str, dtype: ExactDtype, bytes: Vec<u8>) -> ExactTensor {
    ExactTensor {
        name: name.to_owned(),
        dtype,
        shape: vec![bytes.len() as u64 / dtype.width()],
        bytes,
    }
}

impl SamplePack {
    /// A pack of layer 0 with the prefix `layers.0.`, and tensors outside the layers.
    pub(crate) fn new(
        linears: &[CodedLinear],
        exact: &[ExactTensor],
        non_layer: &[ExactTensor],
    ) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let layer = write_layer(folder.path(), linears, exact);
        let non_layer = write_scaffold(folder.path(), non_layer);
        std::fs::write(folder.path().join(CONFIG_FILE), "{}\n").expect("config");
        let (size, sha256) = Digest::hash_file(&folder.path().join(CONFIG_FILE)).expect("hashed");
        let config = FileEntry {
            name: CONFIG_FILE.to_owned(),
            size,
            sha256,
        };
        let manifest = manifest(layer, non_layer, config);
        let mut pack = Self { folder, manifest };
        pack.seal();
        pack
    }

    /// Writes the manifest with the right totals and its digest.
    pub(crate) fn seal(&mut self) {
        self.manifest.totals = Totals::compute(&self.manifest, "test").expect("totals");
        let text = self.manifest.to_bytes();
        std::fs::write(self.path(MANIFEST_FILE), &text).expect("manifest");
        std::fs::write(self.path(DIGEST_FILE), Manifest::digest_line(&text)).expect("digest");
    }

    /// Path of a file.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Opens it.
    pub(crate) fn open(&self) -> Pack {
        Pack::open(self.folder.path()).expect("opened")
    }
}

fn write_layer(folder: &Path, linears: &[CodedLinear], exact: &[ExactTensor]) -> LayerEntry {
    let bytes = encode_layer(0, linears, exact).expect("encoded");
    let path = folder.join(layer_file_name(0));
    std::fs::write(&path, &bytes).expect("layer");
    let file = LayerFile::open(&path).expect("layer");
    let source = |_: &str| Some(Digest::hash_bytes(b"source"));
    LayerEntry::measure(&file, "layers.0.", source).expect("measured")
}

fn write_scaffold(folder: &Path, tensors: &[ExactTensor]) -> NonLayerEntry {
    let decls: Vec<_> = tensors.iter().map(ExactTensor::decl).collect();
    let mut bytes = Vec::new();
    write_non_layer(&mut bytes, &decls, |i, sink| {
        sink.write_all(&tensors[i].bytes)
    })
    .expect("written");
    let path = folder.join(NON_LAYER_FILE);
    std::fs::write(&path, bytes).expect("scaffold");
    NonLayerEntry::measure(&path).expect("measured")
}

fn manifest(layer: LayerEntry, non_layer: NonLayerEntry, config: FileEntry) -> Manifest {
    let config_sha256 = config.sha256;
    Manifest {
        pack_version: crate::FORMAT_VERSION.into(),
        tool: Tool {
            name: "test".into(),
            version: "0".into(),
        },
        codec: Codec {
            name: "test".into(),
            source: "open".into(),
            format: 7,
            arithmetic: Some("f32 on cpu".into()),
            settings: std::iter::once(("quantize.bpw".to_owned(), "5.0".to_owned())).collect(),
        },
        source: Source {
            name: "model".into(),
            config_sha256,
            files: vec![],
            dtypes: std::iter::once(("BF16".to_owned(), 1)).collect(),
            hub: None,
        },
        calibration: Calibration {
            files: vec![],
            windows: 1,
            length: 1,
            seed: 0,
            windows_sha256: config_sha256,
            tokens: 1,
            request: None,
        },
        layers: vec![layer],
        non_layer,
        files: vec![config],
        totals: Totals::default(),
    }
}
