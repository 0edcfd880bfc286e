#!/usr/bin/env python3
"""Rate-distortion curve: compresses a model at several rates and writes the receipt and the plot of docs/benchmarks.

Usage: python3 tests/benchmark/rates.py --model DIR --calibration FILE ... --text FILE [--windows 12] [--bpw 2 3 4 5 6 7 8] [--set K=V ...]
       [--run DIR]
All rates share one run directory that keeps every intermediate file, so that the sensitivity pass and the calibration run once;
it is temporary unless --run names it.
Needs: matplotlib. Writes docs/benchmarks/rates-MODEL.json and .svg; the codecs of peers-MODEL.json are plotted next to the curve.
Rates that are already in the receipt are kept unless --bpw names them.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def measure(options, run, bpw):
    pipeline = run / "keep-everything.toml"
    pipeline.write_text((ROOT / "pipeline.toml").read_text().replace("temporary = true", "temporary = false"))
    command = [PROGRAMS / "uc", "compress", options.model, "--run", run / "run", "--pipeline", pipeline, "--json", "--bpw", str(bpw),
               "--set", f"evaluation.windows={options.windows}", "--evaluation", options.text]
    for text in options.calibration:
        command += ["--calibration", text]
    for setting in options.set:
        command += ["--set", setting]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    summary = json.loads(done.stdout)
    metrics, totals = summary["metrics"], summary["pack"]["totals"]
    actual = float(totals["bits_per_weight_linears"])
    assert bpw - 0.01 <= actual <= bpw, f"found {actual}, expected {bpw}"
    return {"bpw": bpw, "bits_per_weight_linears": actual, "mean_kl": metrics["mean_kl"], "ppl_ratio": metrics["ppl_ratio"],
            "top1_agreement": metrics["top1_agreement"]}


def plot(rates, name, folder):
    figure, axes = plt.subplots(figsize=(7, 4.5))
    bits, divergence = [r["bits_per_weight_linears"] for r in rates], [r["mean_kl"]["value"] for r in rates]
    axes.plot(bits, divergence, "o-", label="UltraCompress")
    peers = folder / f"peers-{name}.json"
    if peers.exists():
        for label, codec in json.loads(peers.read_text())["codecs"].items():
            point = codec["bits_per_weight_linears"], codec["metrics"]["mean_kl"]["value"]
            axes.plot(*point, "s", color="gray")
            axes.annotate(label, point, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlabel="bits per weight over the linears, every byte counted", ylabel="mean KL divergence to the teacher, nats", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "uc"  # equal data must give an equal file
    figure.savefig(folder / f"rates-{name}.svg", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--calibration", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--bpw", type=float, nargs="*", default=[2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--run", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = options.run or pathlib.Path(temporary)
        run.mkdir(parents=True, exist_ok=True)
        sweep(options, run)


def sweep(options, run):
    folder, name = ROOT / "docs" / "benchmarks", options.model.name
    receipt = folder / f"rates-{name}.json"
    previous = json.loads(receipt.read_text())["rates"] if receipt.exists() else []
    rates = {rate["bpw"]: rate for rate in previous}
    for bpw in options.bpw:
        rates[bpw] = measure(options, run, bpw)
        ordered = [rates[key] for key in sorted(rates)]
        print(f"{bpw}: {rates[bpw]['bits_per_weight_linears']:.4f} bpw, mean KL {rates[bpw]['mean_kl']['value']:.5f}", flush=True)
        texts = " ".join(text.name for text in options.calibration)
        command = (f"python3 tests/benchmark/rates.py --model {name} --calibration {texts} --text {options.text.name} "
                   f"--windows {options.windows}" + (f" --set {' '.join(options.set)}" if options.set else ""))
        receipt.write_text(json.dumps({"command": command, "model": name, "rates": ordered}, indent=2) + "\n")
    plot([rates[key] for key in sorted(rates)], name, folder)


if __name__ == "__main__":
    main()
