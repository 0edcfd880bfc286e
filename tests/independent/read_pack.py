"""An independent reader of packs, written from docs/pack-format.md alone, with the Python standard library and numpy.

Usage: python3 read_pack.py PACK [--layers N]

Recomputes the digest of the manifest, size and SHA-256 of every file, and the SHA-256 of every tensor: it decodes and
reconstructs every coded linear and reads every exact tensor. Prints how many of these it checked, and the fingerprint.
Exits with 1 on any difference, and with 0 only if everything that was asked for agrees. With --layers N only the first N
layers are decoded.

It trusts the pack with its time and memory: for packs of strangers use `uc verify`, whose limits do not depend on them.
"""
import argparse
import hashlib
import json
import math
import pathlib
import struct
import sys

import numpy as np

# Bits of the f32 nearest to 2^(k/8), for k from 0 to 7.
MANTISSAS = [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7]
DTYPES = ["F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"]
DTYPE_SIZES = [4, 2, 2, 8, 1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 1]


class Damaged(Exception):
    """The bytes are not those of a pack."""


def require(condition, what):
    if not condition:
        raise Damaged(what)


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


class Bytes:
    """Reads the fields of a file in order."""

    def __init__(self, data):
        self.data, self.position = data, 0

    def take(self, form):
        size = struct.calcsize("<" + form)
        values = struct.unpack("<" + form, self.raw(size))
        return values[0] if len(values) == 1 else values

    def raw(self, size):
        require(size <= len(self.data) - self.position, "the file is too short")
        self.position += size
        return self.data[self.position - size:self.position]

    def name(self):
        return bytes(self.raw(self.take("B"))).decode("ascii")

    def align(self, alignment):
        require(not any(self.raw(-self.position % alignment)), "padding is not zero")

    def exact_descriptor(self):
        """Name, dtype, shape and number of bytes of an exact tensor."""
        name, (dtype, dimensions) = self.name(), self.take("BB")
        shape = [self.take("I") for _ in range(dimensions)]
        return name, DTYPES[dtype], shape, math.prod(shape) * DTYPE_SIZES[dtype]


def unzigzag(z):
    return z >> 1 ^ -(z & 1)


