//! What the fuzz targets do: each function reads bytes as a file of a pack, and panics if a property does not hold.
//!
//! Errors are expected; panics, hangs and memory beyond a few MB are findings. A finding becomes a test of the crate that it
//! is about. The drivers are `targets/` (libFuzzer) and `src/bin/mutate.rs` (any toolchain).

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, Write};

use uc_pack::layer::PieceBuffers;
use uc_pack::{LayerFile, Manifest, NonLayerFile};

/// Largest number of weights of a linear that a target decodes.
const MAX_WEIGHTS: usize = 1 << 20;

/// The targets by name, which is also that of their corpus.
pub const TARGETS: [(&str, fn(&[u8])); 4] = [
    ("layer", layer),
    ("non_layer", non_layer),
    ("manifest", manifest),
    ("packed", packed),
];

/// Reads a layer file: every linear as a whole and in pieces, with the same result, and every exact tensor.
pub fn layer(data: &[u8]) {
    let Ok(file) = LayerFile::from_bytes(data.to_vec(), "fuzz") else {
        return;
    };
    for index in 0..file.exact().len() {
        let bytes = file.exact_bytes(index).expect("within the file");
        file.exact()[index].dtype.all_finite(&bytes);
    }
    let mut buffers = PieceBuffers::default();
    for (index, linear) in file.linears().iter().enumerate() {
        if linear.rows.saturating_mul(linear.cols) > MAX_WEIGHTS {
            continue;
        }
        let mut pieces = Vec::new();
        let mut sink = |piece: &[u16]| pieces.extend_from_slice(piece);
        let in_pieces = file.reconstruct_pieces(index, &mut buffers, &mut sink);
        let whole = file.reconstruct(index);
        assert_eq!(in_pieces.is_ok(), whole.is_ok(), "{in_pieces:?}");
        if let Ok(whole) = whole {
            assert!(whole == pieces, "pieces differ");
        }
    }
}

thread_local! {
    /// The file that [`non_layer`] writes again and again.
    static FILE: RefCell<File> = RefCell::new(tempfile::tempfile().expect("temporary file"));
}

/// Reads a file of non-layer tensors, and every tensor in it.
pub fn non_layer(data: &[u8]) {
    let file = FILE.with_borrow_mut(|file| {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(data)?;
        file.rewind()?;
        file.try_clone()
    });
    let Ok(file) = NonLayerFile::from_file(file.expect("a file"), "fuzz") else {
        return;
    };
    for index in 0..file.tensors().len() {
        let mut bytes = Vec::new();
        let mut reader = file.reader(index).expect("a valid size");
        reader.read_to_end(&mut bytes).expect("within the file");
        let expected = file.tensors()[index]
            .byte_len("fuzz")
            .expect("a valid size");
        assert_eq!(bytes.len() as u64, expected);
    }
}

/// Reads a manifest; one that is canonical is written unchanged.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data, "fuzz") else {
        return;
    };
    for error in manifest.inconsistencies("fuzz") {
        assert!(!error.text().chars().any(char::is_control), "{error:?}");
    }
    let is_canonical = manifest.check_canonical(data, "fuzz").is_ok();
    assert_eq!(is_canonical, manifest.to_bytes() == data);
}

/// Unpacks logarithms: two bytes with their number, then the packed form. The check accepts exactly what the writer makes.
pub fn packed(data: &[u8]) {
    let Some((count, bytes)) = data.split_first_chunk::<2>() else {
        return;
    };
    let count = usize::from(u16::from_le_bytes(*count));
    let checked = uc_codec::check_packed(bytes, count).is_ok();
    match uc_codec::unpack_small(bytes, count) {
        Ok(values) => {
            assert_eq!(values.len(), count);
            assert_eq!(checked, uc_codec::pack_small(&values) == bytes);
        }
        Err(_) => assert!(!checked),
    }
}
