"""A second reader of packs, written from docs/pack-format.md alone: Python standard library and numpy.

Usage: python3 tests/independent/read_pack.py PACK [LAYERS]
Decodes every linear of the first LAYERS layers (default 1) and compares its SHA-256 with the manifest; exits with 1 on
any difference. Overlays (rank above 0) need a fused multiply-add, which is computed exactly with fractions: slow.
"""
import hashlib
import json
import pathlib
import struct
import sys
from fractions import Fraction

import numpy as np

MANTISSAS = [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7]


class Bits:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, width):
        value = 0
        for bit in range(width):
            value |= (self.data[self.at >> 3] >> (self.at & 7) & 1) << bit
            self.at += 1
        return value

    def rice(self, parameter):
        quotient = 0
        while self.take(1):
            quotient += 1
        return quotient << parameter | self.take(parameter)


def unzigzag(z):
    return z >> 1 ^ -(z & 1)


def unpack(data, count):
    base, mode, bits = data[0], data[1], Bits(data[2:])
    if mode <= 8:
        return [base + bits.take(mode) for _ in range(count)]
    return [base + unzigzag(bits.rice(mode - 16)) for _ in range(count)]


def read_tables(data):
    bits = Bits(data)
    granularity, first, span = bits.take(2), bits.take(7), bits.take(8)
    used = [first + i for i in range(span) if bits.take(1)]
    tables = {}
    for number in used:
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
        owner, start, at = [], {}, 0
        for s in range(-128, 128):
            start[s] = at
            at += frequency[s]
            owner += [s] * frequency[s]
        tables[number] = shift, frequency, start, owner
    return granularity, tables


def read_tile(data, row_log2_eighths, column_log2_eighths, granularity, tables):
    columns = len(column_log2_eighths)
    lanes = min(32, columns)
    states = list(struct.unpack_from(f"<{lanes}I", data))
    at = 4 * lanes

    def take(form):
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from(form, data, at - struct.calcsize(form))[0]

    out = []
    for row_log2_eighths in row_log2_eighths:
        for first in range(0, columns, 32):
            group, escaped = [], []
            count = min(32, columns - first)
            for lane in range(count):
                number = min(max(row_log2_eighths - column_log2_eighths[first + lane], 0), 127) >> granularity
                shift, frequency, start, owner = tables[number]
                x = states[lane]
                raw, slot = x & (1 << shift) - 1, x >> shift & 4095
                s = owner[slot]
                group.append((s << shift) + raw - (1 << shift >> 1))
                escaped.append(shift if s == -128 else None)
                states[lane] = frequency[s] * (x >> shift + 12) + slot - start[s]
            for lane in range(count):
                if states[lane] < 1 << 16:
                    states[lane] = states[lane] << 16 | take("<H")
            for lane in range(count):
                if escaped[lane] is not None:
                    s = take("<b")
                    group[lane] = take("<h") if s == -128 else group[lane] + (s + 128 << escaped[lane])
            out += group
    assert all(x == 1 << 16 for x in states) and at == len(data), "damaged tile"
    return out


def bfloat16(values):
    """f32 to bfloat16 bits, nearest even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def fma(u, v, acc):
    exact = Fraction(float(u)) * Fraction(float(v)) + Fraction(float(acc))
    near = np.float32(float(exact))  # a double may round twice: compare the neighbours exactly
    options = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    even = lambda x: int(np.float32(x).view(np.uint32)) & 1
    return min(options, key=lambda x: (abs(Fraction(float(x)) - exact), even(x)))


def reconstruct(q, step, column_log2_eighths, row_step_logs, rank, u, v):
    mantissas = np.array(MANTISSAS, dtype=np.uint32).view(np.float32)
    factors = lambda logs: np.array([np.ldexp(mantissas[log & 7], log >> 3) for log in logs], dtype=np.float32)
    steps = np.float32(step) * factors(column_log2_eighths)
    acc = q.astype(np.float32) * (steps[None, :] * factors(row_step_logs)[:, None])
    for i in range(len(row_step_logs) if rank else 0):
        for j in range(len(column_log2_eighths)):
            for r in range(rank):
                acc[i, j] = fma(u[i, r], v[r, j], acc[i, j])
    return bfloat16(acc)


def levels(q, row_log2_eighths):
    history, out = np.zeros(q.shape[1], dtype=np.int32), np.zeros_like(q)
    for row, (indices, row_log2_eighths) in enumerate(zip(q, row_log2_eighths)):
        if row % 256 == 0:
            history[:] = 0
        if row_log2_eighths:
            out[row] = 2 * indices + ((history ^ history >> 4) & 1)
            turn = history >> 1 ^ history >> 3 ^ history >> 4 ^ history >> 5
            history = 2 * history + ((indices ^ turn) & 1) & 63
    return out


def read_layer(data):
    assert data[:8] == b"UCLAYER\0"
    version, _, groups, linears, exact, zero, length = struct.unpack_from("<6HI", data, 8)
    assert version == 7 and zero == 0
    at = 24
    granularity, tables = read_tables(data[at:at + length])
    at += length

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def text():
        nonlocal at
        size = take("B")
        at += size
        return data[at - size:at].decode()

    def chunk():
        nonlocal at
        size = take("I")
        at += size
        return data[at - size:at]

    def words(count):
        nonlocal at
        at += 2 * count
        bits = np.frombuffer(data[at - 2 * count:at], dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32)

    column_log2_eighths = []
    for _ in range(groups):
        text()
        columns = take("I")
        column_log2_eighths.append(unpack(chunk(), columns))
    found = []
    for _ in range(linears):
        label, (rows, group, rank, step) = text(), take("IHHf")
        columns = column_log2_eighths[group]
        row_sums = unpack(chunk(), rows)
        row_step_logs = unpack(chunk(), rows)
        row_log2_eighths = [total - step & 255 for total, step in zip(row_sums, row_step_logs)]
        tile_rows = min(rows, 256 * max(1, (1 << 20) // (256 * len(columns))))
        tiles = [take("I") for _ in range(0, rows, tile_rows)]
        u = words(rows * rank).reshape(rows, rank)
        v = words(rank * len(columns)).reshape(rank, len(columns))
        found.append((label, rows, columns, rank, step, row_log2_eighths, row_step_logs, tile_rows, tiles, u, v))
    sizes = [4, 2, 2, 8, 1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 1]
    for _ in range(exact):
        text()
        dtype, dimensions = take("BB")
        count = 1
        for _ in range(dimensions):
            count *= take("I")
        at += count * sizes[dtype]
    for label, rows, columns, rank, step, row_log2_eighths, row_step_logs, tile_rows, tiles, u, v in found:
        at += -at % 8
        q = []
        for number, size in enumerate(tiles):
            logs = row_log2_eighths[number * tile_rows:(number + 1) * tile_rows]
            q += read_tile(data[at:at + size], logs, columns, granularity, tables)
            at += size
        q = np.array(q, dtype=np.int32).reshape(rows, len(columns))
        yield label, reconstruct(levels(q, row_log2_eighths), step, columns, row_step_logs, rank, u, v)
    assert at == len(data), "bytes after the last tile"


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
