#!/usr/bin/env python3
"""Evaluates other codecs on the benchmark model, with this project's evaluator on the same windows.

Usage: python3 tests/benchmark/peers.py --model DIR --run RUN --text EVALUATION --llama-quantize PROGRAM [--windows 40]
       [--only NAME ...]
--windows 0 uses all windows of the text and writes a receipt of its own.
Build first: make setup; cargo build --release -p uc-examples --example exact_pack
Needs: numpy, torch, transformers, safetensors, gguf; the program llama-quantize of llama.cpp; a finished run of `uc compress`
       on the same model: its calibration windows are reused here, and its pack provides the non-layer tensors.

Each codec's weights are written as an ordinary model folder; `exact_pack` stores them unchanged in a pack, which `uc eval`
measures. Embeddings, norms and head are exact for all codecs. Only the linears differ, and only their bits are counted.

- llama.cpp: llama-quantize itself, with an importance matrix (the mean square of every input over the calibration windows, which
  is what llama-imatrix computes), leaving the token embedding unquantized. K-quants need rows of whole blocks of 256, so rows are
  padded with zeros and truncated afterwards; bits are the format's own.
- reference-like: what the system that this project re-creates is understood to do, at the same true rate: blocks of 64 with an f16
  scale, a grid of levels learned per tensor by k-means, round-to-nearest, and an overlay of rank 32 in bfloat16, fitted in closed
  form to the residual whitened by the second moments (QERA, 2410.06040); `reference-like-plain` spends the overlay's bits on levels.
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def linears(weights):
    """Names of the linears, each with its name in llama.cpp."""
    for name in weights:
        parts = name.split(".")
        if len(parts) == 6 and ".".join(parts[3:5]) in NAMES:
            yield name, f"blk.{parts[2]}.{NAMES['.'.join(parts[3:5])]}.weight"


def second_moments(folder, windows):
    """Mean of x xᵀ over the windows, by weight name. Linears that read the same input share it."""
    same_input = {"q_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("o_proj",), "gate_proj": ("gate_proj", "up_proj"),
              "down_proj": ("down_proj",)}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums, hooks = {}, []

    def accumulate(name):
        def hook(module, inputs):
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + x.T @ x
        return hook

    for name, module in model.named_modules():
        if name.split(".")[-1] in same_input:
            hooks.append(module.register_forward_pre_hook(accumulate(name + ".weight")))
    tokens = 0
    with torch.no_grad():
        for window in windows:
            model.model(torch.tensor([window]))
            tokens += len(window)
    means = {}
    for name, total in sums.items():
        path, last = name.removesuffix(".weight").rsplit(".", 1)
        means.update({f"{path}.{other}.weight": total / tokens for other in same_input[last]})
    return means


def pad(values, width):
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])])


def write_gguf(path, weights, config):
    import gguf
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for name, label in linears(weights):
        values = weights[name].float().numpy()
        writer.add_tensor(label, pad(values, -(-values.shape[1] // 256) * 256))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_importance(path, weights, moments):
    import gguf
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration windows"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, label in linears(weights):
        squares = moments[name].diagonal().numpy().astype(np.float32)
        width = -(-len(squares) // 256) * 256
        # Padding columns get the mean importance; their weights are zero anyway.
        padded = np.full(width, squares.mean(), dtype=np.float32)
        padded[:len(squares)] = squares
        writer.add_tensor(label + ".in_sum2", padded.reshape(1, -1))
        writer.add_tensor(label + ".counts", np.ones((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quants(kind, program, weights, source, importance, scratch):
    """Dequantized weights and bits per weight of llama-quantize."""
    import gguf
    out = scratch / f"{kind}.gguf"
    command = [program, "--token-embedding-type", "f16", "--output-tensor-type", "f16"]
    if importance:
        command += ["--imatrix", importance]
    subprocess.run(command + [source, out, kind], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tensors = {t.name: t for t in gguf.GGUFReader(out).tensors}
    dequantized, bits, count = dict(weights), 0, 0
    for name, label in linears(weights):
        tensor = tensors[label]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        rows, columns = weights[name].shape
        dequantized[name] = torch.from_numpy(np.ascontiguousarray(values.reshape(rows, -1)[:, :columns]))
        # Bits of the format for the weights alone, without the padding.
        bits += 8 * tensor.n_bytes / tensor.n_elements * rows * columns
        count += rows * columns
    out.unlink()
    return dequantized, bits / count


def kmeans(values, levels, rounds=30):
    """Grid of `levels` values with small squared error on a sample of `values` (Lloyd's algorithm)."""
    sample = values[torch.randperm(values.numel(), generator=torch.Generator().manual_seed(42))[:200_000]].sort().values
    grid = sample[((torch.arange(levels) + 0.5) / levels * len(sample)).long()]
    for _ in range(rounds):
        cell = torch.bucketize(sample, (grid[1:] + grid[:-1]) / 2)
        sums = torch.zeros(levels).index_add_(0, cell, sample)
        counts = torch.zeros(levels).index_add_(0, cell, torch.ones_like(sample))
        grid = torch.where(counts > 0, sums / counts.clamp(min=1), grid)
    return grid


def reference_like(weights, moments, rank, bpw):
    """Blocks of 64, k-means grid, round-to-nearest, overlay of rank `rank`: the largest whole number of levels that fits `bpw`."""
    overlay = lambda w: 16 * rank * sum(w.shape)
    scales = lambda w: 16 * w.numel() / 64
    names = [name for name, _ in linears(weights)]
    count = sum(weights[name].numel() for name in names)
    fixed = sum(overlay(weights[name]) + scales(weights[name]) for name in names)
    levels = int(2 ** (bpw - fixed / count))
    quantized, bits = dict(weights), 0
    for name in names:
        w = weights[name].float()
        blocks = w.reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True).half().float().clamp(min=1e-8)
        units = blocks / scale
        grid = kmeans(units.flatten(), levels)
        cells = torch.bucketize(units, (grid[1:] + grid[:-1]) / 2)
        value = (grid[cells] * scale).reshape(w.shape)
        if rank:
            h = moments[name].double()
            h += 1e-4 * h.diagonal().mean() * torch.eye(len(h))
            size, axes = torch.linalg.eigh(h)
            whiten, unwhiten = axes * size.sqrt() @ axes.T, axes / size.sqrt() @ axes.T
            u, s, v = torch.linalg.svd((w - value).double() @ whiten, full_matrices=False)
            left, right = (u[:, :rank] * s[:rank].sqrt()), (s[:rank].sqrt()[:, None] * v[:rank]) @ unwhiten
            value = value + left.bfloat16().float() @ right.bfloat16().float()
        quantized[name] = value.contiguous()
        bits += overlay(w) + scales(w) + math.log2(levels) * w.numel() + 16 * levels
    return quantized, bits / count, levels


