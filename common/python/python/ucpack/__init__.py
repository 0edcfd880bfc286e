"""Reads, verifies and loads UltraCompress packs.

    import ucpack

    with ucpack.Pack("runs/tiny/pack") as pack:
        pack.verify().raise_for_findings()
        weights = pack["model.layers.0.self_attn.q_proj.weight"]  # [outputs, inputs], bfloat16

`Pack` needs NumPy and ml_dtypes; `Pack.torch` and `ucpack.transformers` also need torch and transformers, which are imported
when they are used. After `import ucpack`, `AutoModelForCausalLM.from_pretrained` of transformers accepts the folder of a
pack; the environment variable UCPACK_NO_HOOK=1 switches that off.
"""

from ._hook import install as _install
from ._manifest import (
    Calibration,
    Codec,
    ExactEntry,
    FileEntry,
    HubSource,
    LayerEntry,
    LinearEntry,
    Manifest,
    NonLayerEntry,
    Source,
    Tool,
    Totals,
    WindowRequest,
)
from ._native import DamagedPackError, PackError
from ._pack import Pack, TensorInfo, diff
from ._verification import Finding, SpotCheck, VerificationError, VerifyReport, verify

__all__ = [
    "Calibration",
    "Codec",
    "DamagedPackError",
    "ExactEntry",
    "FileEntry",
    "Finding",
    "HubSource",
    "LayerEntry",
    "LinearEntry",
    "Manifest",
    "NonLayerEntry",
    "Pack",
    "PackError",
    "Source",
    "SpotCheck",
    "TensorInfo",
    "Tool",
    "Totals",
    "VerificationError",
    "VerifyReport",
    "WindowRequest",
    "diff",
    "verify",
]

_install()
