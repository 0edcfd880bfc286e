"""Compares an export of a pack with the evaluator: transformers must measure on it what `uc eval` measured on the pack.

Needs: pip install torch transformers safetensors numpy
Usage: python3 tests/exports/with_transformers.py MODEL RUN EXPORT
MODEL is the source, RUN the run directory that compressed and evaluated it, EXPORT a safetensors export of its pack. transformers
computes the logits of source and export in float32 on the windows of the run. Perplexities, mean KL divergence and top-1
agreement must equal those of the run. Exits with 1 if they do not.
"""
import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

# Relative difference of means that another order of summation in float32 may cause.
TOLERANCE = 2e-4
# Difference of a KL divergence that the rounding of logits in float32 may cause, nats.
ABSOLUTE = 1e-7


def log_probabilities(folder, windows):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager").eval()
    for ids in windows:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
        yield torch.log_softmax(logits, dim=-1).numpy()


def main():
    model, run, export = sys.argv[1:]
    windows = [w["ids"] for w in json.loads((pathlib.Path(run) / "eval/windows.json").read_text())["windows"]]
    measured = json.loads((pathlib.Path(run) / "eval/metrics.json").read_text())
    losses, kls, agree = [[], []], [], []
    for ids, teacher, pack in zip(windows, log_probabilities(model, windows), log_probabilities(export, windows)):
        for loss, log_p in zip(losses, [teacher, pack]):
            loss.append(-log_p[np.arange(len(ids) - 1), ids[1:]])
        teacher, pack = teacher[:-1], pack[:-1]
        kls.append((np.exp(teacher) * (teacher - pack)).sum(axis=1))
        agree.append(teacher.argmax(axis=1) == pack.argmax(axis=1))
    found = {
        "teacher_ppl": np.exp(np.concatenate(losses[0]).mean()),
        "pack_ppl": np.exp(np.concatenate(losses[1]).mean()),
        "mean_kl": np.concatenate(kls).mean(),
        "top1_agreement": np.concatenate(agree).mean(),
    }
    failed = False
    for name, value in found.items():
        expected = measured[name]["value"]
        differs = abs(value - expected) > TOLERANCE * abs(expected) + ABSOLUTE
        failed |= bool(differs)
        print(f"{name:<16}transformers {value:.9f}, evaluator {expected:.9f}{' DIFFERS' if differs else ''}")
    return 1 if failed else 0


sys.exit(main())
