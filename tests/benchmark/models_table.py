#!/usr/bin/env python3
"""Writes the table of docs/models.md: what is known about each reference model without its weights.

Usage: python3 tests/benchmark/models_table.py [--models FOLDER]
FOLDER holds configs/NAME.json, indexes/generated/NAME/{model.safetensors.index.json,tensors.json} and, for some models,
indexes/real/NAME; it is not part of the project. With it, plans are computed again (`uc plan --config`,
`shard-loader describe --tensors`) and written to docs/benchmarks/models.json; without it, that receipt is used. Golden cases are
those of tests/golden, whole runs those of docs/benchmarks/families.json if it exists. Replaces the text between the markers of
docs/models.md.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
BENCHMARKS = ROOT / "docs/benchmarks"
PAGE = ROOT / "docs/models.md"
MARKERS = ("<!-- begin: made by tests/benchmark/models_table.py -->", "<!-- end -->")
TOLERANCE = "3e-6"  # of common/model/tests/golden.rs

# The model; the configuration that stands for it; the reason if that is another model's; an index published for it or for a
# model of the same architecture and sizes.
LLAMA = "meta-llama--Meta-Llama-3.1-"
MODELS = [
    ("Llama-3.1-8B", LLAMA + "8B", "", ""),
    ("Llama-3.1-70B", LLAMA + "70B", "", "mattshumer--Reflection-Llama-3.1-70B"),
    ("Hermes-3-Llama-3.1-405B", "NousResearch--Hermes-3-Llama-3.1-405B", "", ""),
    ("TinyLlama-1.1B-Chat", "TinyLlama--TinyLlama-1.1B-Chat-v1.0", "", ""),
    ("SmolLM2-1.7B", "HuggingFaceTB--SmolLM2-1.7B", "", ""),
    ("SmolLM2-1.7B-Instruct", "HuggingFaceTB--SmolLM2-1.7B", "same architecture as SmolLM2-1.7B", ""),
    ("Yi-1.5-9B", "01-ai--Yi-1.5-9B", "", ""),
    ("Mistral-7B-v0.3", "mistralai--Mistral-7B-Instruct-v0.3", "same architecture as its Instruct", ""),
    ("Qwen3-0.6B", "Qwen--Qwen3-0.6B", "", ""),
    ("Qwen3-1.7B", "Qwen--Qwen3-1.7B", "", ""),
    ("Qwen3-1.7B-Base", "Qwen--Qwen3-1.7B", "same architecture as Qwen3-1.7B", ""),
    ("Qwen3-8B", "Qwen--Qwen3-8B", "", ""),
    ("Qwen3-14B", "Qwen--Qwen3-14B", "", ""),
    ("Qwen3-32B", "Qwen--Qwen3-32B", "", ""),
    ("Qwen3-235B-A22B", "Qwen--Qwen3-235B-A22B", "", ""),
    ("Mixtral-8x7B-v0.1", "mistralai--Mixtral-8x7B-v0.1", "", ""),
    ("Mixtral-8x22B-v0.1", "mistralai--Mixtral-8x22B-v0.1", "", "alpindale--WizardLM-2-8x22B"),
    ("Phi-3-mini-4k", "YouriLalain--PHI3-3B-SLERP", "a merge of models of its architecture and sizes", "YouriLalain--PHI3-3B-SLERP"),
    ("Phi-4", None, "same architecture as Phi-3-mini-4k, other sizes", ""),
    ("Phi-3.5-MoE-instruct", "microsoft--Phi-3.5-MoE-instruct", "", ""),
    ("OLMo-2-1B", "allenai--OLMo-2-0425-1B", "", ""),
    ("OLMo-2-1B-Instruct", "allenai--OLMo-2-0425-1B", "same architecture as OLMo-2-1B", ""),
    ("Mamba-2.8B", "state-spaces--mamba-2.8b-hf", "", ""),
]
FAMILY_OF_UNPLANNED = {"Phi-4": "phi3"}


def run(program, *arguments):
    return json.loads(subprocess.run([PROGRAMS / program, *arguments], check=True, stdout=subprocess.PIPE).stdout)


def origin(text):
    """The origin of a configuration, from the folder's own description."""
    if text == "real file":
        return "the published file"
    if text.startswith("= "):
        return f"that of {text.split()[1].split('/')[1]}"
    if "MEMORY" in text or "memory" in text:
        return "written from memory"
    return "as other software has it"


