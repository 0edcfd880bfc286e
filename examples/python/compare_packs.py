# %% [markdown]
# # Comparing two packs of one model
#
# How do two packs differ, for example one at 5 bits and one at 4? This script draws the bits of each layer, the error of each
# tensor, and the histogram of the levels of one tensor. It runs cell by cell in an editor that knows `# %%`, or as a program:
#
#     pip install ucpack matplotlib
#     ucpack compress MODEL --run five --bpw 5.0
#     ucpack compress MODEL --run four --bpw 4.0
#     python compare_packs.py five/pack four/pack --out comparison.svg

# %%
import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import ucpack

parser = argparse.ArgumentParser(description="Compares two packs of one model and draws how they differ.")
parser.add_argument("a", help="folder of the first pack, the reference of the errors")
parser.add_argument("b", help="folder of the second pack")
parser.add_argument("--tensor", help="the tensor whose levels are drawn (default: the linear that differs most)")
parser.add_argument("--out", default="comparison.svg", help="file of the plot (default: %(default)s)")
arguments = parser.parse_args()

# %% [markdown]
# ## What the manifests say

# %%
a, b = ucpack.Pack(arguments.a), ucpack.Pack(arguments.b)
for label, pack in (("a", a), ("b", b)):
    totals = pack.manifest.totals
    print(f"{label}  {pack.manifest.source.name}  {totals.bits_per_weight_linears} bits per weight, {totals.total_bytes} bytes")

comparison = a.diff(b, progress=lambda done, total: print(f"\rcompared {done / total:4.0%}", end="", flush=True))
print()
for field in comparison["provenance"]:
    print(f"  {field['field']}: {field['a']} -> {field['b']}")
summary = comparison["summary"]
print(f"{summary['identical']} tensors are identical, {summary['differing']} differ")

# %% [markdown]
# ## Bits of each layer and error of each tensor
#
# The error is that of b against a, `|a - b|^2 / |a|^2`. It is not the error against the source, which needs the source:
# `uc inspect PACK --tensor NAME --model MODEL` measures that.

# %%
differing = [tensor for tensor in comparison["tensors"] if tensor["error"] and tensor["error"]["relative_squared_error"]]
if not differing:
    raise SystemExit("the packs hold the same values: there is nothing to draw")
figure, (bits, errors, levels) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")

layers = np.arange(len(a.manifest.layers))
ticks = layers[:: max(1, len(layers) // 16)]
bits.bar(layers - 0.2, [layer.bits_per_weight for layer in a.manifest.layers], 0.4, label="a")
bits.bar(layers + 0.2, [layer.bits_per_weight for layer in b.manifest.layers], 0.4, label="b")
bits.set(title="Bits per weight of each layer", xlabel="layer", ylabel="bits per weight", xticks=ticks)
bits.legend()

roles = sorted({tensor["name"].split(".", 3)[-1] for tensor in differing})
for role in roles:
    points = [tensor for tensor in differing if tensor["name"].split(".", 3)[-1] == role]
    errors.semilogy(
        [tensor["layer"] for tensor in points],
        [tensor["error"]["relative_squared_error"] for tensor in points],
        "o",
        label=role.removesuffix(".weight"),
    )
errors.set(title="Error of b against a", xlabel="layer", ylabel="relative squared error", xticks=ticks)
if len(roles) <= 12:
    errors.legend(fontsize="small")

# %% [markdown]
# ## Levels of one tensor
#
# A level is the integer that a weight's step is multiplied by. Fewer bits make larger steps and thus fewer levels.

# %%
worst = max(differing, key=lambda tensor: tensor["error"]["relative_squared_error"])["name"]
name = arguments.tensor or worst
for label, pack in (("a", a), ("b", b)):
    coded = pack.statistics(name)["storage"].get("coded")
    if coded is None:
        raise SystemExit(f"{name} is stored exactly and has no levels; choose a linear with --tensor")
    counts = np.array(coded["levels"]["counts"])
    share = counts / counts.sum()
    levels.step(coded["levels"]["values"], share, where="mid", label=f"{label}: {coded['level_entropy']:.2f} bits of entropy")
    print(f"{label}  {name}: {len(counts)} levels, {coded['bits_per_weight']:.3f} bits per weight")
levels.set(title=f"Levels of {name}", xlabel="level", ylabel="share of the weights", yscale="log")
levels.legend()

# %%
figure.savefig(arguments.out)
a.close()
b.close()
print(arguments.out)
