//! Runs the fuzz targets on mutated seeds, without libFuzzer and on any toolchain: `mutate SECONDS [TARGET]`.
//!
//! It does not look at coverage, so it finds less than libFuzzer; it shows that the targets work. An input that makes a target
//! panic is left in the file that the message names.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uc_fuzz::TARGETS;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    let only = arguments.next();
    for (name, target) in TARGETS {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "no seeds in corpus/{name}");
        let input = std::env::temp_dir().join(format!("uc-fuzz-{name}"));
        let (mut random, mut runs) = (Random(0x9e37_79b9_7f4a_7c15), 0u64);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let bytes = mutated(&seeds, &mut random);
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            if outcome.is_err() {
                std::fs::write(&input, &bytes).expect("input");
                panic!("{name} panicked on {}", input.display());
            }
            runs += 1;
        }
        println!("{name}: {runs} inputs, no finding");
    }
}

/// The seeds of a target.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("seed"))
        .collect()
}

/// A seed with one to four changes: flipped bits, other bytes, interesting numbers, cuts, repetitions, parts of other seeds.
fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 if at + 4 <= bytes.len() => {
                let numbers = [
                    0,
                    1,
                    0xff,
                    0x7fff_ffff,
                    0x8000_0000,
                    u32::MAX,
                    1 << 16,
                    1 << 24,
                ];
                let number = numbers[random.below(numbers.len())];
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(16)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let part = &other[from..(from + random.below(32)).min(other.len())];
                let end = (at + part.len()).min(bytes.len());
                bytes.splice(at..end, part.iter().copied());
            }
        }
    }
    bytes
}

/// A generator of the xorshift family: the same inputs in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}
