#!/usr/bin/env python3
"""Gathers the stage times of measured runs, and the speeds of their machine, into docs/benchmarks/throughput.json, which is compiled into
`uc` for its forecasts.

Usage: python3 tests/benchmark/throughput.py --model DIR [--receipt docs/benchmarks/smollm2-135m.json] [--wide FILE …] [--probe FILE]
Run it on the machine of the receipts, while nothing else runs. The first receipt must come from a run of the built-in pipeline with
default settings (`make bench`); DIR is the model of that run, of which only config.json is read. The others are those of
`make bench-wide`, by default wide-layers.json and wide-layers-half.json; stages without seconds are left out. The speeds are those of
`uc plan --measure --json`, which measures now, or of FILE. Nothing is divided here: the program divides the times by its own counts of work.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
FOLDER = ROOT / "docs" / "benchmarks"


def stages(receipt):
    return {name: {"seconds": cost["seconds"]} for name, cost in receipt["stages"].items() if "seconds" in cost}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--receipt", type=pathlib.Path, default=FOLDER / "smollm2-135m.json")
    parser.add_argument("--wide", type=pathlib.Path, nargs="*", default=[FOLDER / "wide-layers.json", FOLDER / "wide-layers-half.json"])
    parser.add_argument("--probe", type=pathlib.Path)
    options = parser.parse_args()
    receipt = json.loads(options.receipt.read_text())
    description = subprocess.run([PROGRAMS / "shard-loader", "describe", "--config", options.model / "config.json"], check=True, stdout=subprocess.PIPE)
    model = json.loads(description.stdout)
    totals = receipt["pack"]["totals"]
    for key in ["linear_parameters", "total_parameters"]:
        assert model[key] == totals[key], f"{key}: {model[key]} in the model, {totals[key]} in the receipt"
    runs = [{"receipt": options.receipt.name, "settings": {}, "wall_seconds": receipt["wall_seconds"], "stages": stages(receipt), "model": model}]
    for wide in options.wide:
        for name, run in json.loads(wide.read_text())["models"].items():
            if stages(run):
                runs.append({"receipt": wide.name, "entry": name, "settings": {key: str(value) for key, value in run["settings"].items()},
                             "wall_seconds": run["wall_seconds"], "stages": stages(run), "model": {**run["model"], "index": None}})
    if options.probe:
        probe = json.loads(options.probe.read_text())
    else:
        probe = json.loads(subprocess.run([PROGRAMS / "uc", "plan", "--measure", "--json"], check=True, stdout=subprocess.PIPE).stdout)
    (FOLDER / "throughput.json").write_text(json.dumps({"probe": probe, "runs": runs}, indent=1) + "\n")
    print("docs/benchmarks/throughput.json")


if __name__ == "__main__":
    main()
