#!/usr/bin/env python3
"""Measures the allocation modes on variants of the embedded model whose weights are unlike those of training.

Use:    python3 tests/benchmark/allocation.py UC      (needs numpy; UC is the built program)

Writes docs/benchmarks/allocation.json: mean KL, its interval and the bits per weight of the linears, by version of the program,
variant and mode; null where the program fails. What other versions measured is kept.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "tiny-stories"
SETTINGS = ["calibration.windows=48", "allocation.windows=24", "evaluation.windows=24"]
MODES = ["per-tensor", "per-layer", "global"]


def zero(*parts):
    return lambda name, w: w * 0 if any(part in name for part in parts) else w


def two_of_four(name, w):
    rows = w.reshape(-1, 4).copy()
    np.put_along_axis(rows, np.argsort(np.abs(rows), 1)[:, :2], 0, 1)
    return rows.reshape(w.shape)


def dead_heads(name, w):
    w = w.copy()
    if "o_proj" in name:
        w[:, : w.shape[1] // 2] = 0
    return w


def ternary(name, w):
    scale = np.abs(w).mean()
    return np.clip(np.round(w / scale), -1, 1) * scale


def integers(name, w):
    scale = np.abs(w).max() / 7
    return np.round(w / scale) * scale


def constant(name, w):
    is_constant = "layers.1.mlp.gate_proj" in name or "layers.2.self_attn.k_proj" in name
    return np.full_like(w, 0.01) if is_constant else w


VARIANTS = {
    "the model itself": lambda name, w: w,
    "dead block: last projections of layer 2 zero": zero("layers.2.self_attn.o_proj", "layers.2.mlp.down_proj"),
    "layer 1 zero": zero("layers.1."),
    "gate of layer 1 zero": zero("layers.1.mlp.gate_proj"),
    "half of the heads dead": dead_heads,
    "two of four zero": two_of_four,
    "nine of ten zero": lambda name, w: np.where(np.abs(w) > np.quantile(np.abs(w), 0.9), w, 0),
    "ternary": ternary,
    "ternary MLPs": lambda name, w: ternary(name, w) if "mlp" in name else w,
    "binary": lambda name, w: np.sign(w) * np.abs(w).mean(),
    "fifteen values": integers,
    "two constant matrices": constant,
}


def write_variant(to, change):
    """Copies the model; its linears, bfloat16, are changed."""
    shutil.copytree(MODEL, to)
    path = to / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, tensor in header.items():
        if not name.endswith("_proj.weight"):
            continue
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        bits = np.frombuffer(bytes(data[start:end]), "<u2").astype(np.uint32) << 16
        weights = change(name, bits.view(np.float32).reshape(tensor["shape"])).astype(np.float32)
        rounded = (np.ascontiguousarray(weights).view(np.uint32) + 0x8000) >> 16
        data[start:end] = rounded.astype("<u2").tobytes()
    path.write_bytes(data)


def measure(uc, model, run, mode):
    """One row of the receipt, or None if the run fails."""
    command = [uc, "compress", model, "--run", run, "--json", "--set", f"allocation.mode={mode}"]
    for setting in SETTINGS:
        command += ["--set", setting]
    finished = subprocess.run(command, capture_output=True)
    if finished.returncode != 0:
        return None
    summary = json.loads(finished.stdout)
    return {
        "mean_kl": summary["metrics"]["mean_kl"],
        "bits_per_weight_linears": summary["pack"]["totals"]["bits_per_weight_linears"],
    }


def main(uc):
    path = ROOT / "docs" / "benchmarks" / "allocation.json"
    receipt = json.loads(path.read_text()) if path.exists() else {}
    receipt |= {"model": "tiny-stories", "settings": SETTINGS}
    version = subprocess.run([uc, "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]
    variants = receipt.setdefault("versions", {}).setdefault(version, {})
    for variant, change in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            write_variant(folder / "model", change)
            rows = {mode: measure(uc, folder / "model", folder / mode, mode) for mode in MODES}
        variants[variant] = rows
        values = [f"{mode} {row['mean_kl']['value']:.3g}" if row else f"{mode} failed" for mode, row in rows.items()]
        print(f"{variant}: {'  '.join(values)}", flush=True)
    path.write_text(json.dumps(receipt, indent=1) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1])
