//! Random damages of a pack, in process: every one is found, none makes the verification panic, and memory stays bounded.

use uc_pack::verify::{Request, Verdict, VerifyReport, verify};

use crate::builder::{PackFolder, SMALL, Sizes};

/// A generator of the xorshift family: the same damages in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

/// One change of the bytes: a flipped bit, another byte, a number, zeros, a cut, an insertion, a deletion, a repetition.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(64)).min(bytes.len());
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = bytes[at].wrapping_add(1 + random.below(255) as u8),
        2 => {
            let number: u64 = [0, 1, u64::MAX, 1 << 31, 1 << 24, 0x4000_0000][random.below(6)];
            let end = (at + 4).min(bytes.len());
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        3 => bytes[at..end].fill(0),
        4 => bytes.truncate(at),
        5 => bytes.insert(at, random.below(256) as u8),
        6 => drop(bytes.drain(at..end)),
        _ => {
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

fn report(pack: &PackFolder) -> VerifyReport {
    let request = Request {
        threads: 2,
        ..Request::default()
    };
    verify(pack.path(), request, &|_| {})
}

/// The highest memory use of this process so far, bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("VmHWM");
    let kib: String = line.chars().filter(char::is_ascii_digit).collect();
    kib.parse::<u64>().expect("a number") << 10
}

/// Damages `count` times one file of a pack. Every other damage of a layer has its new digest recorded, so that it reaches the
/// decoder; there it need not be found, because a name of an input is covered by no other digest.
fn damages(count: usize, seed: u64) {
    let mut honest = PackFolder::honest(SMALL);
    assert_eq!(report(&honest).verdict, Verdict::Pass);
    let manifest = honest.manifest.clone();
    let names: Vec<String> = manifest.file_names().map(str::to_owned).collect();
    let before = peak_memory();
    let mut random = Random(seed);
    for number in 0..count {
        let name = &names[random.below(names.len())];
        let original = std::fs::read(honest.file(name)).expect("file");
        let mut bytes = original.clone();
        damage(&mut bytes, &mut random);
        if bytes == original {
            continue;
        }
        let layer = manifest.layers.iter().position(|layer| layer.file == *name);
        match layer.filter(|_| number % 2 == 0) {
            Some(layer) => {
                honest.replace_layer(layer, &bytes);
                honest.seal();
                report(&honest);
                honest.manifest = manifest.clone();
                honest.seal();
            }
            None => {
                std::fs::write(honest.file(name), &bytes).expect("damage");
                let verdict = report(&honest).verdict;
                assert_eq!(verdict, Verdict::Fail, "damage {number} of {name}");
            }
        }
        std::fs::write(honest.file(name), &original).expect("restored");
    }
    assert_eq!(report(&honest).verdict, Verdict::Pass);
    // Four pieces of the widest linear for each thread, and what the allocator keeps.
    let grown = peak_memory() - before;
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[test]
fn two_hundred_random_damages_are_found() {
    damages(200, 0x9e37_79b9_7f4a_7c15);
}

#[test]
#[ignore = "takes a minute"]
fn ten_thousand_random_damages_are_found() {
    damages(10_000, 0x2545_f491_4f6c_dd1d);
}

#[test]
#[ignore = "takes a minute"]
fn ten_thousand_random_changes_of_a_layer_with_wide_rows_never_panic() {
    let sizes = Sizes {
        layers: 1,
        hidden: 36,
        inner: 700,
        zero: false,
        rank: 1,
    };
    let pack = PackFolder::honest(sizes);
    let original = std::fs::read(pack.file("layer_000.uc")).expect("layer");
    let mut random = Random(77);
    for _ in 0..10_000 {
        let mut bytes = original.clone();
        // The header is small; most changes should meet it.
        let header = 1500.min(bytes.len());
        let mut part = bytes[..header].to_vec();
        damage(&mut part, &mut random);
        bytes.splice(..header, part);
        let Ok(file) = uc_pack::LayerFile::from_bytes(bytes, "test") else {
            continue;
        };
        for index in 0..file.linears().len() {
            let buffers = &mut uc_pack::layer::PieceBuffers::default();
            let linear = &file.linears()[index];
            if linear.rows * linear.cols < 1 << 22 {
                let _ = file.reconstruct_pieces(index, buffers, &mut |_| {});
            }
        }
    }
}
