#!/usr/bin/env python3
"""Compares the runtime with the evaluation of a run, and its greedy text with transformers; writes docs/benchmarks/runtime-accuracy.json.

Usage: python3 tests/benchmark/runtime_accuracy.py --run RUN --text TEXT [--pack PACK] [--parts windows text] [--ways fast f16 bf16]
       [--prompts 20] [--tokens 200] [--setting OPTIONS]
Build first: make setup; cargo build --release -p uc-examples --example runtime_accuracy
Needs: torch, transformers, safetensors. RUN is a finished run of `uc compress` or `uc eval`; PACK is by default that of RUN.

- Perplexity: the example runtime_accuracy computes the windows of RUN with the runtime.
- Text: the prompts are beginnings of paragraphs of TEXT, spread over it. transformers computes in f32 on the reconstructed weights
  (`uc export --to safetensors`), with uc's tokens of the prompt. Where a text of `uc generate` parts from that of transformers, the
  receipt has the position and the difference of the two tokens' logits in transformers.
--parts windows or --parts text measures one of the two and keeps the other as it is in the receipt.
"""
import argparse
import json
import os
import pathlib
import shlex
import subprocess
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
RECEIPT = ROOT / "docs/benchmarks/runtime-accuracy.json"


def uc(*arguments):
    return subprocess.run([PROGRAMS / "uc", "-q", *map(str, arguments)], check=True, stdout=subprocess.PIPE).stdout


def prompts(text, count):
    """The first words of paragraphs, spread over the text."""
    paragraphs = [line.strip() for line in text.splitlines() if len(line.split()) >= 30]
    step = max(1, len(paragraphs) // count)
    return [" ".join(paragraph.split()[:12]) for paragraph in paragraphs[::step][:count]]


@torch.no_grad()
def compare(model, prompt, tokens):
    """Goes along the text of uc; where the most probable token is another one, the position and the two logits."""
    ids = torch.tensor([prompt + tokens[:-1]])
    logits = model(ids).logits[0, len(prompt) - 1:].float()
    for position, (row, token) in enumerate(zip(logits, tokens)):
        if int(row.argmax()) != token:
            return {"position": position, "difference": float(row.max() - row[token])}
    return None


def greedy_text(pack, options):
    """Greedy texts of all prompts beside those of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        exported = pathlib.Path(folder) / "model"
        uc("export", pack, "--to", "safetensors", "--out", exported)
        model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    texts, parted = [], []
    for prompt in prompts(options.text.read_text(), options.prompts):
        report = json.loads(uc("generate", pack, "-p", prompt, "-n", options.tokens, "--ignore-eos", "--json", *shlex.split(options.setting)))
        tokens = [token["id"] for token in report["tokens"]]
        parts = compare(model, report["prompt_tokens"], tokens)
        texts.append({"prompt": prompt, "tokens": len(tokens), "parts": parts})
        parted += [parts] if parts else []
        print(f"{len(texts)} of {options.prompts}: {parts or 'equal'}", flush=True)
    return {
        "fingerprint": report["pack"],
        "arithmetic": report["arithmetic"],
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": len(texts),
        "tokens_each": options.tokens,
        "equal": len(texts) - len(parted),
        "largest_difference_where_they_part": max((parts["difference"] for parts in parted), default=0.0),
        "texts": texts,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--pack", type=pathlib.Path)
    parser.add_argument("--ways", nargs="*", default=["fast", "f16", "bf16"], help="what is compared with exact: see the example")
    parser.add_argument("--parts", nargs="+", choices=["windows", "text"], default=["windows", "text"])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--setting", default="--arithmetic exact", help="options of `uc generate`")
    options = parser.parse_args()
    pack = options.pack or options.run / "pack"
    receipt = json.loads(RECEIPT.read_text()) if RECEIPT.exists() else {}
    receipt["command"] = "make bench-runtime-accuracy"
    if "windows" in options.parts:
        command = [PROGRAMS / "examples/runtime_accuracy", pack, options.run / "eval", *options.ways]
        receipt["windows"] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if "text" in options.parts:
        receipt["greedy_text"] = greedy_text(pack, options)
    RECEIPT.write_text(json.dumps(receipt, indent=1) + "\n")


if __name__ == "__main__":
    main()
