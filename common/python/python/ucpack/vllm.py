"""The vLLM plugin: serves packs with `vllm serve PACK --load-format ucpack`.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). The loader decodes the pack while the model
is loaded and hands vLLM the tensors of the source checkpoint, as if they came from safetensors files; vLLM divides them among
devices as usual. The model runs in bfloat16, so it takes the memory of the source. `--quantization ucpack` is optional: it makes
vLLM refuse a folder that is not a pack.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: The name of the load format and of the quantization method.
METHOD = "ucpack"
_registered = False


def register() -> None:
    """Registers the loader and the quantization config in vLLM. May be called any number of times."""
    global _registered
    if _registered:
        return
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.model_loader import register_model_loader

    # The classes are made now and not with this module: their bases in vLLM take seconds to import.
    register_model_loader(METHOD)(_loader_class())
    register_quantization_config(METHOD)(_config_class())
    _registered = True


def _loader_class() -> type[Any]:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from ._pack import Pack

    class PackModelLoader(DefaultModelLoader):  # type: ignore[misc]
        """Decodes a local pack. Of `model_loader_extra_config` it reads `num_threads` (default: one for each processor)."""

        def download_model(self, model_config: Any) -> None:
            """Checks that the model is a local pack: packs are downloaded with a client of the Hub."""
            Pack(model_config.model).close()

        def get_all_weights(self, model_config: Any, model: Any) -> Generator[tuple[str, torch.Tensor], None, None]:
            """Name and tensor of everything in the source checkpoint, on the CPU; linears are bfloat16."""
            # The caller measures from here.
            self.counter_before_loading_weights = time.perf_counter()
            threads = self.load_config.model_loader_extra_config.get("num_threads")
            with Pack(model_config.model) as pack:
                yield from pack.stream(framework="pt", threads=threads)

    return PackModelLoader


def _config_class() -> type[Any]:
    import torch
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    class PackQuantizationConfig(QuantizationConfig):  # type: ignore[misc]
        """The manifest of a pack as vLLM sees it. Layers are not quantized: the loader has decoded their weights."""

        def __init__(self, bits_per_weight: str) -> None:
            super().__init__()
            self.bits_per_weight = bits_per_weight

        def get_name(self) -> str:
            return METHOD

        def get_supported_act_dtypes(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16, torch.float32]

        @classmethod
        def get_min_capability(cls) -> int:
            # No kernel of its own: whatever runs an unquantized model.
            return 0

        @staticmethod
        def get_config_filenames() -> list[str]:
            return ["manifest.json"]

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> PackQuantizationConfig:
            if "pack_version" not in config:
                found = ", ".join(sorted(config)[:8]) or "no field"
                raise ValueError(f"manifest.json: found {found}, expected the manifest of a pack with pack_version")
            return cls(config["totals"]["bits_per_weight_linears"])

        def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    return PackQuantizationConfig