def evaluate(options, weights, name, scratch):
    """Metrics of `uc eval` for the weights."""
    folder, pack = scratch / name, scratch / f"{name}-pack"
    folder.mkdir()
    shutil.copy(options.model / "config.json", folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    subprocess.run([PROGRAMS / "examples" / "exact_pack", options.run / "pack", folder, pack], check=True)
    run = subprocess.run(
        [PROGRAMS / "uc", "eval", pack, "--model", options.model, "--text", options.text, "--run", scratch / f"{name}-run", "--json",
         "--set", f"evaluation.windows={options.windows}"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for leftover in (folder, pack, scratch / f"{name}-run"):
        shutil.rmtree(leftover)
    return json.loads(run.stdout)["metrics"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--llama-quantize", default="llama-quantize")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--bpw", type=float, default=5.0)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    weights = load_file(options.model / "model.safetensors")
    config = json.loads((options.model / "config.json").read_text())
    windows = [w["ids"] for w in json.loads((options.run / "calibration" / "windows.json").read_text())["windows"]]
    moments = second_moments(options.model, windows)
    whole = "" if options.windows else "-all-windows"
    receipt = ROOT / "docs" / "benchmarks" / f"peers-{options.model.name}{whole}.json"
    results = json.loads(receipt.read_text())["codecs"] if receipt.exists() and options.only else {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        source, importance = scratch / "source.gguf", scratch / "importance.gguf"
        write_gguf(source, weights, config)
        write_importance(importance, weights, moments)

        def llama(kind):
            return llama_quants(kind, options.llama_quantize, weights, source, importance, scratch)

        codecs = {kind: (lambda kind=kind: llama(kind)) for kind in ("Q5_K_M", "Q6_K", "Q5_K_S", "Q4_K_M")}
        codecs["reference-like"] = lambda: reference_like(weights, moments, 32, options.bpw)
        codecs["reference-like-plain"] = lambda: reference_like(weights, moments, 0, options.bpw)
        for name, make in codecs.items():
            if options.only and name not in options.only:
                continue
            quantized, bpw, *levels = make()
            metrics = evaluate(options, quantized, name, scratch)
            results[name] = {"bits_per_weight_linears": round(bpw, 4), **({"levels": levels[0]} if levels else {}), "metrics": metrics}
            print(f"{name}: {bpw:.3f} bpw, mean KL {metrics['mean_kl']['value']:.5f}", flush=True)
            command = f"python3 tests/benchmark/peers.py --model {options.model.name} --run RUN --text {options.text.name} --windows {options.windows}"
            receipt.write_text(json.dumps({"command": command, "model": options.model.name, "codecs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
