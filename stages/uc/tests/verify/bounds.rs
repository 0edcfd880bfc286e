//! Memory and time are bounded by what lies on disk.

use std::fs::OpenOptions;

use uc_pack::manifest::LinearEntry;
use uc_pack::{Digest, ExactDtype, FORMAT_VERSION};

use crate::builder::{PackFolder, SMALL, Sizes};
use crate::{fails, passes};

/// A layer file of zero linears, each with rows and columns and no exact tensors, written by hand: the writer would need the
/// weights.
fn zero_layer(shapes: &[(String, u32, u32)]) -> Vec<u8> {
    let mut groups: Vec<u32> = shapes.iter().map(|shape| shape.2).collect();
    groups.dedup();
    let mut bytes = b"UCLAYER\0".to_vec();
    for field in [
        FORMAT_VERSION,
        0,
        groups.len() as u16,
        shapes.len() as u16,
        0,
        0,
    ] {
        bytes.extend(field.to_le_bytes());
    }
    // One table, for context 0, in which the symbol 0 has all slots.
    bytes.extend(4u32.to_le_bytes());
    bytes.extend([0, 2, 2, 0]);
    for columns in &groups {
        bytes.extend(b"\x01i");
        bytes.extend(columns.to_le_bytes());
        bytes.extend([2, 0, 0, 0, 0, 0]);
    }
    for (name, rows, columns) in shapes {
        let group = groups
            .iter()
            .position(|group| group == columns)
            .expect("listed") as u16;
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
        bytes.extend(rows.to_le_bytes());
        bytes.extend(group.to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(1f32.to_le_bytes());
        bytes.extend([2, 0, 0, 0, 0, 0].repeat(2));
        for _ in 0..tiles(*rows, *columns) {
            bytes.extend((4 * columns.min(&32)).to_le_bytes());
        }
    }
    for (_, rows, columns) in shapes {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let states = tiles(*rows, *columns) * columns.min(&32);
        bytes.extend((0..states).flat_map(|_| (1u32 << 16).to_le_bytes()));
    }
    bytes
}

fn tiles(rows: u32, columns: u32) -> u32 {
    let blocks = ((1 << 20) / (256 * columns)).max(1);
    rows.div_ceil(rows.min(256 * blocks))
}

/// Bits of a zero linear in the layer file: descriptor, padding and payload.
fn entries(shapes: &[(String, u32, u32)], file: &[u8]) -> Vec<LinearEntry> {
    let parsed = uc_pack::LayerFile::from_bytes(file.to_vec(), "test").expect("consistent");
    let entry =
        |((name, rows, columns), header): (&(String, u32, u32), &uc_pack::layer::LinearHeader)| {
            LinearEntry {
                name: name.clone(),
                shape: [(*rows).into(), (*columns).into()],
                source_sha256: Digest::hash_bytes(b""),
                reconstructed_sha256: Digest::hash_bytes(b""),
                bits: header.bytes * 8,
                rank: 0,
            }
        };
    shapes.iter().zip(parsed.linears()).map(entry).collect()
}

/// A pack whose layer 0 consists of zero linears of these shapes.
fn pack_of_zeros(shapes: &[(String, u32, u32)]) -> PackFolder {
    let mut pack = PackFolder::honest(SMALL);
    let file = zero_layer(shapes);
    pack.replace_layer(0, &file);
    pack.manifest.layers[0].linears = entries(shapes, &file);
    pack.manifest.layers[0].exact.clear();
    pack.seal();
    pack
}

fn many(count: usize, rows: u32, columns: u32) -> Vec<(String, u32, u32)> {
    (0..count)
        .map(|i| (format!("w{i}"), rows, columns))
        .collect()
}

#[test]
fn an_honest_pack_passes_in_a_small_address_space() {
    let text = passes(PackFolder::honest(SMALL).path());
    assert!(text.contains("tensors recomputed    20\n"), "{text}");
    assert!(
        text.contains("PASS: consistent in itself; authenticity"),
        "{text}"
    );
}

#[test]
fn constant_and_wide_linears_of_many_tiles_pass_in_a_small_address_space() {
    // 12 million zero weights; 7 million weights in rows of 30,000 columns.
    let zero = Sizes {
        layers: 1,
        hidden: 1024,
        inner: 2500,
        zero: true,
        rank: 0,
    };
    passes(PackFolder::honest(zero).path());
    let wide = Sizes {
        layers: 1,
        hidden: 128,
        inner: 30_000,
        zero: false,
        rank: 3,
    };
    passes(PackFolder::honest(wide).path());
}

#[test]
fn a_linear_that_claims_more_than_its_tiles_can_hold_is_refused() {
    let mut pack = PackFolder::honest(SMALL);
    pack.manifest.layers[0].linears[0].shape = [1 << 24, 1 << 18];
    pack.seal();
    fails(pack.path(), "at most 1024 for each byte");
}

#[test]
fn consistent_layers_of_nothing_but_zeros_are_refused_by_the_weights_that_they_claim() {
    // 8.6 MB that claim 8.8 TB, and 1 MB of 2,000 linears that claim 134,000 million weights.
    let largest = vec![("w".to_owned(), 1 << 24, 1 << 18)];
    fails(pack_of_zeros(&largest).path(), "at most 1024 for each byte");
    let wide = many(2000, 256, 1 << 18);
    fails(pack_of_zeros(&wide).path(), "at most 1024 for each byte");
}

#[test]
fn linears_that_stay_below_the_bound_are_read_in_little_memory() {
    // Rows of one column: millions of logarithms in two bytes. Thousands of small linears. A row of the largest width.
    for shapes in [
        many(1, 1 << 23, 1),
        many(6000, 16, 64),
        many(1, 48, 1 << 18),
    ] {
        let weights: u64 = shapes.iter().map(|s| u64::from(s.1) * u64::from(s.2)).sum();
        let mut pack = pack_of_zeros(&shapes);
        // Embeddings make up for the constant weights.
        std::fs::write(pack.file("vocabulary"), vec![7; (weights / 1024) as usize]).expect("file");
        pack.record_file("vocabulary");
        pack.seal();
        let text = fails(pack.path(), "compared with config.json");
        assert!(!text.contains("for each byte"), "{text}");
        let recomputed = format!("tensors recomputed    {}\n", shapes.len() + 11);
        assert!(text.contains(&recomputed), "{text}");
    }
}

#[test]
fn a_long_file_of_holes_is_not_read() {
    // Behind a layer, as the file of embeddings, as another file: 1 TiB each.
    let lengthen = |pack: &PackFolder, name: &str| {
        let file = OpenOptions::new()
            .write(true)
            .open(pack.file(name))
            .expect("file");
        file.set_len(1 << 40).expect("a file system with holes");
    };
    let mut pack = PackFolder::honest(SMALL);
    lengthen(&pack, "layer_000.uc");
    fails(pack.path(), "file length: found 1099511627776");
    pack.manifest.layers[0].size = 1 << 40;
    pack.seal();
    fails(pack.path(), "the rest are holes");

    let mut pack = PackFolder::honest(SMALL);
    lengthen(&pack, "scaffold.uc");
    pack.manifest.non_layer.size = 1 << 40;
    pack.manifest.non_layer.tensors[0].shape = vec![1 << 20, 1 << 19];
    pack.seal();
    fails(pack.path(), "the rest are holes");

    let mut pack = PackFolder::honest(SMALL);
    lengthen(&pack, "config.json");
    pack.manifest.files[0].size = 1 << 40;
    pack.seal();
    fails(pack.path(), "the rest are holes");
}

#[test]
fn lengths_in_a_header_reserve_no_memory() {
    let pack = PackFolder::honest(SMALL);
    let honest = std::fs::read(pack.file("layer_000.uc")).expect("layer");
    // The length of the tables, and a number of columns and the length of their logarithms.
    for at in [20, 24 + 4] {
        let mut pack = PackFolder::honest(SMALL);
        let mut bytes = honest.clone();
        bytes[at..at + 4].copy_from_slice(&0xf000_0000u32.to_le_bytes());
        pack.replace_layer(0, &bytes);
        pack.seal();
        fails(pack.path(), "layer_000.uc");
    }
}

#[test]
fn a_manifest_that_names_a_layer_many_times_is_not_followed() {
    let mut pack = PackFolder::honest(SMALL);
    let first = pack.manifest.layers[0].clone();
    pack.manifest.layers = vec![first; 900];
    pack.seal();
    let text = fails(pack.path(), "layer index");
    assert!(text.contains("more findings"), "{text}");
    assert!(text.contains("tensors recomputed    0\n"), "{text}");
}

#[test]
fn an_overlay_and_exact_tensors_that_lie_outside_the_file_are_refused() {
    let mut pack = PackFolder::honest(SMALL);
    pack.manifest.layers[1].exact[0].shape = vec![1 << 30];
    pack.manifest.layers[1].exact[0].dtype = ExactDtype::F64;
    pack.seal();
    fails(pack.path(), "exact tensor");
}
