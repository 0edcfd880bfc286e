//! The model that is compared with the teacher: a pack, or an export of one as GGUF or safetensors.
//!
//! Which one it is follows from the files that stand in the place of the pack's. Owns the reading of its tensors, layer by layer
//! and outside the layers, under their names in the plan. Nothing is written.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::Context;
use camino::Utf8Path;
use uc_export::gguf::GgufFile;
use uc_model::{HalfType, ModelConfig, SourceFolder, WeightValues};
use uc_pack::{ExactDtype, LayerFile, NonLayerFile};
use uc_store::tensors::{self, TensorDtype, TensorFile};

/// The first bytes of a GGUF file.
const GGUF: [u8; 4] = *b"GGUF";

/// The tensors of a layer of the candidate, or those outside the layers.
pub enum Candidate {
    /// A layer of a pack: coded linears decoded, other tensors exact.
    PackLayer(PackLayer),
    /// The tensors of a pack outside its layers.
    PackNonLayer(NonLayerFile),
    /// A GGUF file, which holds everything.
    Gguf(GgufFile),
    /// A model folder, which holds everything.
    Folder(SourceFolder),
}

/// A layer file, with the indices of its tensors by name.
pub struct PackLayer {
    file: LayerFile,
    linears: BTreeMap<String, usize>,
    exact: BTreeMap<String, usize>,
}

impl Candidate {
    /// Opens the file of a layer, or an export in its place.
    pub fn layer(path: &Utf8Path) -> anyhow::Result<Self> {
        if let Some(export) = Self::export(path)? {
            return Ok(export);
        }
        let file = LayerFile::open(path)?;
        let index = |names: Vec<&String>| names.into_iter().cloned().zip(0..).collect();
        let linears = index(file.linears().iter().map(|linear| &linear.name).collect());
        let exact = index(file.exact().iter().map(|tensor| &tensor.name).collect());
        Ok(Self::PackLayer(PackLayer {
            file,
            linears,
            exact,
        }))
    }

    /// Opens the file of the tensors outside the layers, or an export in its place.
    pub fn non_layer(path: &Utf8Path) -> anyhow::Result<Self> {
        match Self::export(path)? {
            Some(export) => Ok(export),
            None => Ok(Self::PackNonLayer(NonLayerFile::open(path)?)),
        }
    }

    /// The export that a path names, if it is not a file of a pack.
    fn export(path: &Utf8Path) -> anyhow::Result<Option<Self>> {
        if path.extension() == Some("safetensors")
            || path.as_str().ends_with(".safetensors.index.json")
        {
            let folder = path.parent().context("a file without a folder")?;
            return Ok(Some(Self::Folder(SourceFolder::open(
                folder.as_std_path(),
            )?)));
        }
        let mut first = Vec::new();
        let file = uc_input::open(path).with_context(|| format!("cannot open {path}"))?;
        let read = file.take(GGUF.len() as u64).read_to_end(&mut first);
        read.with_context(|| format!("cannot read {path}"))?;
        match first == GGUF {
            true => Ok(Some(Self::Gguf(GgufFile::open(path)?))),
            false => Ok(None),
        }
    }

    /// Whether it is an export, whose embedding may differ from the teacher's.
    pub fn is_export(&self) -> bool {
        matches!(self, Self::Gguf(_) | Self::Folder(_))
    }

    /// The values of a tensor: of layer `layer` by its name in the plan, or outside the layers by its full name.
    pub fn read(
        &self,
        config: &ModelConfig,
        layer: Option<usize>,
        name: &str,
    ) -> anyhow::Result<WeightValues> {
        Ok(match self {
            Self::PackLayer(pack) => pack.read(name)?,
            Self::PackNonLayer(file) => {
                let mut tensors = file.tensors().iter();
                let decl = tensors.find(|decl| decl.name == name);
                let decl =
                    decl.with_context(|| format!("the pack has no non-layer tensor {name}"))?;
                exact_values(decl.dtype, &file.read(name)?, name)?
            }
            Self::Gguf(file) => WeightValues::narrowed(file.read(config, layer, name)?),
            Self::Folder(folder) => match layer {
                Some(layer) => folder.read_planned(&config.layer_plan(layer), name)?,
                None => folder.read(name)?,
            }
            .to_values()?,
        })
    }
}

impl PackLayer {
    fn read(&self, name: &str) -> anyhow::Result<WeightValues> {
        if let Some(&index) = self.linears.get(name) {
            let bits = self.file.reconstruct(index)?;
            return Ok(WeightValues::Half(HalfType::Bf16, bits));
        }
        let index = self.exact.get(name);
        let &index = index.with_context(|| format!("the pack's layer has no tensor {name}"))?;
        let bytes = self.file.exact_bytes(index)?;
        exact_values(self.file.exact()[index].dtype, &bytes, name)
    }
}

/// The values of an exact tensor; refuses types that weights cannot have.
fn exact_values(dtype: ExactDtype, bytes: &[u8], name: &str) -> anyhow::Result<WeightValues> {
    let half = match dtype {
        ExactDtype::F32 => {
            let values = tensors::to_f32(TensorDtype::F32, bytes);
            return Ok(values.unwrap_or_default().into());
        }
        ExactDtype::F16 => HalfType::F16,
        ExactDtype::BF16 => HalfType::Bf16,
        other => anyhow::bail!("{name} is {other:?} in the pack, expected F32, F16 or BF16"),
    };
    Ok(WeightValues::from_half_bytes(half, bytes))
}

/// Reads a weight of the teacher from a file of the pipeline.
pub fn file_weight(file: &TensorFile, name: &str) -> anyhow::Result<WeightValues> {
    Ok(match file.tensor(name)?.dtype {
        TensorDtype::BF16 => WeightValues::Half(HalfType::Bf16, file.read_u16(name)?),
        TensorDtype::F16 => WeightValues::Half(HalfType::F16, file.read_u16(name)?),
        _ => file.read_f32(name)?.into(),
    })
}
