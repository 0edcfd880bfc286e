//! Reads a pack with `uc_pack` alone: lists its layers, reconstructs one linear and compares its digest with
//! the manifest.
//!
//! ```text
//! cargo run --release -p uc-examples --example read_pack -- runs/…/pack
//! ```

use anyhow::{Context, ensure};
use uc_pack::{Digest, Pack};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).context("usage: read_pack PACK")?;
    let pack = Pack::open(&folder)?;
    println!(
        "{} layers, fingerprint {}",
        pack.manifest().layers.len(),
        pack.fingerprint()
    );
    for layer in &pack.manifest().layers {
        println!(
            "{}  {} bytes, {} linears",
            layer.file,
            layer.size,
            layer.linears.len()
        );
    }
    let file = pack.layer(0)?;
    let entry = &pack.manifest().layers[0].linears[0];
    let weights = file.reconstruct(0)?;
    let found = Digest::hash_words(&weights);
    let first: Vec<f32> = weights
        .iter()
        .take(4)
        .map(|&bits| f32::from_bits(u32::from(bits) << 16))
        .collect();
    println!(
        "{}{} {:?} begins with {first:?}",
        pack.manifest().layers[0].prefix,
        entry.name,
        entry.shape
    );
    println!("SHA-256 {found}");
    ensure!(
        found == entry.reconstructed_sha256,
        "expected {}",
        entry.reconstructed_sha256
    );
    println!("equal to the digest in the manifest");
    Ok(())
}
