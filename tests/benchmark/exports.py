#!/usr/bin/env python3
"""Measures the KL divergence that exports add to their pack and writes docs/benchmarks/exports.json.

Usage: python3 tests/benchmark/exports.py [--pack PACK --text TEXT [--windows N]]
Without a pack, that of the embedded model is made and compared on its evaluation text. With one, its entry is added and the
others are kept. The evaluator reads the layers from the files of the export; the teacher is the reconstruction of the pack.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
UC = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/uc"
RECEIPT = ROOT / "docs/benchmarks/exports.json"
TYPES = ["bf16", "f16", "q8_0"]


def uc(*arguments, cwd):
    command = [UC, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=cwd).stdout


def measure(pack, text, windows, folder):
    manifest = json.loads((pack / "manifest.json").read_text())
    entry = {
        "model": manifest["source"]["name"],
        "bits_per_weight_linears": manifest["totals"]["bits_per_weight_linears"],
        "exports": [],
    }
    for kind in TYPES:
        out = folder / kind
        report = json.loads(uc("export", pack, "--to", "gguf", "--type", kind, "--out", out, "--json", cwd=folder))
        options = ["--set", f"evaluation.windows={windows}"] if windows else []
        metrics = json.loads(uc("eval", out, "--model", pack, "--text", text, *options, "--json", cwd=folder))["metrics"]
        entry["pack_fingerprint"] = report["pack_fingerprint"]
        entry["windows"], entry["window_length"] = metrics["windows"], metrics["window_length"]
        entry["exports"].append({
            "format": "gguf",
            "type": kind,
            "bytes": sum(file["size"] for file in report["files"]),
            **{name: metrics[name] for name in ["mean_kl", "median_kl", "p99_kl", "ppl_ratio", "top1_agreement"]},
        })
        print(entry["model"], kind, metrics["mean_kl"]["value"], flush=True)
    return entry


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--windows", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pack, text = args.pack, args.text
        if pack is None:
            model = ROOT / "examples/tiny-stories"
            pack, text = folder / "run/pack", model / "evaluation.txt"
            uc("compress", model, "--run", folder / "run", "--no-eval", cwd=folder)
        entry = measure(pack.resolve(), text.resolve(), args.windows, folder)
    known = json.loads(RECEIPT.read_text())["packs"] if RECEIPT.exists() else []
    packs = [other for other in known if other["model"] != entry["model"]] + [entry]
    RECEIPT.write_text(json.dumps({"command": "make bench-exports", "packs": packs}, indent=1) + "\n")


main()
