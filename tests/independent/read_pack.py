"""An independent reader of packs, written from docs/pack-format.md alone, with the Python standard library and numpy.

Usage: python3 tests/independent/read_pack.py PACK [LAYERS]

Decodes every linear of the first LAYERS layers (default 1) and compares the SHA-256 of its weights with the manifest.
Exits with 1 on any difference. Overlays (rank above 0) need a fused multiply-add, which is computed exactly with
fractions and is slow.
"""
import hashlib
import json
import pathlib
import struct
import sys
from fractions import Fraction

import numpy as np

# Bits of the f32 nearest to 2^(k/8), for k from 0 to 7.
MANTISSAS = [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7]


class BitReader:
    """Reads a bit stream, least significant bit first."""

    def __init__(self, data):
        self.data, self.position = data, 0

    def take(self, width):
        value = 0
        for bit in range(width):
            value |= (self.data[self.position >> 3] >> (self.position & 7) & 1) << bit
            self.position += 1
        return value

    def rice(self, parameter):
        quotient = 0
        while self.take(1):
            quotient += 1
        return quotient << parameter | self.take(parameter)


def unzigzag(z):
    return z >> 1 ^ -(z & 1)


def unpack_logarithms(data, count):
    base, mode, bits = data[0], data[1], BitReader(data[2:])
    if mode <= 8:
        return [base + bits.take(mode) for _ in range(count)]
    return [base + unzigzag(bits.rice(mode - 16)) for _ in range(count)]


def read_tables(data):
    """The granularity, and the table of each context: shift, frequencies, first slot of each symbol, symbol of each slot."""
    bits = BitReader(data)
    granularity, first, span = bits.take(2), bits.take(7), bits.take(8)
    contexts = [first + i for i in range(span) if bits.take(1)]
    tables = {}
    for context in contexts:
        shift, half, mirrored, escapes = bits.take(3), bits.take(7), bits.take(1), bits.take(1)
        frequency = dict.fromkeys(range(-128, 128), 0)
        if escapes:
            frequency[-128] = bits.take(12) + 1
        if half:
            parameter = bits.take(4)
            for sign in ([0] if mirrored else [-1, 1]):
                previous = before = 0
                for size in range(half, 0, -1):
                    previous, before = 2 * previous - before + unzigzag(bits.rice(parameter)), previous
                    for s in ([-size, size] if sign == 0 else [sign * size]):
                        frequency[s] = previous
        frequency[0] = 4096 - sum(f for s, f in frequency.items() if s != 0)
        symbol_of_slot, first_slot, slot = [], {}, 0
        for s in range(-128, 128):
            first_slot[s] = slot
            slot += frequency[s]
            symbol_of_slot += [s] * frequency[s]
        tables[context] = shift, frequency, first_slot, symbol_of_slot
    return granularity, tables


def read_tile(data, row_log2_eighths, column_log2_eighths, granularity, tables):
    """The indices of a tile, row-major."""
    columns = len(column_log2_eighths)
    lanes = min(32, columns)
    states = list(struct.unpack_from(f"<{lanes}I", data))
    position = 4 * lanes

    def take(form):
        nonlocal position
        position += struct.calcsize(form)
        return struct.unpack_from(form, data, position - struct.calcsize(form))[0]

    indices = []
    for row_log in row_log2_eighths:
        for first in range(0, columns, 32):
            group, escaped = [], []
            count = min(32, columns - first)
            for lane in range(count):
                context = min(max(row_log - column_log2_eighths[first + lane], 0), 127) >> granularity
                shift, frequency, first_slot, symbol_of_slot = tables[context]
                x = states[lane]
                raw, slot = x & (1 << shift) - 1, x >> shift & 4095
                s = symbol_of_slot[slot]
                group.append((s << shift) + raw - (1 << shift >> 1))
                escaped.append(shift if s == -128 else None)
                states[lane] = frequency[s] * (x >> shift + 12) + slot - first_slot[s]
            for lane in range(count):
                if states[lane] < 1 << 16:
                    states[lane] = states[lane] << 16 | take("<H")
            for lane in range(count):
                if escaped[lane] is not None:
                    s = take("<b")
                    group[lane] = take("<h") if s == -128 else group[lane] + (s + 128 << escaped[lane])
            indices += group
    assert all(x == 1 << 16 for x in states) and position == len(data), "damaged tile"
    return indices


