//! Small packs of a Llama, made by the pack library's writers, whose parts a test can replace by hostile ones. Every recorded
//! size and digest is right unless a test changes it.

use std::path::{Path, PathBuf};

use uc_codec::layer::CodedLinear;
use uc_codec::{LowRank, TensorCode, contexts};
use uc_pack::manifest::{Calibration, Codec, FileEntry, NonLayerEntry, Source, Tool};
use uc_pack::totals::Totals;
use uc_pack::{
    Digest, ExactDecl, ExactDtype, ExactTensor, LayerEntry, LayerFile, MANIFEST_FILE, Manifest,
    encode_layer, write_non_layer,
};

/// Number of tokens of the model.
const VOCABULARY: u64 = 96;

/// The sizes of a model.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub layers: u32,
    pub hidden: usize,
    pub inner: usize,
    /// Whether all weights of the linears are zero.
    pub zero: bool,
    /// Rank of the overlays.
    pub rank: usize,
}

/// A model that takes a moment to verify.
pub const SMALL: Sizes = Sizes {
    layers: 2,
    hidden: 64,
    inner: 160,
    zero: false,
    rank: 2,
};

/// A pack on disk.
pub struct PackFolder {
    folder: tempfile::TempDir,
    pub manifest: Manifest,
}

impl PackFolder {
    /// Writes an honest pack.
    pub fn honest(sizes: Sizes) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = config(sizes);
        let layers = (0..sizes.layers)
            .map(|layer| write_layer(folder.path(), sizes, layer, &linears(sizes, layer)))
            .collect();
        let non_layer = write_embedding(folder.path(), sizes);
        std::fs::write(folder.path().join("config.json"), &config).expect("config");
        let files = vec![entry_of(folder.path(), "config.json")];
        let manifest = manifest(layers, non_layer, files);
        let mut pack = Self { folder, manifest };
        pack.seal();
        pack
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Replaces the bytes of a layer and records their size and digest.
    pub fn replace_layer(&mut self, layer: usize, bytes: &[u8]) {
        let entry = &mut self.manifest.layers[layer];
        std::fs::write(self.folder.path().join(&entry.file), bytes).expect("layer");
        entry.size = bytes.len() as u64;
        entry.sha256 = Digest::hash_bytes(bytes);
    }

    /// Replaces the linears of a layer and records what the file then holds.
    pub fn replace_linears(&mut self, sizes: Sizes, layer: u32, linears: &[CodedLinear]) {
        let entry = write_layer(self.folder.path(), sizes, layer, linears);
        self.manifest.layers[layer as usize] = entry;
    }

    /// Records a file without tensors as it is on disk.
    pub fn record_file(&mut self, name: &str) {
        let entry = entry_of(self.path(), name);
        if name == uc_pack::CONFIG_FILE {
            self.manifest.source.config_sha256 = entry.sha256;
        }
        self.manifest.files.retain(|file| file.name != name);
        self.manifest.files.push(entry);
    }

    /// Writes the manifest with the right totals and its digest.
    pub fn seal(&mut self) {
        let totals = Totals::compute(&self.manifest, "test");
        self.manifest.totals = totals.expect("totals");
        self.seal_as_it_is();
    }

    /// Writes the manifest and its digest; returns the fingerprint.
    pub fn seal_as_it_is(&self) -> Digest {
        let text = self.manifest.to_bytes();
        std::fs::write(self.file(MANIFEST_FILE), &text).expect("manifest");
        let line = Manifest::digest_line(&text);
        std::fs::write(self.file(uc_pack::DIGEST_FILE), line).expect("digest");
        Digest::hash_bytes(&text)
    }
}

fn config(sizes: Sizes) -> String {
    let Sizes {
        layers,
        hidden,
        inner,
        ..
    } = sizes;
    format!(
        r#"{{
  "model_type": "llama", "hidden_act": "silu", "hidden_size": {hidden}, "intermediate_size": {inner},
  "max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": {layers},
  "num_key_value_heads": 4, "rms_norm_eps": 0.00001, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": {VOCABULARY}
}}
"#
    )
}

/// Writes a layer file and measures it as the compressor does.
fn write_layer(folder: &Path, sizes: Sizes, layer: u32, linears: &[CodedLinear]) -> LayerEntry {
    let bytes = encode_layer(layer, linears, &norms(sizes)).expect("encoded");
    let path = folder.join(uc_pack::layer_file_name(layer));
    std::fs::write(&path, &bytes).expect("layer");
    let file = LayerFile::open(&path).expect("layer");
    let source = |_: &str| Some(Digest::hash_bytes(b"source"));
    LayerEntry::measure(&file, &format!("model.layers.{layer}."), source).expect("measured")
}

