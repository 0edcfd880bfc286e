//! Products of panels by the tiles of AMX.
//!
//! Safety: the unsafe operation is assembly whose accesses lie inside slices whose lengths are checked before.
#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::MaybeUninit;

use super::pack::{BLOCK_PAIRS, PANEL, Pairs, Square};
use super::product::TILES;
use crate::amx::{FULL_TILES, TILE_ROW_BYTES};

/// A row of the tiles of a product that is not added to anything.
static ZEROS: [f32; PANEL] = [0.0; PANEL];

/// The products of all vectors of a part of a left operand with all of a part of a panel, written to `dst` or added to it: nine tiles of
/// sums, six for the first 32 rows and three for the others. The loads of a step, of 8 cycles each from the first-level cache, take less
/// time than its products of 16 cycles.
///
/// # Safety
/// The processor has AMX. `dst` is initialized if the products are added.
pub(super) unsafe fn product<const ADD: bool>(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    left: &[Square],
    right: &[Pairs],
) {
    let blocks = right.len() / BLOCK_PAIRS;
    assert!((PANEL - 1) * stride + PANEL <= dst.len(), "too small");
    assert!(
        blocks > 0 && right.len() == blocks * BLOCK_PAIRS,
        "no blocks"
    );
    let tiles = left.len() / TILES;
    assert!(tiles > 0 && tiles.is_multiple_of(blocks), "no tiles");
    assert_eq!(left.len(), TILES * tiles, "tiles");
    let row = size_of_val(&dst[..stride]);
    let (from, from_row) = match ADD {
        true => (dst.as_ptr().cast::<f32>(), row),
        false => (ZEROS.as_ptr(), 0),
    };
    // SAFETY: `left` has `tiles` tiles, a multiple of `blocks`, for each 16 rows, and `right` has `blocks` blocks; the sums are 48 values
    // in each of 48 rows of `dst`, as the first assertion says, or are first read from `ZEROS`, which has as many. The tiles are
    // configured and released here.
    unsafe {
        asm!(
            "ldtilecfg [{end}]",
            "mov {end}, {second}",
            // The first 32 rows, in tmm0 to tmm5.
            "tileloadd tmm0, [{from} + {from_row}]", "tileloadd tmm1, [{from} + {from_row} + 64]", "tileloadd tmm2, [{from} + {from_row} + 128]",
            "mov {at}, {from_row}", "shl {at}, 4", "add {from}, {at}",
            "tileloadd tmm3, [{from} + {from_row}]", "tileloadd tmm4, [{from} + {from_row} + 64]", "tileloadd tmm5, [{from} + {from_row} + 128]",
            "add {from}, {at}",
            "2:", "mov {at}, {right}", "mov {block}, {blocks}",
            "3:", "tileloadd tmm6, [{left} + {left_row}]",
            "tileloadd tmm7, [{at} + {right_row}]", "tdpbf16ps tmm0, tmm6, tmm7",
            "tileloadd tmm7, [{at} + {right_row} + 64]", "tdpbf16ps tmm1, tmm6, tmm7",
            "tileloadd tmm7, [{at} + {right_row} + 128]", "tdpbf16ps tmm2, tmm6, tmm7",
            "tileloadd tmm6, [{second} + {left_row}]", "tdpbf16ps tmm5, tmm6, tmm7",
            "tileloadd tmm7, [{at} + {right_row} + 64]", "tdpbf16ps tmm4, tmm6, tmm7",
            "tileloadd tmm7, [{at} + {right_row}]", "tdpbf16ps tmm3, tmm6, tmm7",
            "add {left}, {tile}", "add {second}, {tile}", "add {at}, {block_bytes}", "dec {block}", "jnz 3b",
            "cmp {left}, {end}", "jne 2b",
            "mov {at}, {row}", "shl {at}, 4",
            "tilestored [{dst} + {row}], tmm0", "tilestored [{dst} + {row} + 64], tmm1", "tilestored [{dst} + {row} + 128], tmm2",
            "add {dst}, {at}",
            "tilestored [{dst} + {row}], tmm3", "tilestored [{dst} + {row} + 64], tmm4", "tilestored [{dst} + {row} + 128], tmm5",
            "add {dst}, {at}",
            // The last 16 rows, in tmm0 to tmm2. `second` has come to their tiles, which end as far after it as `end` is before.
            "tileloadd tmm0, [{from} + {from_row}]", "tileloadd tmm1, [{from} + {from_row} + 64]", "tileloadd tmm2, [{from} + {from_row} + 128]",
            "neg {end}", "lea {end}, [{end} + 2*{second}]",
            "4:", "mov {at}, {right}", "mov {block}, {blocks}",
            "5:", "tileloadd tmm6, [{second} + {left_row}]",
            "tileloadd tmm3, [{at} + {right_row}]", "tdpbf16ps tmm0, tmm6, tmm3",
            "tileloadd tmm4, [{at} + {right_row} + 64]", "tdpbf16ps tmm1, tmm6, tmm4",
            "tileloadd tmm5, [{at} + {right_row} + 128]", "tdpbf16ps tmm2, tmm6, tmm5",
            "add {second}, {tile}", "add {at}, {block_bytes}", "dec {block}", "jnz 5b",
            "cmp {second}, {end}", "jne 4b",
            "tilestored [{dst} + {row}], tmm0", "tilestored [{dst} + {row} + 64], tmm1", "tilestored [{dst} + {row} + 128], tmm2",
            "tilerelease",
            left = inout(reg) left.as_ptr() => _,
            second = inout(reg) left[tiles..].as_ptr() => _,
            end = inout(reg) &raw const FULL_TILES => _,
            right = in(reg) right.as_ptr(),
            dst = inout(reg) dst.as_mut_ptr() => _,
            row = in(reg) row,
            from = inout(reg) from => _,
            from_row = in(reg) from_row,
            blocks = in(reg) blocks,
            left_row = in(reg) TILE_ROW_BYTES, right_row = in(reg) size_of::<Pairs>(),
            block = out(reg) _, at = out(reg) _,
            tile = const size_of::<Square>(),
            block_bytes = const BLOCK_PAIRS * size_of::<Pairs>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