def unpack_logarithms(data, count):
    base, mode, bits = data[0], data[1], BitReader(data[2:])
    if mode <= 8:
        values = [base + bits.take(mode) for _ in range(count)]
    else:
        values = [base + unzigzag(bits.rice(mode - 16)) for _ in range(count)]
    require((bits.position + 7) // 8 == len(data) - 2, "bytes after the last logarithm")
    return np.array(values, dtype=np.int64)


class Tables:
    """The context tables of a layer: for each slot of each table the symbol, its frequency and its first slot."""

    def __init__(self, data):
        bits = BitReader(data)
        self.granularity, first, span = bits.take(2), bits.take(7), bits.take(8)
        contexts = [first + i for i in range(span) if bits.take(1)]
        self.number = np.full(128, -1)
        tables = []
        for number, context in enumerate(contexts):
            self.number[context] = number
            tables.append(self.read_table(bits))
        shape = (len(tables), 4096)
        self.shift = np.array([shift for shift, _ in tables], dtype=np.int64)
        self.symbol, self.frequency, self.start = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        for table, (_, frequency) in enumerate(tables):
            slot = 0
            for s in range(-128, 128):
                slots = slice(slot, slot + frequency[s])
                self.symbol[table, slots], self.frequency[table, slots], self.start[table, slots] = s, frequency[s], slot
                slot += frequency[s]

    @staticmethod
    def read_table(bits):
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
        require(min(frequency.values()) >= 0, "frequencies do not sum to 4096")
        return shift, frequency


def read_tiles(tiles, tables):
    """The indices of tiles of the same shape, each given by its bytes, row logarithms and column logarithms."""
    count, rows, columns = len(tiles), len(tiles[0][1]), len(tiles[0][2])
    lanes = min(32, columns)
    lengths = np.array([len(data) for data, _, _ in tiles])
    require(lengths.min() >= 4 * lanes, "a tile is shorter than its states")
    # Zero bytes behind each tile: damaged tiles may read a little too far, which is found at the end.
    data = np.zeros((count, lengths.max() + 8 * lanes), dtype=np.int64)
    for tile, (raw, _, _) in enumerate(tiles):
        data[tile, :len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    state = sum(data[:, k:4 * lanes:4] << 8 * k for k in range(4))
    position = np.full(count, 4 * lanes)
    row_logs = np.stack([logs for _, logs, _ in tiles])
    column_logs = np.stack([logs for _, _, logs in tiles])
    which = np.arange(count)[:, None]
    indices = np.zeros((count, rows, columns), dtype=np.int64)

    def byte(tile, offset=0):
        return int(data[tile, min(position[tile] + offset, data.shape[1] - 1)])

    for row in range(rows):
        contexts = np.clip(row_logs[:, row, None] - column_logs, 0, 127) >> tables.granularity
        table_of = tables.number[contexts]
        require(table_of.min() >= 0, "a context has no table")
        for first in range(0, columns, 32):
            table = table_of[:, first:first + 32]
            x, shift = state[:, :table.shape[1]], tables.shift[table]
            raw, slot = x & (1 << shift) - 1, x >> shift & 4095
            symbol = tables.symbol[table, slot]
            index = (symbol << shift) + raw - (1 << shift >> 1)
            x = tables.frequency[table, slot] * (x >> shift + 12) + slot - tables.start[table, slot]
            low = x < 1 << 16
            before = np.cumsum(low, axis=1) - low
            at = np.minimum(position[:, None] + 2 * before, data.shape[1] - 2)
            words = data[which, at] | data[which, at + 1] << 8
            state[:, :table.shape[1]] = np.where(low, x << 16 | words, x)
            position += 2 * low.sum(axis=1)
            for tile, lane in zip(*np.nonzero(symbol == -128)):
                s = byte(tile)
                position[tile] += 1
                if s == 128:
                    wide = byte(tile) | byte(tile, 1) << 8
                    position[tile] += 2
                    index[tile, lane] = wide - (wide >> 15 << 16)
                else:
                    index[tile, lane] += (s - (s >> 7 << 8)) + 128 << int(shift[tile, lane])
            indices[:, row, first:first + 32] = index
        require((position <= lengths).all(), "a tile is too short")
    require((state == 1 << 16).all() and (position == lengths).all(), "a tile does not end as it should")
    return indices


def bfloat16(values):
    """The bfloat16 bits of f32 values, rounded to nearest even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def fma(u, v, acc):
    """u * v + acc, rounded once to f32. u and v are bfloat16, so their product is exact in f64. The sum in f64 is rounded to
    odd: where it is not exact, its last bit is made 1, so that rounding it to f32 gives the rounding of the exact sum."""
    product, acc = u.astype(np.float64) * v.astype(np.float64), acc.astype(np.float64)
    total = product + acc
    part = total - product
    error = (product - (total - part)) + (acc - part)
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    odd = bits + np.where((error != 0) & (bits & 1 == 0), step, 0)
    return odd.view(np.float64).astype(np.float32)


def powers(logarithms):
    """F of each logarithm, an f32."""
    mantissas = np.array(MANTISSAS, dtype=np.uint32).view(np.float32)
    return np.ldexp(mantissas[logarithms & 7], logarithms >> 3).astype(np.float32)


def levels_of(q, row_logs):
    """The trellis levels of the indices q [rows, columns]."""
    state, levels = np.zeros(q.shape[1], dtype=np.int64), np.zeros_like(q)
    for row, (indices, row_log) in enumerate(zip(q, row_logs)):
        if row % 256 == 0:
            state[:] = 0
        if row_log:
            levels[row] = 2 * indices + ((state ^ state >> 4) & 1)
            parity = state >> 1 ^ state >> 3 ^ state >> 4 ^ state >> 5
            state = 2 * state + ((indices ^ parity) & 1) & 63
    return levels


class Linear:
    """The descriptor of a coded linear."""

    def __init__(self, file, group_column_logs):
        self.name = file.name()
        self.rows, group, self.rank, self.step = file.take("IHHf")
        self.column_logs = group_column_logs[group]
        self.columns = len(self.column_logs)
        row_sums = unpack_logarithms(file.raw(file.take("I")), self.rows)
        self.row_step_logs = unpack_logarithms(file.raw(file.take("I")), self.rows)
        self.row_logs = row_sums - self.row_step_logs & 255
        self.tile_rows = min(self.rows, 256 * max(1, (1 << 20) // (256 * self.columns)))
        self.tile_sizes = [file.take("I") for _ in range(0, self.rows, self.tile_rows)]
        self.u = self.factor(file, self.rows, self.rank)
        self.v = self.factor(file, self.rank, self.columns)

    @staticmethod
    def factor(file, rows, columns):
        bits = np.frombuffer(file.raw(2 * rows * columns), dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(rows, columns)

    def tiles(self, file):
        """The bytes, row logarithms and column logarithms of each tile."""
        file.align(8)
        for tile, size in enumerate(self.tile_sizes):
            rows = slice(tile * self.tile_rows, (tile + 1) * self.tile_rows)
            yield file.raw(size), self.row_logs[rows], self.column_logs

    def reconstruct(self, q):
        steps = np.float32(self.step) * powers(self.column_logs)
        steps = steps[None, :] * powers(self.row_step_logs)[:, None]
        acc = levels_of(q, self.row_logs).astype(np.float32) * steps
        for r in range(self.rank):
            acc = fma(self.u[:, r, None], self.v[None, r, :], acc)
        return bfloat16(acc)


def read_layer(data, index):
    """The linears of a layer file as (name, shape, digest), and its exact tensors as (name, dtype, shape, digest)."""
    file = Bytes(memoryview(data))
    require(file.raw(8) == b"UCLAYER\0", "not a layer file")
    version, layer, groups, count, exact_count, zero, length = file.take("6HI")
    require(version == 7 and zero == 0 and layer == index, "another version or layer")
    tables = Tables(file.raw(length))
    group_column_logs = []
    for _ in range(groups):
        file.name()
        columns = file.take("I")
        group_column_logs.append(unpack_logarithms(file.raw(file.take("I")), columns))
    linears = [Linear(file, group_column_logs) for _ in range(count)]
    exact = []
    for _ in range(exact_count):
        name, dtype, shape, size = file.exact_descriptor()
        exact.append((name, dtype, shape, hashlib.sha256(file.raw(size)).hexdigest()))
    # Tiles of the same shape are decoded together, whichever linear they belong to.
    batches = {}
    for linear in linears:
        linear.indices = np.zeros((linear.rows, linear.columns), dtype=np.int64)
        for tile, parts in enumerate(linear.tiles(file)):
            shape = len(parts[1]), linear.columns
            batches.setdefault(shape, []).append((linear, tile, parts))
    require(file.position == len(data), "bytes after the last tile")
    for batch in batches.values():
        decoded = read_tiles([parts for _, _, parts in batch], tables)
        for (linear, tile, _), indices in zip(batch, decoded):
            first = tile * linear.tile_rows
            linear.indices[first:first + len(indices)] = indices
    coded = []
    for linear in linears:
        digest = hashlib.sha256(linear.reconstruct(linear.indices).tobytes()).hexdigest()
        coded.append((linear.name, [linear.rows, linear.columns], digest))
    return coded, exact


def read_non_layer(data):
    """The tensors of scaffold.uc as (name, dtype, shape, digest)."""
    file = Bytes(memoryview(data))
    require(file.raw(8) == b"UCSCAFF\0", "not a file of non-layer tensors")
    version, count, length = file.take("HHI")
    descriptors = [file.exact_descriptor() for _ in range(count)]
    require(version == 7 and file.position == length, "another version or header")
    tensors = []
    for name, dtype, shape, size in descriptors:
        file.align(64)
        tensors.append((name, dtype, shape, hashlib.sha256(file.raw(size)).hexdigest()))
    require(file.position == len(data), "bytes after the last tensor")
    return tensors


class Checks:
    """Counts comparisons by kind and prints differences."""

    def __init__(self):
        self.planned, self.checked, self.wrong = {}, {}, 0

    def plan(self, kind, count=1):
        self.planned[kind] = self.planned.get(kind, 0) + count

    def compare(self, kind, what, found, expected):
        self.checked[kind] = self.checked.get(kind, 0) + 1
        if found != expected:
            self.fail(f"{what}: found {found!r}, expected {expected!r}")

    def fail(self, message):
        self.wrong += 1
        print(ascii(message)[1:-1] if not message.isprintable() else message)

    def report(self):
        for kind, planned in self.planned.items():
            print(f"{kind:<20}{self.checked.get(kind, 0)} of {planned}")
        checked, planned = sum(self.checked.values()), sum(self.planned.values())
        print(f"{checked} of {planned} checked, {self.wrong} wrong")


def check_tensors(checks, kind, file, found, expected):
    """Compares lists of tensors: name, shape and the rest of each, in the order of the manifest."""
    if len(found) != len(expected):
        checks.fail(f"{file}: {len(found)} {kind}, expected {len(expected)}")
    for a, b in zip(found, expected):
        checks.compare(kind, f"{file} {b[0]}", a, b)


def check_pack(folder, layers, checks):
    """Compares everything with the manifest; returns the fingerprint."""
    text = (folder / "manifest.json").read_bytes()
    fingerprint = hashlib.sha256(text).hexdigest()
    manifest = json.loads(text)
    checks.plan("manifest digest")
    line = (folder / "manifest.sha256").read_bytes()
    checks.compare("manifest digest", "manifest.sha256", line, f"{fingerprint}  manifest.json\n".encode())
    scaffold = manifest["scaffold"]
    entries = [*manifest["layers"], scaffold, *manifest["files"]]
    checks.plan("file hashes", len(entries))
    checks.plan("coded linears", sum(len(layer["linears"]) for layer in manifest["layers"]))
    checks.plan("exact tensors", sum(len(layer["extras"]) for layer in manifest["layers"]))
    checks.plan("non-layer tensors", len(scaffold["tensors"]))

    def exact_entry(tensor):
        return tensor["name"], tensor["dtype"], tensor["shape"], tensor["sha256"]

    named = {"manifest.json", "manifest.sha256"}
    for entry in entries:
        name = entry.get("file") or entry["name"]
        named.add(name)
        try:
            require(name == pathlib.PurePath(name).name, "the name leads out of the folder")
            data = (folder / name).read_bytes()
            found = len(data), hashlib.sha256(data).hexdigest()
            checks.compare("file hashes", name, found, (entry["size"], entry["sha256"]))
            if entry is scaffold:
                expected = [exact_entry(tensor) for tensor in entry["tensors"]]
                check_tensors(checks, "non-layer tensors", name, read_non_layer(data), expected)
            elif "linears" in entry and (layers is None or entry["index"] < layers):
                coded, exact = read_layer(data, entry["index"])
                expected = [(t["name"], t["shape"], t["reconstructed_sha256"]) for t in entry["linears"]]
                check_tensors(checks, "coded linears", name, coded, expected)
                expected = [exact_entry(tensor) for tensor in entry["extras"]]
                check_tensors(checks, "exact tensors", name, exact, expected)
        except (Damaged, OSError, IndexError, ValueError, OverflowError) as error:
            checks.fail(f"{name}: {error}")
    for path in sorted(folder.glob("*.uc")):
        if path.name not in named:
            checks.fail(f"{path.name}: the manifest does not name this file")
    return fingerprint


def main():
    parser = argparse.ArgumentParser(description="Check a pack with an independent implementation of its format.")
    parser.add_argument("pack", type=pathlib.Path)
    parser.add_argument("--layers", type=int, help="decode only the first N layers")
    arguments = parser.parse_args()
    checks = Checks()
    fingerprint = check_pack(arguments.pack, arguments.layers, checks)
    checks.report()
    print(f"fingerprint {fingerprint}")
    return 1 if checks.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
