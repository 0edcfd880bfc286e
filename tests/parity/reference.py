"""Writes the model of a case and runs it with transformers, in float32 and with its simplest (eager) implementations."""
import json
import math
import pathlib
import re
import tempfile
import zlib

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

VERSION = int(transformers.__version__.split(".")[0])


def generator(*words):
    return torch.Generator().manual_seed(zlib.crc32("/".join(words).encode()))


def gain(noise):
    return 1 + 0.2 * noise


def offset_gain(noise):
    """For the norms of Gemma, which multiply by one plus the weight."""
    return 0.2 * noise


def decay(noise):
    """log(-A): A = -1, -2, ... over the states of a channel (mamba), or one value of -A between 1 and 16 per head (mamba2)."""
    if noise.dim() == 1:
        return (1 + 15 * torch.special.ndtr(noise)).log()
    return torch.arange(1, noise.shape[1] + 1).log() + 0.1 * noise


def time_step_bias(noise):
    """Biases with a softplus between 0.01 and 0.5."""
    step = (math.log(0.01) + torch.special.ndtr(noise) * math.log(50)).exp()
    return step + (-torch.expm1(-step)).log()


# The first pattern that matches a tensor's name determines how its values are derived from standard normal noise.
VALUES = (
    (r"A_log$", decay),
    (r"dt_proj\.bias$|dt_bias$", time_step_bias),
    (r"\.D$", gain),
    (r"(norm|norm_f|ln_.)\.weight$", gain),
    (r"e_score_correction_bias$", lambda noise: 0.2 * noise),
    (r"bias$", lambda noise: 0.2 * noise),
    # Large enough that rounding never changes the choice of experts.
    (r"(gate|router|router\.layer)\.weight$", lambda noise: 0.6 * noise),
    (r"conv1d\.weight$", lambda noise: 0.4 * noise),
    (r"", lambda noise: 0.25 * noise),
)


def values(name, shape, case):
    noise = torch.randn(shape, generator=generator(case.seed, name))
    rule = next(rule for pattern, rule in VALUES if re.search(pattern, name))
    if rule is gain and case.config["model_type"].startswith("gemma"):
        rule = offset_gain
    return rule(noise)


def published_tensors(config):
    """Names and shapes of the tensors that transformers writes for such a model: those of published checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        with safe_open(pathlib.Path(folder) / "model.safetensors", "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def stacked(tensors):
    """Stacks the experts of a layer into two tensors, as transformers 5 does: gate_up_proj [E, 2 ffn, hidden] and
    down_proj [E, hidden, ffn]."""
    parts = {"gate_proj": 0, "up_proj": 1, "down_proj": 2, "w1": 0, "w3": 1, "w2": 2}
    others, experts = {}, {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match:
            experts.setdefault(match[1], {})[int(match[2]), parts[match[3]]] = tensor
        else:
            others[name.replace("block_sparse_moe", "mlp")] = tensor
    for prefix, tensors in experts.items():
        prefix = prefix.replace("block_sparse_moe", "mlp")
        count = len(tensors) // 3
        others[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat([tensors[i, 0], tensors[i, 1]]) for i in range(count)])
        others[f"{prefix}.down_proj"] = torch.stack([tensors[i, 2] for i in range(count)])
    return others


LAYOUTS = {
    "published": lambda tensors: tensors,
    "stacked": stacked,
    # The first published files of mamba; transformers no longer reads them.
    "embedding": lambda tensors: {name.replace("embeddings", "embedding"): t for name, t in tensors.items()},
}

FORMER_NAMES = {r"^backbone\.embedding\.": "backbone.embeddings."}


def write_model(case, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=2, sort_keys=True) + "\n")
    shapes = published_tensors(AutoConfig.from_pretrained(folder))
    dtype = getattr(torch, case.config.get("torch_dtype", case.config.get("dtype", "float32")))
    # The routing correction bias is float32 in all published files.
    tensors = {
        name: values(name, shape, case).to(torch.float32 if name.endswith("correction_bias") else dtype)
        for name, shape in shapes.items()
    }
    tensors = {name: tensor.contiguous() for name, tensor in LAYOUTS[case.layout](tensors).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tokens(case, length):
    return torch.randint(0, case.config["vocab_size"], (length,), generator=generator(case.seed, "ids"))


def load(folder):
    eager = {"experts_implementation": "eager"} if VERSION >= 5 else {}
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True,
        key_mapping=FORMER_NAMES, **eager)
    wrong = {key: value for key, value in report.items() if value}
    if wrong:
        raise SystemExit(f"{folder}: {wrong}")
    return model.eval()


def layers(model):
    base = getattr(model, "model", model.base_model)
    return base.h if hasattr(base, "h") else base.layers


def run(model, ids):
    """Logits [T, vocab], and the residual stream after each layer, before the final norm, [layers, T, hidden]."""
    hidden = []

    def record(_module, _inputs, output):
        hidden.append((output[0] if isinstance(output, tuple) else output)[0].detach().clone())

    hooks = [layer.register_forward_hook(record) for layer in layers(model)]
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0].float()
    for hook in hooks:
        hook.remove()
    return {"logits": logits.contiguous(), "hidden": torch.stack(hidden).contiguous()}


def difference(actual, expected):
    """The largest absolute difference, relative to the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def sensitivity(model, ids, expected):
    """How much the outputs change when the weights change by about the rounding error of float32: little, unless a choice of
    experts changes with them."""
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data *= 1 + 1e-6 * torch.randn(parameter.shape, generator=noise)
    return max(difference(value, expected[key]) for key, value in run(model, ids).items())


def write_case(case, root):
    """Writes the golden files of a case; returns the largest logit and the sensitivity of the outputs to rounding."""
    folder = root / case.name
    write_model(case, folder)
    ids = tokens(case, case.length)
    model = load(folder)
    outputs = run(model, ids)
    save_file({"ids": ids.to(torch.int32)} | outputs, folder / "golden.safetensors")
    return float(outputs["logits"].abs().max()), sensitivity(model, ids, outputs)


def check_case(folder):
    """The largest difference between the stored outputs and those of the installed transformers, by name."""
    stored = load_file(folder / "golden.safetensors")
    actual = run(load(folder), stored["ids"].long())
    return {key: difference(value, stored[key]) for key, value in actual.items()}
