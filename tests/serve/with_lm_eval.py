"""`lm_eval` with its model `local-completions`, on a task made from a local file: the log-likelihoods are those of `uc eval`.

    uc serve PACK --port 8080 --model-name NAME
    python with_lm_eval.py http://127.0.0.1:8080 NAME UC PACK MODEL TEXT

MODEL is the folder that PACK was made from. The first tokens of TEXT, of several lengths, are a window each: the evaluator
reports its perplexity for the pack, and lm_eval the log-likelihood of all its tokens but the first after the first.
tests/tests/serve_clients.rs runs this.
"""

import json
import math
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer

ADDRESS, NAME, UC, PACK, MODEL, TEXT = sys.argv[1:7]
LENGTHS = (33, 100, 256)
# The evaluator adds f32 logarithms in another order than a client adds its own.
TOLERANCE = 2e-5


def windows(tokenizer, text):
    """Prefixes of the text that encode to exactly so many tokens, of which the first is a text of its own."""
    for length in LENGTHS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        window = tokenizer.decode(ids)
        first = tokenizer.decode(ids[:1])
        assert tokenizer.encode(window, add_special_tokens=False).ids == ids
        assert tokenizer.encode(first, add_special_tokens=False).ids == ids[:1] and window.startswith(first)
        yield first, window[len(first) :], length


def by_evaluator(folder, window, length):
    path = os.path.join(folder, f"window-{length}.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(window)
    run = os.path.join(folder, f"run-{length}")
    sets = [f"--set=evaluation.length={length}", "--set=evaluation.windows=0"]
    output = subprocess.run(
        [UC, "eval", PACK, "--model", MODEL, "--text", path, "--run", run, "--json", "--quiet", *sets],
        check=True, capture_output=True, text=True,
    )
    metrics = json.loads(output.stdout)
    metrics = metrics.get("metrics", metrics)
    assert metrics["tokens"] == length - 1, metrics["tokens"]
    return -math.log(metrics["pack_ppl"]["value"]) * (length - 1)


def main():
    tokenizer = Tokenizer.from_file(os.path.join(PACK, "tokenizer.json"))
    with open(TEXT, encoding="utf-8") as file:
        text = file.read(20_000)
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data.jsonl")
        expected = []
        with open(data, "w", encoding="utf-8") as file:
            for first, rest, length in windows(tokenizer, text):
                file.write(json.dumps({"first": first, "rest": rest}) + "\n")
                expected.append(by_evaluator(folder, first + rest, length))
        task = {
            "task": "windows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": data}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{first}}",
            "doc_to_target": "{{rest}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": NAME, "base_url": f"{ADDRESS}/v1/completions", "tokenizer": PACK, "max_length": 300,
                "num_concurrent": 2, "tokenized_requests": True,
            },
            tasks=[task],
            task_manager=TaskManager(),
            log_samples=True,
            bootstrap_iters=0,
        )
    samples = sorted(results["samples"]["windows"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(expected)
    for sample, value in zip(samples, expected):
        found = float(sample["resps"][0][0][0])
        difference = abs(found - value) / abs(value)
        print(f"log-likelihood {found:.6f}, evaluator {value:.6f}, relative difference {difference:.1e}")
        assert difference < TOLERANCE
    print("passed")


if __name__ == "__main__":
    main()
