"""Loads packs into the models of transformers.

`install`, which `import ucpack` arranges, registers `PackConfig` and `PackQuantizer` through transformers' public hooks and
extends `PreTrainedModel.from_pretrained`, so that every `AutoModel….from_pretrained` accepts the folder of a pack. The extension
is needed because transformers looks for files of weights before it asks any hook; it calls the original with the documented
arguments `config`, `state_dict` and `quantization_config`. `from_pretrained` below does the same without the extension.

A pack is decoded into an ordinary model, which needs as much memory as the source in the same dtype.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from . import _dtypes
from ._pack import Pack
from ._streaming import ReadAhead

if TYPE_CHECKING:
    import torch

#: The name of packs in transformers.
METHOD = "ucpack"


class PackConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How a pack is loaded: `from_pretrained(PACK, quantization_config=PackConfig(...))`.

    `fingerprint` is the SHA-256 of the manifest that the pack must have; with `verify` the whole pack is verified first (every
    tensor is compared with its digest in any case); `threads` decode (None: one for each processor).
    """

    def __init__(
        self, fingerprint: str | None = None, verify: bool = False, threads: int | None = None, **_: object
    ) -> None:
        self.quant_method = METHOD
        self.fingerprint = fingerprint
        self.verify = verify
        self.threads = threads


class PackQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers asks about a model that comes from a pack: it is an ordinary model once it is loaded.

    With this quantizer transformers takes the tensors one after another (see `has_on_the_fly_quantization` there), so that no
    more than the read-ahead is decoded besides the model itself.
    """

    def postprocess_model(self, model: Any, **kwargs: Any) -> Any:
        """Takes the marks of a quantized model away: its weights are plain tensors that can be saved, cast and trained."""
        self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class PackTensor:
    """A tensor that is decoded when it is indexed: what transformers expects of a slice of a safetensors file."""

    def __init__(self, ahead: ReadAhead[Any], name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._ahead = ahead
        self._name = name
        self._dtype = dtype
        self.shape = shape

    def __getitem__(self, index: Any) -> torch.Tensor:
        return _dtypes.to_torch(*self._ahead.get(self._name))[index]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self._dtype

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(_dtypes.import_torch(), _dtypes.TORCH[self._dtype])
        return dtype

    def is_floating_point(self) -> bool:
        return bool(self.dtype.is_floating_point)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers as numbers: transformers takes tensors in this order."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def is_pack(path: object) -> bool:
    """Whether `path` is the folder of a pack: it holds manifest.json and its digest."""
    if not isinstance(path, str | os.PathLike):
        return False
    folder = Path(path)
    return (folder / "manifest.json").is_file() and (folder / "manifest.sha256").is_file()


def _generation_config(path: str) -> transformers.GenerationConfig:
    """The generation settings of the source: its generation_config.json or, without one, those in config.json, as
    transformers itself takes them."""
    if (Path(path) / "generation_config.json").is_file():
        return transformers.GenerationConfig.from_pretrained(path)
    return transformers.GenerationConfig.from_pretrained(path, config_file_name="config.json", _from_model_config=True)


def _load(original: Callable[..., Any], path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
    """Calls the original `from_pretrained` of a model class with the pack's tensors as its state dict."""
    path = os.fspath(path)
    options = kwargs.pop("quantization_config", None) or PackConfig()
    if isinstance(options, dict):
        options = PackConfig(**options)
    if not isinstance(options, PackConfig):
        raise TypeError(
            f"quantization_config: found {type(options).__name__}, expected ucpack.transformers.PackConfig: {path} is a pack; "
            "to quantize its weights anew, save the loaded model and load that"
        )
    kwargs.setdefault("config", path)
    if kwargs.get("generation_config") is None:
        kwargs["generation_config"] = _generation_config(path)
    with Pack(path) as pack:
        if options.fingerprint is not None and options.fingerprint.lower() != pack.fingerprint:
            raise ValueError(f"{path}: found fingerprint {pack.fingerprint}, expected {options.fingerprint}")
        if options.verify:
            pack.verify(threads=options.threads).raise_for_findings()
        names = sorted(pack.names(source_layout=True), key=_natural)
        ahead = ReadAhead(lambda name: pack._read(name, True), names, options.threads)
        try:
            tensors = {}
            for name in names:
                _, dtype, shape = pack._entry(name, True)
                tensors[name] = PackTensor(ahead, name, dtype, shape)
            loaded = original(None, *args, state_dict=tensors, quantization_config=options, **kwargs)
        finally:
            ahead.close()
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = path
    return loaded


def from_pretrained(
    path: str | os.PathLike[str], *args: Any, auto_class: Any = transformers.AutoModelForCausalLM, **kwargs: Any
) -> Any:
    """Loads the pack in the folder `path` as `auto_class.from_pretrained` would load its source; `kwargs` are those of
    `from_pretrained`. Needs no extension of transformers.

    The dtype is by default that of the configuration (bfloat16 or float32 as in the source); `device_map` places each tensor as
    it is decoded.
    """
    config = kwargs.pop("config", None)
    if config is None:
        config = transformers.AutoConfig.from_pretrained(os.fspath(path))
    model_class = auto_class._model_mapping[type(config)]
    if isinstance(model_class, list | tuple):
        by_name = {candidate.__name__: candidate for candidate in model_class}
        model_class = by_name.get((config.architectures or [""])[0], model_class[0])
    original = getattr(model_class.from_pretrained, "_ucpack_original", None)
    call = model_class.from_pretrained if original is None else functools.partial(original, model_class)
    return _load(call, path, *args, config=config, **kwargs)


def register() -> None:
    """Registers `PackConfig` and `PackQuantizer` in transformers, once."""
    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(METHOD)(PackConfig)
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(METHOD)(PackQuantizer)


def install() -> None:
    """Registers the classes and extends `PreTrainedModel.from_pretrained`, once."""
    register()
    model_class = transformers.modeling_utils.PreTrainedModel
    original = inspect.getattr_static(model_class, "from_pretrained").__func__
    if hasattr(original, "_ucpack_original"):
        return

    @functools.wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        is_plain = not any(kwargs.get(name) for name in ("subfolder", "gguf_file", "state_dict"))
        if is_plain and is_pack(pretrained_model_name_or_path):
            return _load(functools.partial(original, cls), pretrained_model_name_or_path, *args, **kwargs)
        return original(cls, pretrained_model_name_or_path, *args, **kwargs)

    from_pretrained._ucpack_original = original  # type: ignore[attr-defined]
    model_class.from_pretrained = classmethod(from_pretrained)


register()