/// The linears of a layer.
pub fn linears(sizes: Sizes, layer: u32) -> Vec<CodedLinear> {
    let (hidden, inner) = (sizes.hidden, sizes.inner);
    let shapes = [
        ("self_attn.q_proj.weight", "attn_in", hidden, hidden),
        ("self_attn.k_proj.weight", "attn_in", hidden, hidden),
        ("self_attn.v_proj.weight", "attn_in", hidden, hidden),
        ("self_attn.o_proj.weight", "o_in", hidden, hidden),
        ("mlp.gate_proj.weight", "mlp_in", inner, hidden),
        ("mlp.up_proj.weight", "mlp_in", inner, hidden),
        ("mlp.down_proj.weight", "down_in", hidden, inner),
    ];
    let coded = |(name, input, rows, cols): (&str, &str, usize, usize)| CodedLinear {
        name: name.to_owned(),
        input: input.to_owned(),
        code: code(sizes, rows, cols, layer),
    };
    shapes.into_iter().map(coded).collect()
}

/// A quantized matrix of small indices, or of zeros.
fn code(sizes: Sizes, rows: usize, cols: usize, seed: u32) -> TensorCode {
    let index = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7).wrapping_add(seed as usize) % 13;
    let q: Vec<i16> = match sizes.zero {
        true => vec![0; rows * cols],
        false => (0..rows * cols).map(|i| index(i) as i16 - 6).collect(),
    };
    let column_log2_eighths: Vec<u8> = match sizes.zero {
        true => vec![0; cols],
        false => (0..cols).map(|j| (j % 5) as u8).collect(),
    };
    let row_log2_eighths = match sizes.zero {
        true => vec![0; rows],
        false => contexts::row_log2_eighths(&q, rows, &column_log2_eighths).expect("logarithms"),
    };
    let factor = |count: usize| (0..count).map(|i| 0x3c00 + (i % 50) as u16).collect();
    TensorCode {
        rows,
        cols,
        step: 0.01,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths: vec![0; rows],
        q,
        overlay: (sizes.rank > 0).then(|| LowRank {
            rank: sizes.rank,
            u: factor(rows * sizes.rank),
            v: factor(sizes.rank * cols),
        }),
    }
}

/// The norms of a layer: ones.
fn norms(sizes: Sizes) -> Vec<ExactTensor> {
    let norm = |name: &str| ExactTensor {
        name: name.to_owned(),
        dtype: ExactDtype::BF16,
        shape: vec![sizes.hidden as u64],
        bytes: [0x80, 0x3f].repeat(sizes.hidden),
    };
    ["input_layernorm.weight", "post_attention_layernorm.weight"]
        .map(norm)
        .to_vec()
}

/// Writes scaffold.uc: embedding and final norm.
fn write_embedding(folder: &Path, sizes: Sizes) -> NonLayerEntry {
    let tensor = |name: &str, shape: &[u64]| ExactDecl {
        name: name.to_owned(),
        dtype: ExactDtype::BF16,
        shape: shape.to_vec(),
    };
    let hidden = sizes.hidden as u64;
    let decls = [
        tensor("model.embed_tokens.weight", &[VOCABULARY, hidden]),
        tensor("model.norm.weight", &[hidden]),
    ];
    let mut bytes = Vec::new();
    write_non_layer(&mut bytes, &decls, |i, sink| {
        let count = decls[i].elements("test").expect("a valid shape");
        sink.write_all(&[0x80, 0x3f].repeat(count as usize))
    })
    .expect("written");
    let path = folder.join(uc_pack::NON_LAYER_FILE);
    std::fs::write(&path, bytes).expect("scaffold");
    NonLayerEntry::measure(&path).expect("measured")
}

fn entry_of(folder: &Path, name: &str) -> FileEntry {
    let (size, sha256) = Digest::hash_file(&folder.join(name)).expect("hashed");
    FileEntry {
        name: name.to_owned(),
        size,
        sha256,
    }
}

fn manifest(layers: Vec<LayerEntry>, non_layer: NonLayerEntry, files: Vec<FileEntry>) -> Manifest {
    let config_sha256 = files[0].sha256;
    let mut manifest = Manifest {
        pack_version: uc_pack::FORMAT_VERSION.into(),
        tool: Tool {
            name: "test".into(),
            version: "0".into(),
        },
        codec: Codec {
            name: "test".into(),
            source: "open".into(),
            format: 7,
            arithmetic: None,
            settings: std::iter::once(("rate".to_owned(), "5".to_owned())).collect(),
        },
        source: Source {
            name: "test".into(),
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
        layers,
        non_layer,
        files,
        totals: Totals {
            linear_parameters: 0,
            linear_bits: 0,
            bits_per_weight_linears: String::new(),
            total_parameters: 0,
            total_bytes: 0,
            bits_per_weight_all: String::new(),
            source_bytes: 0,
            compression_ratio: String::new(),
        },
    };
    manifest.totals = Totals::compute(&manifest, "test").expect("totals");
    manifest
}
