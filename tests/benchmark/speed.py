#!/usr/bin/env python3
"""Measures the speed of the codec: runs `cargo bench -p uc-codec` and writes docs/benchmarks/codec-speed.json.

Usage: python3 tests/benchmark/speed.py
Rates are medians of criterion's samples on one machine, which the receipt names; compare them only with one another.
"""
import json
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
CRITERION = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "criterion"


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    subprocess.run(["cargo", "bench", "--locked", "-p", "uc-codec", "--bench", "codec", "--", "--noplot"], check=True, cwd=ROOT)
    benchmarks = {}
    for folder in sorted(CRITERION.glob("*/*/new")):
        benchmark = json.loads((folder / "benchmark.json").read_text())
        nanoseconds = json.loads((folder / "estimates.json").read_text())["median"]["point_estimate"]
        elements = (benchmark.get("throughput") or {}).get("Elements")
        entry = {"milliseconds": round(nanoseconds / 1e6, 3)}
        if elements:
            entry["millions_per_second"] = round(elements / nanoseconds * 1e3, 1)
        benchmarks[benchmark["full_id"]] = entry
    for name, entry in benchmarks.items():
        if "quantize" in name:
            product = benchmarks[name.replace("quantize", "matrix product")]
            entry["times_the_matrix_product"] = round(entry["milliseconds"] / product["milliseconds"], 2)
    receipt = {"command": "python3 tests/benchmark/speed.py", "processor": processor(), "cores": os.cpu_count(),
               "note": "elements are indices, and floating-point operations in the groups `feedback`", "benchmarks": benchmarks}
    (ROOT / "docs" / "benchmarks" / "codec-speed.json").write_text(json.dumps(receipt, indent=2) + "\n")
    print(json.dumps(receipt, indent=2))


if __name__ == "__main__":
    main()
