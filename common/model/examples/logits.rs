//! Computes the logits of a model for one window of token ids, for comparison with other implementations.
//!
//! ```text
//! logits MODEL < ids.json > logits.f32     # ids: [1, 2, 3]; output: [tokens, vocab] f32 little-endian
//! logits MODEL --tokens FILE               # prints the token ids of a text as JSON
//! ```

use std::io::{Read, Write};
use std::path::Path;

use burn::tensor::Tensor;
use uc_model::forward::{Embedding, Head, Layer, NoObserver, WeightsFromFn};
use uc_model::{Cpu, ModelConfig, ModelError, SourceFolder, Tokenizer, text};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let model = Path::new(
        arguments
            .get(1)
            .ok_or("usage: logits MODEL [--tokens FILE]")?,
    );
    if let Some(file) = arguments.get(3) {
        let ids = text::encode_texts(&Tokenizer::load(model)?, &[file], "text")?;
        println!("{}", serde_json::to_string(&ids)?);
        return Ok(());
    }
    let mut request = String::new();
    std::io::stdin().read_to_string(&mut request)?;
    let ids: Vec<u32> = serde_json::from_str(&request)?;
    let config = ModelConfig::load(model)?;
    let source = SourceFolder::open(model)?;
    source.check(&config)?;
    let device = Default::default();
    let read = |name: &str| -> Result<_, ModelError> { Ok(source.read(name)?.to_values()?) };
    let weights = WeightsFromFn::<Cpu, _>::new(&read, &device);
    let mut hidden = Embedding::new(&config, &weights)?.lookup(&[&ids])?;
    for (spec, plan) in config.layers.iter().zip(config.layer_plans()) {
        let read_layer = |name: &str| -> Result<_, ModelError> {
            Ok(source.read_planned(&plan, name)?.to_values()?)
        };
        let layer_weights = WeightsFromFn::new(&read_layer, &device);
        hidden = Layer::new(spec, ids.len(), &layer_weights, &device)?
            .forward(hidden, &mut NoObserver)?;
    }
    let head = Head::new(&config, &weights)?;
    let hidden: Tensor<Cpu, 2> = hidden.reshape([ids.len(), config.hidden]);
    let values: Vec<f32> = head
        .logits(hidden)
        .into_data()
        .into_vec()
        .map_err(|e| format!("{e:?}"))?;
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
