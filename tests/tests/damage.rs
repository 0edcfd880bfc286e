//! `uc verify` finds flipped bits in every file of a pack, and files that are missing, too short, too long or swapped.
#![allow(clippy::disallowed_methods)]

use std::path::Path;

use uc_tests::{compress, contents, fail_with, succeed, tiny_model, uc};

const DAMAGED: i32 = 5;

fn verify(pack: &Path) -> std::process::Command {
    let mut command = uc();
    command.arg("verify").arg(pack);
    command
}

#[test]
fn verify_finds_flipped_bits_and_truncated_extended_missing_or_swapped_files() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(compress(&tiny_model(), &run).arg("--no-eval"));
    let pack = run.join("pack");
    succeed(&mut verify(&pack));
    for (name, bytes) in contents(&pack) {
        let path = pack.join(&name);
        for part in 0..5 {
            let mut flipped = bytes.clone();
            let at = (bytes.len() - 1) * part / 4;
            flipped[at] ^= 1 << part;
            std::fs::write(&path, &flipped).expect("damage");
            let output = fail_with(&mut verify(&pack), DAMAGED);
            assert!(output.contains(&name), "byte {at} of {name}: {output}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("cut");
        fail_with(&mut verify(&pack), DAMAGED);
        std::fs::write(&path, [&bytes[..], b"x"].concat()).expect("longer");
        fail_with(&mut verify(&pack), DAMAGED);
        std::fs::remove_file(&path).expect("removed");
        let output = verify(&pack).output().expect("starts");
        assert!(!output.status.success(), "{name} is missing");
        std::fs::write(&path, &bytes).expect("restored");
    }
    succeed(&mut verify(&pack));

    // Two layers of the same shape, swapped.
    let (a, b) = (pack.join("layer_000.uc"), pack.join("layer_001.uc"));
    let (first, second) = (std::fs::read(&a).expect("a"), std::fs::read(&b).expect("b"));
    std::fs::write(&a, &second).expect("swapped");
    std::fs::write(&b, &first).expect("swapped");
    fail_with(&mut verify(&pack), DAMAGED);
}
