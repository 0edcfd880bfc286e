//! Finds the table that minimizes the bits of a context's indices and of the table itself.
//!
//! Costs are integers in 65536ths of a bit, so that the choice does not depend on the platform's logarithm.

use super::histogram::{CENTRE, ContextCounts, WINDOW};
use super::table::{ContextTable, ESCAPE, LARGEST_SHIFT, LARGEST_SYMBOL, SCALE, symbol_index};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The cost of one bit.
pub(crate) const ONE_BIT: u64 = 1 << 16;
/// Bits of the byte that gives the symbol of an escaped index.
const ESCAPED_SYMBOL_BITS: u64 = 8;
/// Additional bits of an index beyond all symbols.
const RAW_INDEX_BITS: u64 = 16;
/// Larger shifts are not tried once the largest half width is at most this: a coarser alphabet saves next to nothing.
const NARROW_HALF_WIDTH: i32 = 24;

/// `-log2(f / 4096)` in 65536ths of a bit, for f = 1..=4096.
static COST: [u32; SCALE as usize + 1] = costs();

const fn costs() -> [u32; SCALE as usize + 1] {
    let mut table = [0; SCALE as usize + 1];
    let mut f = 1u32;
    while f <= SCALE {
        // Binary logarithm by repeated squaring of the mantissa (31 fractional bits).
        let mut mantissa = (f as u64) << (31 - f.ilog2());
        let mut log = f.ilog2();
        let mut bit = 0;
        while bit < 16 {
            mantissa = (mantissa * mantissa) >> 31;
            let carry = mantissa >> 32;
            mantissa >>= carry;
            log = log << 1 | carry as u32;
            bit += 1;
        }
        table[f as usize] = (12 << 16) - log;
        f += 1;
    }
    table
}

/// The best table for the counted indices, and the cost of indices and table in 65536ths of a bit.
pub(crate) fn best_table(context: &ContextCounts) -> (ContextTable, u64) {
    let mut best: Option<(u64, ContextTable)> = None;
    for shift in 0..=LARGEST_SHIFT {
        let (bins, outside) = bins(context, shift);
        let halves = half_widths(&bins, outside);
        for &half in &halves {
            for mirrored in [true, false] {
                let table = normalized(&bins, outside, half, mirrored, shift);
                let cost = cost(&table, &bins, outside);
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, table));
                }
            }
        }
        if halves
            .first()
            .is_some_and(|&largest| largest <= NARROW_HALF_WIDTH)
        {
            break;
        }
    }
    let (cost, table) = best.expect("the first shift has at least one half width");
    (table, cost)
}

/// Counts per symbol `[256]` at a shift, and the number of indices beyond all symbols.
fn bins(context: &ContextCounts, shift: u32) -> (Vec<u64>, u64) {
    let mut bins = vec![0u64; 256];
    let mut outside = context.outside;
    for (position, &count) in context.counts.iter().enumerate().take(WINDOW) {
        let symbol = symbol_of(position as i32 - CENTRE, shift);
        if count > 0 && symbol.abs() <= LARGEST_SYMBOL {
            bins[symbol_index(symbol)] += count;
        } else {
            outside += count;
        }
    }
    (bins, outside)
}

/// Symbol of an index.
pub(crate) fn symbol_of(index: i32, shift: u32) -> i32 {
    (index + ((1 << shift) >> 1)) >> shift
}

/// Half widths to try, largest first: those at which the number of escaped indices first exceeds 0, 1, 2, 4, …
fn half_widths(bins: &[u64], outside: u64) -> Vec<i32> {
    let total: u64 = bins.iter().sum::<u64>() + outside;
    let mut halves = Vec::new();
    let (mut escaped, mut allowed) = (0u64, 0u64);
    for half in (0..=LARGEST_SYMBOL).rev() {
        let next = if half > 0 {
            bins[symbol_index(half)] + bins[symbol_index(-half)]
        } else {
            u64::MAX / 2
        };
        if escaped + next > allowed {
            halves.push(half);
            while allowed < escaped + next && allowed <= total {
                allowed = (2 * allowed).max(1);
            }
        }
        escaped += next;
        if half == 0 || escaped > total / 2 {
            break;
        }
    }
    halves
}

