#!/usr/bin/env python3
"""Runs one layer of the widths of the largest models through every stage, and writes docs/benchmarks/wide-layers.json: seconds and peak
memory of each stage beside the memory that pipeline.toml declares and the time that `uc plan` forecasts.

Usage: python3 tests/benchmark/wide_layers.py [--models llama-405b,qwen3-235b] [--divide N] [--scratch DIR] [--out FILE] [--set KEY=VALUE …]
The models have one layer, the vocabulary of the embedded tiny model, and random weights in bf16: rows and columns with log-normal scales,
a few heavy columns, and a low-rank part whose singular values fall as a power law. Jobs run one at a time. --divide N divides
every width and number of heads and experts by N; the receipt says so. The model and its run are deleted. At full size the 405B layer
takes 6.5 GB for the model and up to 30 GB in all.
"""
import argparse
import json
import os
import pathlib
import platform
import shutil
import struct
import subprocess
import tempfile
import threading
import time

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
TINY = ROOT / "examples" / "tiny-stories"
RECEIPT = ROOT / "docs" / "benchmarks" / "wide-layers.json"
COMMON = {"num_hidden_layers": 1, "vocab_size": 1024, "max_position_embeddings": 4096, "hidden_act": "silu", "torch_dtype": "bfloat16",
          "tie_word_embeddings": True}
MODELS = {
    "llama-405b": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16384, "intermediate_size": 53248,
                   "num_attention_heads": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
    "qwen3-235b": {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 4096, "intermediate_size": 12288,
                   "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
                   "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "mlp_only_layers": [],
                   "decoder_sparse_step": 1, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
}
DIVIDED = ["hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts", "num_attention_heads", "num_key_value_heads"]
# 4096 tokens of calibration, 2048 for the sensitivity pass and for the evaluation.
WINDOWS = {"calibration.windows": 8, "calibration.length": 512, "allocation.windows": 4, "evaluation.windows": 4, "evaluation.length": 512}
# Rows of a tensor that are made at a time.
BLOCK = 2048
RANK = 32


def bf16(values):
    """Rounds f32 values to bf16, as bytes."""
    bits = values.view(numpy.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(numpy.uint16).tobytes()


def write_matrix(out, random, rows, cols):
    """A matrix with scales of rows and columns, heavy columns and a low-rank part, as large as a trained one."""
    row_scales = numpy.exp(0.4 * random.standard_normal(rows, dtype=numpy.float32))
    col_scales = numpy.exp(0.4 * random.standard_normal(cols, dtype=numpy.float32))
    heavy = random.choice(cols, max(1, cols // 2000), replace=False)
    col_scales[heavy] *= 8.0
    rank = min(RANK, rows, cols)
    right = random.standard_normal((rank, cols), dtype=numpy.float32)
    right *= (2.0 / (1.0 + numpy.arange(rank, dtype=numpy.float32)) ** 0.7)[:, None] / numpy.sqrt(rank)
    for first in range(0, rows, BLOCK):
        scales = row_scales[first:first + BLOCK]
        block = random.standard_normal((len(scales), cols), dtype=numpy.float32)
        block += random.standard_normal((len(scales), rank), dtype=numpy.float32) @ right
        block *= scales[:, None] * (0.5 / numpy.sqrt(cols))
        block *= col_scales
        out.write(bf16(block))


def write_model(config, folder):
    """Writes the model shard by shard; a shard holds one tensor."""
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(TINY / name, folder)
    describe = [PROGRAMS / "shard-loader", "describe", "--tensors", "--config", folder / "config.json"]
    tensors = json.loads(subprocess.run(describe, check=True, stdout=subprocess.PIPE).stdout)["tensors"]
    files, total = {}, 0
    # Experts are small: many tensors share a shard.
    shard, entries, pending = 0, {}, []
    def flush():
        nonlocal shard, entries, pending
        shard += 1
        file = f"model-{shard:05}.safetensors"
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, shape in pending:
                random = numpy.random.default_rng(sum(name.encode()) + 1000 * len(files))
                if len(shape) == 2:
                    write_matrix(out, random, *shape)
                else:
                    out.write(bf16(numpy.exp(0.1 * random.standard_normal(shape, dtype=numpy.float32))))
                files[name] = file
        entries, pending = {}, []
    offset = 0
    for name, shape in sorted(tensors.items()):
        size = 2 * int(numpy.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        pending.append((name, shape))
        offset, total = offset + size, total + size
        if offset > 1 << 30:
            flush()
            offset = 0
    if pending:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class DiskUse(threading.Thread):
    """The most that the files of a folder take, looked at every second."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.peak = folder, 0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(1.0):
            used = 0
            for path in self.folder.rglob("*"):
                try:
                    used += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:
                    pass
            self.peak = max(self.peak, used)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def measure(name, config, settings, options, scratch):
    model, run = scratch / "model", scratch / "run"
    model.mkdir()
    started = time.time()
    write_model(config, model)
    made = time.time() - started
    # One job at a time: the seconds and the peak of each are its own.
    pipeline = scratch / "pipeline.toml"
    pipeline.write_text((ROOT / "pipeline.toml").read_text().replace('cpus = "50%"', "cpus = 0"))
    arguments = [f"--set={key}={value}" for key, value in settings.items()] + ["--pipeline", pipeline]
    plan = subprocess.run(
        [PROGRAMS / "uc", "plan", "--config", model / "config.json", "--index", model / "model.safetensors.index.json", "--json",
         "--threads", str(os.cpu_count()), *arguments], check=True, stdout=subprocess.PIPE)
    plan = json.loads(plan.stdout)
    disk = DiskUse(scratch)
    disk.start()
    started = time.time()
    compress = [PROGRAMS / "uc", "compress", model, "--run", run, "--json", "--calibration", TINY / "calibration.txt", "--evaluation",
                TINY / "evaluation.txt", *arguments]
    summary = json.loads(subprocess.run(compress, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.time() - started
    disk.ended.set()
    forecast = {stage["name"]: stage for stage in plan["run"]["stages"]}
    stages = {}
    for stage, cost in summary["stages"].items():
        planned = forecast[stage]
        row = {"seconds": round(cost["seconds"], 2), "peak_bytes": cost["peak_rss_bytes"], "declared_bytes": planned["memory_bytes"],
               "fits": cost["peak_rss_bytes"] <= planned["memory_bytes"]}
        row.update({key: round(planned[key], 2) for key in ["seconds_low", "seconds_high"] if key in planned})
        stages[stage] = row
        within = "" if row["fits"] else "  MORE THAN DECLARED"
        print(f"{name:<12}{stage:<22}{row['seconds']:>9.1f} s{row['peak_bytes'] / 1e9:>8.2f} of {row['declared_bytes'] / 1e9:.2f} GB{within}",
              flush=True)
    return {"config": config, "divided_by": options.divide, "settings": settings, "model": plan["model"], "making_seconds": round(made, 1),
            "wall_seconds": round(seconds, 1), "peak_disk_bytes": disk.peak, "stages": stages}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--scratch", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=RECEIPT)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    settings = {**WINDOWS, **dict(assignment.split("=", 1) for assignment in options.set)}
    receipt = {"processor": processor(), "cores": os.cpu_count(), "models": {}}
    for name in options.models.split(","):
        config = {**COMMON, **MODELS[name]}
        for key in DIVIDED:
            if key in config:
                config[key] = max(1, config[key] // options.divide)
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            receipt["models"][name] = measure(name, config, settings, options, pathlib.Path(scratch))
        options.out.write_text(json.dumps(receipt, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
