"""Compares the product's forward pass with Hugging Face transformers, an independent implementation.

Needs: pip install torch transformers safetensors numpy; cargo build --release -p uc-model --example logits
Usage: python3 tests/parity/parity.py MODEL TEXT [--windows N] [--length N]     a real model
       python3 tests/parity/parity.py --random                                 small random models, each switch
       python3 tests/parity/parity.py --golden tests/golden                    writes the cases of common/model/tests/golden.rs
Prints the largest difference of any logit and the perplexity of both. Exits with 1 where they disagree.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGITS = ROOT / "target/release/examples/logits"


def ours(model, ids, vocab):
    done = subprocess.run([LOGITS, model], input=json.dumps(ids).encode(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype="<f4").reshape(len(ids), vocab)


def theirs(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def negative_log_likelihood(logits, ids):
    logits = logits[:-1].astype(np.float64)
    peak = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
    return (log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).sum()


def compare(path, windows, name, tolerance):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    worst, scale, sums, count = 0.0, 0.0, [0.0, 0.0], 0
    for ids in windows:
        expected = theirs(model, ids)
        found = ours(path, ids, expected.shape[1])
        worst = max(worst, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
        sums[0] += negative_log_likelihood(found, ids)
        sums[1] += negative_log_likelihood(expected, ids)
        count += len(ids) - 1
    ppl = [float(np.exp(total / count)) for total in sums]
    print(f"{name}: largest logit difference {worst:.2e} (largest logit {scale:.1f}), PPL ours {ppl[0]:.5f} theirs {ppl[1]:.5f}")
    return worst <= tolerance * max(scale, 1.0)


def random_models():
    base = dict(
        vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
    )
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64, rope_theta=10000.0)
    yield "plain", base
    yield "tied head", base | dict(tie_word_embeddings=True)
    yield "biases", base | dict(attention_bias=True, mlp_bias=True)
    yield "wide heads", base | dict(head_dim=16)
    yield "rope llama3", base | dict(rope_scaling=llama3)
    yield "rope linear", base | dict(rope_scaling=dict(rope_type="linear", factor=4.0, rope_theta=10000.0))
    yield "all heads", base | dict(num_key_value_heads=6)


def check_random():
    good = True
    for index, (name, settings) in enumerate(random_models()):
        torch.manual_seed(index)
        model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            ids = torch.randint(0, settings["vocab_size"], (200,)).tolist()
            good &= compare(folder, [ids], name, 2e-5)
    return good


def write_golden(root):
    """Tiny random models with the logits that transformers computes: enough for every path of the forward pass."""
    tiny = dict(vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2)
    cases = {name: settings | tiny for name, settings in random_models()}
    cases["wide heads"] |= dict(head_dim=8)
    for index, (name, settings) in enumerate(cases.items()):
        torch.manual_seed(index)
        model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        folder = root / f"llama-{name.replace(' ', '-')}"
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = torch.randint(0, settings["vocab_size"], (70,))
        logits = torch.from_numpy(theirs(model, ids.tolist())).contiguous()
        save_file({"ids": ids.to(torch.int32), "logits": logits}, folder / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("text", nargs="?")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--golden", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.golden:
        write_golden(arguments.golden)
        return True
    if arguments.random:
        return check_random()
    tokens = subprocess.run([LOGITS, arguments.model, "--tokens", arguments.text], capture_output=True, check=True)
    ids = json.loads(tokens.stdout)
    windows = [ids[i * arguments.length:(i + 1) * arguments.length] for i in range(arguments.windows)]
    return compare(arguments.model, windows, arguments.model, 2e-5)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
