#!/usr/bin/env python3
"""Measures the speed of the codec or of the runtime's kernels: runs `cargo bench` and writes docs/benchmarks/codec-speed.json
or kernel-speed.json.

Usage: python3 tests/benchmark/speed.py [codec|kernels] [--suffix=SUFFIX]
--suffix comes before .json in the name of the receipt, for another machine. Rates are medians of criterion's samples on one
machine, which the receipt names; compare them only with one another. The codec runs with the allocator settings with which the
driver starts the stages.
"""
import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
# `KEEP_MEMORY` of stages/uc/src/process/runner.rs.
ALLOCATOR = ("glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=1073741824:"
             "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1")
CRITERION = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "criterion"


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def bench(crate, name):
    """Runs the benchmarks of a crate; an entry for each."""
    shutil.rmtree(CRITERION, ignore_errors=True)
    subprocess.run(["cargo", "bench", "--locked", "-p", crate, "--bench", name, "--", "--noplot"], check=True, cwd=ROOT)
    benchmarks = {}
    for file in sorted(CRITERION.glob("**/new/benchmark.json")):
        folder = file.parent
        benchmark = json.loads(file.read_text())
        nanoseconds = json.loads((folder / "estimates.json").read_text())["median"]["point_estimate"]
        throughput = benchmark.get("throughput") or {}
        elements = throughput.get("Elements") or throughput.get("Bytes")
        entry = {"milliseconds": round(nanoseconds / 1e6, 3)}
        if elements:
            entry["millions_per_second"] = round(elements / nanoseconds * 1e3, 1)
        benchmarks[benchmark["full_id"]] = entry
    return benchmarks


def write(name, suffix, receipt):
    (ROOT / "docs" / "benchmarks" / f"{name}{suffix}.json").write_text(json.dumps(receipt, indent=2) + "\n")
    print(json.dumps(receipt, indent=2))


def kernels(suffix):
    """The products of the runtime on one thread and on two."""
    threads = {}
    for count in ("1", "2"):
        os.environ["RAYON_NUM_THREADS"] = count
        threads[count] = bench("uc-infer", "products")
    note = "elements are weights, whatever the number of tokens, the last part of a name; of products/read bytes"
    write("kernel-speed", suffix, {"command": "python3 tests/benchmark/speed.py kernels", "processor": processor(),
                                   "cores": os.cpu_count(), "note": note, "threads": threads})


def codec(suffix):
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    benchmarks = bench("uc-codec", "codec")
    for name, entry in benchmarks.items():
        if "quantize" in name or "factorize" in name:
            product = benchmarks[name.replace("quantize", "matrix product").replace("factorize", "matrix product")]
            entry["times_the_matrix_product"] = round(entry["milliseconds"] / product["milliseconds"], 2)
    receipt = {"command": "python3 tests/benchmark/speed.py", "processor": processor(), "cores": os.cpu_count(), "allocator": ALLOCATOR,
               "note": "elements are indices, and floating-point operations in the groups `feedback` and `factor`", "benchmarks": benchmarks}
    write("codec-speed", suffix, receipt)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("of", nargs="?", choices=["codec", "kernels"], default="codec")
    parser.add_argument("--suffix", default="")
    arguments = parser.parse_args()
    (kernels if arguments.of == "kernels" else codec)(arguments.suffix)
