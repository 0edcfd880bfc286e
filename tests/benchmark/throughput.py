#!/usr/bin/env python3
"""Extracts measured stage times from the receipt of a run into docs/benchmarks/throughput.json, which is compiled into `uc plan --config`.

Usage: python3 tests/benchmark/throughput.py --model DIR [--receipt docs/benchmarks/smollm2-135m.json] [--processor NAME] [--cores N]
The receipt must come from a run of the built-in pipeline with default settings (`make bench`). DIR is the model of that run; only its
config.json is read. The file holds no rates: the program divides its own operation counts by these seconds.
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
    description = subprocess.run([PROGRAMS / "shard-loader", "describe", "--config", options.model / "config.json"], check=True, stdout=subprocess.PIPE)
    model = json.loads(description.stdout)
    totals = receipt["pack"]["totals"]
    for key in ["linear_parameters", "total_parameters"]:
        assert model[key] == totals[key], f"{key}: {model[key]} in the model, {totals[key]} in the receipt"
    throughput = {
        "receipt": options.receipt.name,
        "processor": options.processor,
        "cores": options.cores,
        "wall_seconds": receipt["wall_seconds"],
        "stages": {name: {key: cost[key] for key in ["seconds", "peak_rss_bytes"]} for name, cost in receipt["stages"].items()},
        "model": model,
    }
    (FOLDER / "throughput.json").write_text(json.dumps(throughput, indent=1) + "\n")
    print("docs/benchmarks/throughput.json")


if __name__ == "__main__":
    main()
