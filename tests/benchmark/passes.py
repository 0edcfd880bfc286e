#!/usr/bin/env python3
"""Measures what the passes of a run spend their time on, beside the speed of a large matrix product on the same machine, and writes
docs/benchmarks/passes-MODEL.json.

Usage: python3 tests/benchmark/passes.py --model DIR --calibration FILE --evaluation FILE [--layers 4] [--windows 12] [--out FILE]
The first layers of the model are compressed with few windows, one job at a time, by the built programs; their logs at level debug hold
the operations, bytes and seconds of each kind of work (`uc_model::work`). `rest` is what the jobs spent otherwise: starting,
reading weights, hashing and writing results. Operations are those that the result needs, so recomputed ones lower the share.
"""
import argparse
import json
import os
import pathlib
import platform
import re
import struct
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PASSES = {
    "calibration": ["teacher-cache"],
    "sensitivity": ["sensitivity-forward", "sensitivity-loss", "sensitivity-backward"],
    "evaluation": ["evaluator", "eval-report"],
}
WORK = re.compile(r'work kind="(\w+)" calls=(\d+) operations=(\d+) bytes=(\d+) seconds=(\S+)')
FINISHED = re.compile(r"finished seconds=(\S+)")


def first_layers(model, layers, folder):
    """Writes the model's first layers and what lies outside its layers to a folder."""
    config = json.loads((model / "config.json").read_text())
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    for file in model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    with open(model / "model.safetensors", "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        layer = re.compile(r"\.(?:layers|h)\.(\d+)\.")
        kept = [name for name in header if not (found := layer.search(name)) or int(found[1]) < layers]
        kept.sort(key=lambda name: header[name]["data_offsets"])
        entries, offset = {}, 0
        for name in kept:
            first, last = header[name]["data_offsets"]
            entries[name] = {**header[name], "data_offsets": [offset, offset + last - first]}
            offset += last - first
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / "model.safetensors", "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name in kept:
                first, last = header[name]["data_offsets"]
                file.seek(8 + size + first)
                out.write(file.read(last - first))


def ceiling():
    """The speed of a large matrix product on all cores, in GFLOP/s."""
    output = subprocess.run([PROGRAMS / "examples" / "product_speed"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(output)


def read_log(path):
    """Sums of a stage's log: seconds of its jobs, and operations, bytes and seconds of each kind of work."""
    seconds, kinds = 0.0, {}
    for line in path.read_text().splitlines():
        if found := WORK.search(line):
            total = kinds.setdefault(found[1], [0, 0, 0.0])
            for index, value in enumerate(found.groups()[2:]):
                total[index] += float(value) if index == 2 else int(value)
        elif found := FINISHED.search(line):
            seconds += float(found[1])
    return seconds, kinds


def table(seconds, kinds, peak):
    rows = {}
    for kind, (operations, size, spent) in kinds.items():
        row = {"gigaflop": round(operations / 1e9, 1), "megabytes": round(size / 1e6, 1), "seconds": round(spent, 3),
               "share_of_time": round(spent / seconds, 3)}
        if operations:
            speed = operations / spent / 1e9
            row.update(gigaflops_per_second=round(speed, 1), share_of_ceiling=round(speed / peak, 3))
        else:
            row["gigabytes_per_second"] = round(size / spent / 1e9, 2)
        rows[kind] = row
    rest = seconds - sum(spent for _, _, spent in kinds.values())
    rows["rest"] = {"seconds": round(rest, 3), "share_of_time": round(rest / seconds, 3)}
    operations = sum(operations for operations, _, _ in kinds.values())
    return {"seconds": round(seconds, 3), "share_of_ceiling": round(operations / seconds / 1e9 / peak, 3), "work": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    windows = {"calibration.windows": options.windows, "allocation.windows": max(4, options.windows // 2),
               "evaluation.windows": max(1, options.windows // 2)}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        model, run = scratch / "model", scratch / "run"
        model.mkdir()
        first_layers(options.model, options.layers, model)
        # One job at a time: side by side, jobs share the cores, and the seconds of both grow.
        pipeline = scratch / "pipeline.toml"
        pipeline.write_text((ROOT / "pipeline.toml").read_text().replace('cpus = "50%"', "cpus = 0"))
        arguments = [f"--set={key}={value}" for key, value in windows.items()]
        before = ceiling()
        summary = subprocess.run(
            [PROGRAMS / "uc", "compress", model, "--run", run, "--json", "--pipeline", pipeline, "--calibration", options.calibration,
             "--evaluation", options.evaluation, *arguments],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "UC_LOG": "debug"})
        peak = max(before, ceiling())
        passes = {}
        for name, stages in PASSES.items():
            seconds, kinds = 0.0, {}
            for stage in stages:
                spent, found = read_log(run / "logs" / f"{stage}.log")
                seconds += spent
                for kind, values in found.items():
                    kinds[kind] = [a + b for a, b in zip(kinds.get(kind, [0, 0, 0.0]), values)]
            passes[name] = table(seconds, kinds, peak)
        total = json.loads(summary.stdout)["stages"]
    receipt = {
        "command": "make bench-passes", "model": options.model.name, "layers": options.layers, "windows": windows,
        "processor": next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                          platform.processor()),
        "cores": os.cpu_count(), "ceiling_gigaflops_per_second": round(peak, 1), "passes": passes,
        "stage_seconds": {name: round(cost["seconds"], 3) for name, cost in total.items()},
    }
    out = options.out or ROOT / "docs" / "benchmarks" / f"passes-{options.model.name}.json"
    out.write_text(json.dumps(receipt, indent=1) + "\n")
    print(f"ceiling {peak:.0f} GFLOP/s")
    for name, measured in passes.items():
        print(f"{name}: {measured['seconds']:.2f} s, {measured['share_of_ceiling']:.0%} of the ceiling")
        for kind, row in measured["work"].items():
            print(f"  {kind:12} {row['seconds']:7.2f} s {row['share_of_time']:4.0%}"
                  + (f" {row['gigaflop']:8.0f} GFLOP {row['share_of_ceiling']:4.0%} of the ceiling" if "share_of_ceiling" in row else ""))
    print(out)


if __name__ == "__main__":
    main()
