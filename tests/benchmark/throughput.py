#!/usr/bin/env python3
"""Rates of the pipeline on this machine: the receipt of a run → docs/benchmarks/throughput.json, which `uc plan --config` is built with.

Usage: python3 tests/benchmark/throughput.py --model DIR [--receipt docs/benchmarks/smollm2-135m.json] [--processor NAME] [--cores N]
The receipt must be that of a run with the built-in pipeline at its defaults (`make bench`); DIR is the model that it names, of which only
config.json is read. The rates themselves are not in the file: the program divides its own count of operations by these seconds.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
FOLDER = ROOT / "docs" / "benchmarks"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--receipt", type=pathlib.Path, default=FOLDER / "smollm2-135m.json")
    parser.add_argument("--processor", default="AMD EPYC")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    receipt = json.loads(options.receipt.read_text())
    described = subprocess.run([PROGRAMS / "shard-loader", "describe", "--config", options.model / "config.json"], check=True, stdout=subprocess.PIPE)
    model = json.loads(described.stdout)
    totals = receipt["pack"]["totals"]
    for key in ["linear_parameters", "total_parameters"]:
        assert model[key] == totals[key], f"{key}: {model[key]} of the model, {totals[key]} of the receipt"
    found = {
        "receipt": options.receipt.name,
        "processor": options.processor,
        "cores": options.cores,
        "wall_seconds": receipt["wall_seconds"],
        "stages": {name: {key: cost[key] for key in ["seconds", "peak_rss_bytes"]} for name, cost in receipt["stages"].items()},
        "model": model,
    }
    (FOLDER / "throughput.json").write_text(json.dumps(found, indent=1) + "\n")
    print("docs/benchmarks/throughput.json")


if __name__ == "__main__":
    main()
