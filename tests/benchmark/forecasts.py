#!/usr/bin/env python3
"""Writes docs/forecasts.md and docs/benchmarks/forecasts.json: what `uc plan` forecasts for models of four sizes on the measured machine,
on a workstation, and on the machine of docs/benchmarks/probe-amx.json.

Usage: python3 tests/benchmark/forecasts.py --models FOLDER
FOLDER/configs holds the configurations. No weights are needed. Speeds that `uc plan --measure` kept on this machine are not used.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
MODELS = [("Llama 3.1 8B", "meta-llama--Meta-Llama-3.1-8B"), ("Llama 3.1 70B", "meta-llama--Meta-Llama-3.1-70B"),
          ("Llama 3.1 405B", "meta-llama--Meta-Llama-3.1-405B"), ("Qwen3-235B-A22B", "Qwen--Qwen3-235B-A22B")]
# Each core of the workstation is as fast as one of the measured machine.
WORKSTATION_CORES = 16
# Speeds of another processor.
SPEEDS = ROOT / "docs" / "benchmarks" / "probe-amx.json"


def plan(config, *arguments):
    command = [PROGRAMS / "uc", "plan", "--config", config, "--json", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": "/nonexistent"}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def gigabytes(number):
    return f"{number / 1e9:.1f} GB" if number < 99.95e9 else f"{number / 1e9:.0f} GB"


def hours(value):
    return f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    options = parser.parse_args()
    probe = plan(options.models / "configs" / f"{MODELS[0][1]}.json")["run"]["machine"]["probe"]
    tiles = json.loads(SPEEDS.read_text())
    gflops = round(probe["products"][1] / 1e9 * WORKSTATION_CORES / probe["cores"])
    machines = {
        f"{probe['processor']}, {probe['cores']} cores, 24 GiB": ["--memory", "24 GiB"],
        f"workstation, {WORKSTATION_CORES} such cores, 64 GiB": ["--threads", str(WORKSTATION_CORES), "--gflops", str(gflops), "--memory", "64 GiB"],
        f"{tiles['processor']}, {tiles['cores']} cores, 24 GiB": ["--speeds", str(SPEEDS), "--memory", "24 GiB"],
    }
    receipt, summary, stages = {}, [], []
    for machine, arguments in machines.items():
        for name, config in MODELS:
            run = plan(options.models / "configs" / f"{config}.json", *arguments)["run"]
            receipt.setdefault(machine, {})[name] = run
            fits = "yes" if run["largest_memory_bytes"] <= run["machine"]["memory_bytes"] else f"no; with `--set {run['fits_with']}`" if run["fits_with"] else "no"
            summary.append(f"| {name} | {machine} | {hours(run['hours'])} ({hours(run['hours_low'])} to {hours(run['hours_high'])}) | "
                           f"{gigabytes(run['largest_memory_bytes'])} | {gigabytes(run['peak_memory_bytes'])} | {fits} | {gigabytes(run['peak_disk_bytes'])} |")
    detailed = list(receipt.values())[:2]
    for stage in detailed[0][MODELS[0][0]]["stages"]:
        cells = [stage["name"]]
        for by_model in detailed:
            for name, _ in MODELS:
                found = next(other for other in by_model[name]["stages"] if other["name"] == stage["name"])
                cells.append(hours(found["seconds"] / 3600))
        for name, _ in MODELS:
            found = next(other for other in detailed[0][name]["stages"] if other["name"] == stage["name"])
            cells.append(gigabytes(found["memory_bytes"]))
        stages.append("| " + " | ".join(cells) + " |")
    short = [name.removeprefix("Llama 3.1 ").removeprefix("Qwen3-") for name, _ in MODELS]
    head = ["stage", *[f"{name}, {cores} cores" for cores in (probe["cores"], WORKSTATION_CORES) for name in short], *[f"{name}, memory" for name in short]]
    page = f"""# Forecasts

What `uc plan` forecasts for models of four sizes, with default settings, on the machine of the measured runs and on a workstation
with {WORKSTATION_CORES} cores that are each as fast. No model of these sizes has been compressed; these are computed figures. `make bench-forecast`
writes this page, the plans are in the receipt [forecasts.json](benchmarks/forecasts.json), the measured runs behind them in
[throughput.json](benchmarks/throughput.json). The workstation is
`uc plan --config FILE --threads {WORKSTATION_CORES} --gflops {gflops} --memory "64 GiB"`. The last machine multiplies with tiles
([0049](decisions/0049-tiles.md)); its speeds are those of [probe-amx.json](benchmarks/probe-amx.json).

| model | machine | hours (likely range) | memory of the largest job | of jobs side by side | fits | disk besides the source |
|---|---|---|---|---|---|---|
{chr(10).join(summary)}

Hours of each stage on the first two, and the memory that a job of it takes:

| {" | ".join(head)} |
|{"---|" * len(head)}
{chr(10).join(stages)}
"""
    (ROOT / "docs" / "forecasts.md").write_text(page)
    (ROOT / "docs" / "benchmarks" / "forecasts.json").write_text(json.dumps({"command": "make bench-forecast", "plans": receipt}, indent=1) + "\n")
    print("docs/forecasts.md")


if __name__ == "__main__":
    main()
