#!/usr/bin/env python3
"""Runs every model family through the whole pipeline and writes docs/benchmarks/families.json.

Usage: python3 tests/benchmark/families.py [FAMILY ...]
Compresses a model with random weights for each configuration of examples/small-configs (predictions are noise; what counts is
that the pack meets its budget, verifies, and stays close to its teacher), and the trained tiny models of examples. Settings are
the defaults, texts the stories of the embedded model. Entries of families that are not named are kept.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
RECEIPT = ROOT / "docs/benchmarks/families.json"
TRAINED = ["tiny-stories", "tiny-experts", "tiny-mamba"]


def run(program, *arguments):
    command = [PROGRAMS / program, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT).stdout


def measure(model, case, trained):
    with tempfile.TemporaryDirectory() as folder:
        summary = json.loads(run("uc", "compress", model, "--run", pathlib.Path(folder) / "run", "--json"))
    totals, metrics = summary["pack"]["totals"], summary["metrics"]
    return {
        "family": json.loads((pathlib.Path(model) / "config.json").read_text())["model_type"],
        "case": case,
        "trained": trained,
        "linear_parameters": totals["linear_parameters"],
        "bits_per_weight": totals["bits_per_weight_linears"],
        "verdict": summary["pack"]["verdict"],
        "fingerprint": summary["pack"]["fingerprint"],
        "teacher_ppl": metrics["teacher_ppl"],
        "ppl_ratio": metrics["ppl_ratio"],
        "mean_kl": metrics["mean_kl"],
        "top1_agreement": metrics["top1_agreement"],
        "inputs_filled_up": sum(len(layer["filled_up"]) for layer in summary["experts"].values()),
    }


def main():
    selected = sys.argv[1:]
    previous = json.loads(RECEIPT.read_text())["models"] if RECEIPT.exists() else []
    entries = {entry["case"]: entry for entry in previous}
    for config in sorted((ROOT / "examples/small-configs").glob("*.json")):
        case = f"small-configs/{config.stem}"
        if selected and config.stem not in selected:
            continue
        with tempfile.TemporaryDirectory() as model:
            run("random-model", "--config", config, "--out", model)
            for text in ["calibration.txt", "evaluation.txt"]:
                (pathlib.Path(model) / text).write_bytes((ROOT / "examples/tiny-stories" / text).read_bytes())
            entries[case] = measure(model, case, False)
        print(case, entries[case]["bits_per_weight"], entries[case]["mean_kl"]["value"], flush=True)
    for name in TRAINED:
        if selected and name not in selected:
            continue
        entries[name] = measure(ROOT / "examples" / name, name, True)
        print(name, entries[name]["ppl_ratio"], entries[name]["mean_kl"]["value"], flush=True)
    models = [entries[case] for case in sorted(entries)]
    RECEIPT.write_text(json.dumps({"command": "make bench-families", "models": models}, indent=1) + "\n")


main()