def plan_facts(folder, config, real):
    """Figures of the plan for a configuration, and whether its tensors equal those of transformers and of the published index."""
    source = folder / "configs" / f"{config}.json"
    generated = folder / "indexes/generated" / config
    index = generated / "model.safetensors.index.json"
    plan = run("uc", "plan", "--json", "--config", source, "--index", index)
    described = run("shard-loader", "describe", "--tensors", "--config", source, "--index", index)
    tensors = {name: facts["shape"] for name, facts in json.loads((generated / "tensors.json").read_text()).items()}
    sources = {entry["name"]: entry["config_source"] for entry in json.loads((folder / "indexes/SUMMARY.json").read_text())}
    facts = {
        "config": config,
        "config_origin": origin(sources[config]),
        "family": plan["model"]["family"],
        "layers": plan["model"]["layers"],
        "parameters": plan["model"]["total_parameters"],
        "linears": plan["model"]["linears"],
        "linear_parameters": plan["model"]["linear_parameters"],
        "tensors": len(tensors),
        "equal_to_transformers": described["tensors"] == tensors,
        "source_bytes": plan["run"]["source_bytes"],
        "source_bytes_per_weight": plan["pack"]["source_bytes_per_weight"],
        "pack_bytes": plan["pack"]["total_bytes"],
        "bits_per_weight_all": round(plan["pack"]["bits_per_weight_all"], 4),
        "peak_disk_bytes": plan["run"]["peak_disk_bytes"],
        "largest_memory_bytes": plan["run"]["largest_memory_bytes"],
    }
    if real:
        published = run("shard-loader", "describe", "--config", source, "--index", folder / "indexes/real" / real / "model.safetensors.index.json")
        facts["published_index"] = real
        facts["equal_to_published"] = not published["index"]["missing"] and not published["index"]["left_over"]
    return facts


def count(number):
    return f"{number / 1e9:.3f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def size(number):
    return f"{number / 1e9:.1f} GB"


def tensor_names(facts, reason):
    if facts is None:
        return f"no configuration available; {reason}"
    verdict = "equal" if facts["equal_to_transformers"] else "DIFFERENT"
    stand_in = f"; {reason}" if reason else ""
    text = f"{verdict}, {facts['tensors']} ({facts['config_origin']}{stand_in})"
    if "published_index" in facts:
        verdict = "names equal" if facts["equal_to_published"] else "names DIFFERENT"
        text += f"; {verdict} to the published index of {facts['published_index'].split('--')[1]}"
    return text


def cases(family):
    return sorted(path.name.removeprefix(f"{family}-") for path in (ROOT / "tests/golden").glob(f"{family}-*"))


def entries(family, receipt):
    return [entry for entry in receipt if entry["family"] == family]


def whole_run(entry):
    ratio, divergence = (entry[key]["value"] if isinstance(entry[key], dict) else entry[key] for key in ["ppl_ratio", "mean_kl"])
    return f"{entry['case'].split('/')[-1]}: {float(entry['bits_per_weight']):.4f} bpw, {entry['verdict']}, PPL ratio {ratio:.4f}, mean KL {divergence:.2e}"


def table(head, rows):
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def table_by_model(models, receipt):
    head = ["model", "family", "parameters", "linears", "tensor names and shapes", "forward pass", "whole pipeline", "pack at 5 bpw", "peak disk, memory", "awaits hardware"]
    rows = []
    for model, config, reason, _ in MODELS:
        facts = models.get(model)
        family = facts["family"] if facts else FAMILY_OF_UNPLANNED[model]
        pending = "compression and evaluation"
        if facts:
            parameters, linears = count(facts["parameters"]), f"{facts['linears']}, {count(facts['linear_parameters'])}"
            width = f" (non-layer tensors at {facts['source_bytes_per_weight']:.0f} bytes per weight)" if facts["source_bytes_per_weight"] > 2.5 else ""
            pack = f"{size(facts['pack_bytes'])}, {facts['bits_per_weight_all']:.2f} bpw of all{width}"
            needs = f"{size(facts['peak_disk_bytes'])}, {size(facts['largest_memory_bytes'])}"
            pending += f"; source of {size(facts['source_bytes'])}"
        else:
            parameters = linears = pack = needs = "–"
        number = len(entries(family, receipt))
        runs = f"{number} model{'s' if number > 1 else ''}" if number else "not yet"
        rows.append([model, f"`{family}`", parameters, linears, tensor_names(facts, reason), f"{len(cases(family))} cases", runs, pack, needs, pending])
    return table(head, rows)


def table_by_family(models, receipt):
    head = ["family", "forward pass equal to transformers, logits within " + TOLERANCE, "whole pipeline on a small model"]
    families = sorted({facts["family"] for facts in models.values()} | set(FAMILY_OF_UNPLANNED.values()))
    whole_runs = lambda family: "; ".join(map(whole_run, entries(family, receipt))) or "not yet"
    return table(head, [[f"`{family}`", ", ".join(cases(family)), whole_runs(family)] for family in families])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path)
    options = parser.parse_args()
    receipt = BENCHMARKS / "models.json"
    if options.models:
        models = {model: plan_facts(options.models, config, real) for model, config, _, real in MODELS if config}
        receipt.write_text(json.dumps({"command": "make bench-models", "models": models}, indent=1) + "\n")
    models = json.loads(receipt.read_text())["models"]
    families = BENCHMARKS / "families.json"
    runs = json.loads(families.read_text())["models"] if families.exists() else []
    before, rest = PAGE.read_text().split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    PAGE.write_text(before + "\n".join([MARKERS[0], *table_by_model(models, runs), "", "By family:", "", *table_by_family(models, runs), MARKERS[1]]) + after)
    print("docs/models.md")


if __name__ == "__main__":
    main()