def bfloat16(values):
    """The bfloat16 bits of f32 values, rounded to nearest even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def fma(u, v, acc):
    """u * v + acc, rounded once to f32."""
    exact = Fraction(float(u)) * Fraction(float(v)) + Fraction(float(acc))
    near = np.float32(float(exact))  # rounded twice, by way of a double: compare with both neighbours exactly
    candidates = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    even = lambda x: int(np.float32(x).view(np.uint32)) & 1
    return min(candidates, key=lambda x: (abs(Fraction(float(x)) - exact), even(x)))


def reconstruct(levels, step, column_log2_eighths, row_step_log2_eighths, rank, u, v):
    mantissas = np.array(MANTISSAS, dtype=np.uint32).view(np.float32)
    powers = lambda logs: np.array([np.ldexp(mantissas[log & 7], log >> 3) for log in logs], dtype=np.float32)
    steps = np.float32(step) * powers(column_log2_eighths)
    acc = levels.astype(np.float32) * (steps[None, :] * powers(row_step_log2_eighths)[:, None])
    for i in range(len(row_step_log2_eighths) if rank else 0):
        for j in range(len(column_log2_eighths)):
            for r in range(rank):
                acc[i, j] = fma(u[i, r], v[r, j], acc[i, j])
    return bfloat16(acc)


def levels_of(q, row_log2_eighths):
    """The trellis levels of the indices q [rows, columns]."""
    state, levels = np.zeros(q.shape[1], dtype=np.int32), np.zeros_like(q)
    for row, (indices, row_log) in enumerate(zip(q, row_log2_eighths)):
        if row % 256 == 0:
            state[:] = 0
        if row_log:
            levels[row] = 2 * indices + ((state ^ state >> 4) & 1)
            parity = state >> 1 ^ state >> 3 ^ state >> 4 ^ state >> 5
            state = 2 * state + ((indices ^ parity) & 1) & 63
    return levels


def read_layer(data):
    """Yields the name and the reconstructed weights of every linear of a layer file."""
    assert data[:8] == b"UCLAYER\0"
    version, _, groups, linears, exact, zero, length = struct.unpack_from("<6HI", data, 8)
    assert version == 7 and zero == 0
    position = 24 + length
    granularity, tables = read_tables(data[24:position])

    def take(form):
        nonlocal position
        values = struct.unpack_from("<" + form, data, position)
        position += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def take_bytes(size):
        nonlocal position
        position += size
        return data[position - size:position]

    def take_name():
        return take_bytes(take("B")).decode()

    def take_logarithms(count):
        return unpack_logarithms(take_bytes(take("I")), count)

    def take_bfloat16(rows, columns):
        bits = np.frombuffer(take_bytes(2 * rows * columns), dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(rows, columns)

    group_column_logs = []
    for _ in range(groups):
        take_name()
        group_column_logs.append(take_logarithms(take("I")))
    descriptors = []
    for _ in range(linears):
        name, (rows, group, rank, step) = take_name(), take("IHHf")
        column_logs = group_column_logs[group]
        row_sums, row_step_logs = take_logarithms(rows), take_logarithms(rows)
        row_logs = [row_sum - row_step & 255 for row_sum, row_step in zip(row_sums, row_step_logs)]
        tile_rows = min(rows, 256 * max(1, (1 << 20) // (256 * len(column_logs))))
        tile_sizes = [take("I") for _ in range(0, rows, tile_rows)]
        u, v = take_bfloat16(rows, rank), take_bfloat16(rank, len(column_logs))
        descriptors.append((name, rows, column_logs, rank, step, row_logs, row_step_logs, tile_rows, tile_sizes, u, v))
    dtype_sizes = [4, 2, 2, 8, 1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 1]
    for _ in range(exact):
        take_name()
        dtype, dimensions = take("BB")
        count = 1
        for _ in range(dimensions):
            count *= take("I")
        take_bytes(count * dtype_sizes[dtype])
    for name, rows, column_logs, rank, step, row_logs, row_step_logs, tile_rows, tile_sizes, u, v in descriptors:
        take_bytes(-position % 8)
        q = []
        for tile, size in enumerate(tile_sizes):
            tile_row_logs = row_logs[tile * tile_rows:(tile + 1) * tile_rows]
            q += read_tile(take_bytes(size), tile_row_logs, column_logs, granularity, tables)
        q = np.array(q, dtype=np.int32).reshape(rows, len(column_logs))
        yield name, reconstruct(levels_of(q, row_logs), step, column_logs, row_step_logs, rank, u, v)
    assert position == len(data), "bytes after the last tile"


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    manifest = json.loads((folder / "manifest.json").read_text())
    wrong = checked = 0
    for layer in manifest["layers"][:count]:
        expected = {linear["name"]: linear["reconstructed_sha256"] for linear in layer["linears"]}
        for name, weights in read_layer((folder / layer["file"]).read_bytes()):
            digest = hashlib.sha256(weights.tobytes()).hexdigest()
            checked += 1
            if digest != expected.pop(name):
                wrong += 1
                print(f"{layer['file']} {name}: found {digest}")
        wrong += len(expected)
    print(f"{checked} linears decoded, {wrong} wrong")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