/// One frequency to be chosen: that of one symbol, or of a symbol and its mirror image.
struct FrequencyShare {
    count: u64,
    /// Slots that the frequency takes per unit: 2 for mirrored symbols.
    slots: u32,
    frequency: u32,
}

/// Frequencies for the symbols up to the magnitude `half`; larger ones are escaped.
fn normalized(bins: &[u64], outside: u64, half: i32, mirrored: bool, shift: u32) -> ContextTable {
    let is_escaped = |symbol: &i32| symbol.abs() > half;
    let escaped: u64 = outside
        + (-127..=127)
            .filter(is_escaped)
            .map(|s| bins[symbol_index(s)])
            .sum::<u64>();
    let single = |count| FrequencyShare {
        count,
        slots: 1,
        frequency: 0,
    };
    let mut shares = vec![single(bins[symbol_index(0)]), single(escaped)];
    for s in 1..=half {
        let (below, above) = (bins[symbol_index(-s)], bins[symbol_index(s)]);
        if mirrored {
            shares.push(FrequencyShare {
                count: below + above,
                slots: 2,
                frequency: 0,
            });
        } else {
            shares.extend([single(below), single(above)]);
        }
    }
    distribute_slots(&mut shares);
    let mut frequencies = vec![0u16; 256];
    frequencies[symbol_index(0)] = shares[0].frequency as u16;
    frequencies[symbol_index(ESCAPE)] = shares[1].frequency as u16;
    for s in 1..=half {
        let at = 2 + (s as usize - 1) * if mirrored { 1 } else { 2 };
        frequencies[symbol_index(-s)] = shares[at].frequency as u16;
        frequencies[symbol_index(s)] = shares[if mirrored { at } else { at + 1 }].frequency as u16;
    }
    ContextTable { shift, frequencies }
}

/// Distributes the 4096 slots: at least one unit to every share whose count is not 0, the rest where it saves the most
/// bits.
fn distribute_slots(shares: &mut [FrequencyShare]) {
    let total: u64 = shares.iter().map(|share| share.count).sum();
    let mut remaining = i64::from(SCALE);
    for share in shares.iter_mut().filter(|share| share.count > 0) {
        let fair = u128::from(share.count) * u128::from(SCALE)
            / (u128::from(total) * u128::from(share.slots));
        share.frequency = (fair as u32).max(1);
        remaining -= i64::from(share.frequency * share.slots);
    }
    if remaining > 0 {
        let gain = |share: &FrequencyShare| {
            let saved = COST[share.frequency as usize] - COST[share.frequency as usize + 1];
            share.count * u64::from(saved) / u64::from(share.slots)
        };
        let fits = |share: &FrequencyShare, free: i64| {
            share.frequency > 0 && i64::from(share.slots) <= free && share.frequency < SCALE
        };
        let mut queue: BinaryHeap<(u64, Reverse<usize>)> = (0..shares.len())
            .filter(|&i| fits(&shares[i], remaining))
            .map(|i| (gain(&shares[i]), Reverse(i)))
            .collect();
        while let Some((_, Reverse(i))) = queue.pop() {
            if fits(&shares[i], remaining) {
                shares[i].frequency += 1;
                remaining -= i64::from(shares[i].slots);
                if fits(&shares[i], remaining) {
                    queue.push((gain(&shares[i]), Reverse(i)));
                }
            }
        }
    } else {
        let loss = |share: &FrequencyShare| {
            let lost = COST[share.frequency as usize - 1] - COST[share.frequency as usize];
            share.count * u64::from(lost) / u64::from(share.slots)
        };
        let mut queue: BinaryHeap<Reverse<(u64, usize)>> = (0..shares.len())
            .filter(|&i| shares[i].frequency > 1)
            .map(|i| Reverse((loss(&shares[i]), i)))
            .collect();
        while remaining < 0 {
            let Some(Reverse((_, i))) = queue.pop() else {
                break;
            };
            shares[i].frequency -= 1;
            remaining += i64::from(shares[i].slots);
            if shares[i].frequency > 1 {
                queue.push(Reverse((loss(&shares[i]), i)));
            }
        }
    }
    // A single slot that no mirrored pair can use.
    shares[0].frequency += remaining as u32;
}

