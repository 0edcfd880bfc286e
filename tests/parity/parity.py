"""Compares the product's forward passes with Hugging Face transformers, an independent implementation.

Needs: pip install torch transformers safetensors numpy; cargo build --release -p uc-model --example logits
Usage: python3 tests/parity/parity.py MODEL TEXT [--windows N] [--length N]     a real model
       python3 tests/parity/parity.py --random [PATTERN]                        tiny random models, one per option
       python3 tests/parity/parity.py --golden tests/golden [PATTERN]           writes the golden files of the Rust tests
       python3 tests/parity/parity.py --check tests/golden [PATTERN]            recomputes the golden files and compares
PATTERN, such as 'phi3-*', selects cases of cases.py. Each case lists the major versions of transformers that compute it as
its authors intended. --golden writes the cases whose newest version is the installed one, so it is run once with 4.57 and
once with 5; --check compares all cases that list the installed version.
Prints the largest difference of any logit and the perplexity of both. Exits with 1 if they disagree.
"""
import argparse
import fnmatch
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import reference
from cases import cases

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGITS = ROOT / "target/release/examples/logits"
# Largest difference, relative to the largest value, that another order of summation may cause in float32.
ROUNDING = 1e-5
# Largest change, relative to the largest value, when every weight changes by a millionth. More means that the choice of experts
# is too close to call.
STABLE = 1e-3


def product_logits(model, ids, vocab):
    done = subprocess.run([LOGITS, model], input=json.dumps(ids).encode(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype="<f4").reshape(len(ids), vocab)


def negative_log_likelihood(logits, ids):
    logits = logits[:-1].astype(np.float64)
    peak = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
    return (log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).sum()


def compare(path, model, windows, name, tolerance):
    worst, scale, sums, count = 0.0, 0.0, [0.0, 0.0], 0
    for ids in windows:
        with torch.no_grad():
            expected = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        actual = product_logits(path, ids, expected.shape[1])
        worst = max(worst, float(np.abs(actual - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
        sums[0] += negative_log_likelihood(actual, ids)
        sums[1] += negative_log_likelihood(expected, ids)
        count += len(ids) - 1
    ppl = [float(np.exp(total / count)) for total in sums]
    print(f"{name}: largest logit difference {worst:.2e} (largest logit {scale:.1f}), PPL ours {ppl[0]:.5f} theirs {ppl[1]:.5f}")
    return worst <= tolerance * max(scale, 1.0)


def selected_cases(pattern):
    return [case for case in cases() if fnmatch.fnmatch(case.name, pattern) and reference.VERSION in case.versions]


def check_random(pattern):
    """Uses windows twice as long as those of the golden files, unless the family has a maximum position."""
    good = True
    for case in selected_cases(pattern):
        with tempfile.TemporaryDirectory() as root:
            folder = pathlib.Path(root)
            reference.write_model(case, folder)
            ids = reference.tokens(case, min(2 * case.length, case.config.get("n_positions", 2 * case.length)))
            try:
                good &= compare(folder, reference.load(folder), [ids.tolist()], case.name, 2e-5)
            except subprocess.CalledProcessError as error:
                print(f"{case.name}: {error.stderr.decode().strip()}")
                good = False
    return good


def write_golden(root, pattern):
    good = True
    for case in selected_cases(pattern):
        if reference.VERSION != max(case.versions):
            continue
        largest, moved = reference.write_case(case, root)
        size = sum(file.stat().st_size for file in (root / case.name).iterdir())
        print(f"{case.name}: {size / 1000:.0f} kB, largest logit {largest:.1f}, changes by {moved:.0e} of it")
        good &= moved <= STABLE
    return good


def check_golden(root, pattern):
    good = True
    for case in selected_cases(pattern):
        differences = reference.check_case(root / case.name)
        print(f"{case.name}: " + ", ".join(f"{key} {value:.0e}" for key, value in differences.items()))
        good &= max(differences.values()) <= ROUNDING
    return good


def compare_real(arguments):
    tokens = subprocess.run([LOGITS, arguments.model, "--tokens", arguments.text], capture_output=True, check=True)
    ids = json.loads(tokens.stdout)
    windows = [ids[i * arguments.length:(i + 1) * arguments.length] for i in range(arguments.windows)]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    return compare(arguments.model, model, windows, arguments.model, 2e-5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder, or a pattern of cases with --random, --golden or --check")
    parser.add_argument("text", nargs="?")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--golden", type=pathlib.Path)
    parser.add_argument("--check", type=pathlib.Path)
    arguments = parser.parse_args()
    pattern = arguments.model or "*"
    if arguments.golden:
        return write_golden(arguments.golden, pattern)
    if arguments.check:
        return check_golden(arguments.check, pattern)
    if arguments.random:
        return check_random(pattern)
    if not arguments.text:
        parser.error("expected MODEL and TEXT, or one of --random, --golden and --check")
    return compare_real(arguments)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
