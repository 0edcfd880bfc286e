//! Measures how much the entropy-coded indices of a pack exceed the entropy of their contexts, layer by layer.
//!
//! ```text
//! cargo run --release -p uc-examples --example coder_overhead -- runs/…/pack
//! ```

use anyhow::Context;
use uc_codec::TensorCode;
use uc_codec::contexts::{LayerTables, context_entropy};
use uc_pack::Pack;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args()
        .nth(1)
        .context("usage: coder_overhead PACK")?;
    let pack = Pack::open(folder)?;
    println!(
        "bits per weight: entropy of the contexts, coded indices (with the tables, over the entropy), tables, whole file"
    );
    let mut sums = [0.0; 5];
    for entry in &pack.manifest().layers {
        let file = pack.layer(entry.index)?;
        let count = file.linears().len();
        let codes: Vec<TensorCode> = (0..count)
            .map(|i| file.codes(i))
            .collect::<Result<_, _>>()?;
        let codes: Vec<&TensorCode> = codes.iter().collect();
        // The tables are a function of the indices, so these are the tables of the file.
        let tables = LayerTables::build(&codes)?;
        let weights: usize = codes.iter().map(|code| code.weights()).sum();
        let mut coded_bits = 0;
        for code in &codes {
            coded_bits += 8 * uc_codec::rans::encode(code, &tables)?.payload.len();
        }
        let bits = [
            weights as f64,
            context_entropy(&codes, tables.granularity())?,
            coded_bits as f64,
            8.0 * tables.to_bytes().len() as f64,
            8.0 * entry.size as f64,
        ];
        print_line(&entry.file, &bits);
        for (sum, bits) in sums.iter_mut().zip(bits) {
            *sum += bits;
        }
    }
    print_line("all", &sums);
    Ok(())
}

fn print_line(name: &str, [weights, entropy, coded, tables, file]: &[f64; 5]) {
    println!(
        "{name:14} {:.4} {:.4} ({:+.4}) {:.4} {:.4}",
        entropy / weights,
        coded / weights,
        (coded + tables - entropy) / weights,
        tables / weights,
        file / weights
    );
}