/// Bits of the indices and of the table, in 65536ths.
fn cost(table: &ContextTable, bins: &[u64], outside: u64) -> u64 {
    let mut cost = table.bits() * ONE_BIT;
    let mut escaped = outside;
    let mut total = outside;
    for symbol in -LARGEST_SYMBOL..=LARGEST_SYMBOL {
        let count = bins[symbol_index(symbol)];
        total += count;
        match table.frequency_of(symbol) {
            0 => escaped += count,
            frequency => cost += count * u64::from(COST[frequency as usize]),
        }
    }
    if escaped > 0 {
        let escape = u64::from(COST[table.frequency_of(ESCAPE) as usize]);
        cost +=
            escaped * (escape + ESCAPED_SYMBOL_BITS * ONE_BIT) + outside * RAW_INDEX_BITS * ONE_BIT;
    }
    cost + total * u64::from(table.shift) * ONE_BIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::{BitReader, BitWriter};

    /// Counts of a context with the given indices and their numbers of occurrences.
    fn context(counted: &[(i32, u64)]) -> ContextCounts {
        let mut counts = vec![0; WINDOW];
        let mut outside = 0;
        for &(index, count) in counted {
            match counts.get_mut((index + CENTRE) as u32 as usize) {
                Some(counted) => *counted += count,
                None => outside += count,
            }
        }
        ContextCounts { counts, outside }
    }

    fn bell(sigma: f64, total: f64) -> ContextCounts {
        let density = |i: i32| (-0.5 * (f64::from(i) / sigma).powi(2)).exp() / (sigma * 2.5066283);
        let counted: Vec<(i32, u64)> = (-2000..=2000)
            .map(|i| (i, (total * density(i)).round() as u64))
            .collect();
        context(&counted)
    }

    #[test]
    fn the_costs_are_logarithms() {
        for f in 1..=SCALE {
            let exact = (f64::from(SCALE) / f64::from(f)).log2() * 65536.0;
            assert!((f64::from(COST[f as usize]) - exact).abs() < 1.5, "{f}");
        }
    }

    #[test]
    fn tables_sum_to_4096_and_are_read_back_from_their_bytes() {
        let cases = [
            context(&[(0, 5)]),
            context(&[(7, 5)]),
            context(&[(-1, 1), (1, 1)]),
            context(&[(0, 1), (30000, 1)]),
            context(&[(-32768, 9)]),
            context(&(-127..=127).map(|i| (i, 1)).collect::<Vec<_>>()),
            bell(0.2, 1e6),
            bell(3.0, 1e3),
            bell(20.0, 1e7),
            bell(300.0, 1e6),
        ];
        for context in &cases {
            let (table, cost) = best_table(context);
            assert_eq!(
                table.frequencies.iter().map(|&f| u32::from(f)).sum::<u32>(),
                SCALE
            );
            let mut writer = BitWriter::default();
            table.write(&mut writer);
            let bytes = writer.finish();
            assert_eq!(bytes.len() as u64, table.bits().div_ceil(8));
            let mut reader = BitReader::new("table", &bytes);
            assert_eq!(ContextTable::read(&mut reader).unwrap(), table);
            assert!(cost >= table.bits() * ONE_BIT);
            // Every counted index has a code.
            let (bins, outside) = bins(context, table.shift);
            let escaped =
                (-127..=127).any(|s| bins[symbol_index(s)] > 0 && table.frequency_of(s) == 0);
            assert!(!(escaped || outside > 0) || table.frequency_of(ESCAPE) > 0);
        }
    }

    #[test]
    fn large_contexts_come_within_a_few_thousandths_of_a_bit_of_their_entropy() {
        for sigma in [0.3, 1.0, 4.0, 16.0, 40.0, 200.0] {
            let context = bell(sigma, 1e7);
            let (table, cost) = best_table(&context);
            let total = context.total() as f64;
            let overhead = cost as f64 / ONE_BIT as f64 / total - context.entropy() / total;
            assert!(
                (0.0..0.005).contains(&overhead),
                "σ {sigma}: {overhead} {table:?}"
            );
        }
    }

    #[test]
    fn a_context_of_zeros_costs_nothing_but_its_table() {
        let (table, cost) = best_table(&context(&[(0, 1 << 40)]));
        assert_eq!((table.frequency_of(0), cost), (SCALE, 12 * ONE_BIT));
    }
}
