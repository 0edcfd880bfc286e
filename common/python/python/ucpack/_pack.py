"""The class `Pack`."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from . import _dtypes, _manifest, _native, _verification
from ._streaming import ReadAhead

if TYPE_CHECKING:
    from torch import Tensor

    Array = np.ndarray[Any, np.dtype[Any]]

Framework = Literal["np", "pt"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without decoding it.

    `dtype` is the name in the pack, for example "BF16". `layer` is None outside the layers. `bits` (of this tensor alone) and
    `rank` (of its low-rank overlay) are those of a linear, None for exact tensors. `sha256` is the digest of the values,
    row-major and little-endian, `source_sha256` that of the same tensor in the source, both as the manifest records them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None
    kind: Literal["linear", "exact"]
    sha256: str
    source_sha256: str
    bits: int | None = None
    rank: int | None = None


def find_manifest(path: str | os.PathLike[str]) -> Path:
    """The folder of a pack, or an error that says what the path is instead."""
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, expected the folder of a pack", str(folder))
    if not (folder / "manifest.json").exists():
        hint = f"; {folder / 'pack'} is one" if (folder / "pack" / "manifest.json").exists() else ""
        raise FileNotFoundError(errno.ENOENT, f"it is not a pack: it holds no manifest.json{hint}", str(folder))
    return folder


class Pack(Mapping[str, "Array"]):
    """An opened pack: a mapping from tensor names to NumPy arrays, which are decoded when they are asked for.

    Opening reads the manifest and compares it with its digest. Every tensor is compared with its digest in the manifest when it
    is decoded, so that a damaged value is never returned; `verify` checks the whole pack. Arrays own their memory and outlive the
    pack. Decoding releases the interpreter's lock: threads may share a pack.

    Names and shapes are those of the pack, in which every linear is `[outputs, inputs]`; `source_layout=True` gives those of the
    source checkpoint, in which some families store linears transposed (GPT-2) or all experts of a layer in one tensor.

    Raises FileNotFoundError or NotADirectoryError if `path` is no pack, `PackError` for another format version,
    `DamagedPackError` if the manifest is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = find_manifest(path)
        self._native = _native.Pack(str(self.path))
        self._manifest_json = self._native.manifest_json()
        self._fingerprint = self._native.fingerprint
        self._layouts = [self._native.describe(False)]
        self._positions = [{name: i for i, (name, _, _) in enumerate(self._layouts[0])}]

    # -- lifetime

    def close(self) -> None:
        """Closes the files. Decoding raises ValueError from now on; what was decoded stays valid."""
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._native.closed

    def __enter__(self) -> Pack:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.path}: the pack is closed; open it again with Pack(path)")

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<ucpack.Pack {str(self.path)!r}, {len(self)} tensors, {self.fingerprint[:16]}…{state}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Packs are equal if they are the same object; compare fingerprints to compare contents."""
        return self is other

    # -- what the manifest says

    @cached_property
    def manifest(self) -> _manifest.Manifest:
        """Content and origin of the pack."""
        return _manifest.parse(json.loads(self._manifest_json))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of manifest.json, which identifies the whole pack."""
        return self._fingerprint

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        infos = []
        for layer in self.manifest.layers:
            for linear in layer.linears:
                infos.append(
                    TensorInfo(
                        name=layer.prefix + linear.name,
                        shape=linear.shape,
                        dtype="BF16",
                        layer=layer.index,
                        kind="linear",
                        sha256=linear.reconstructed_sha256,
                        source_sha256=linear.source_sha256,
                        bits=linear.bits,
                        rank=linear.rank,
                    )
                )
            infos += [_exact_info(layer.prefix, exact, layer.index) for exact in layer.exact]
        infos += [_exact_info("", exact, None) for exact in self.manifest.non_layer.tensors]
        return {info.name: info for info in infos}

    def info(self, name: str) -> TensorInfo:
        """What the manifest says of a tensor, without decoding it. Raises KeyError for an unknown name."""
        if name not in self._infos:
            raise self._unknown(name, 0)
        return self._infos[name]

    # -- mapping

    def __len__(self) -> int:
        return len(self._layouts[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions[0])

    def __contains__(self, name: object) -> bool:
        return name in self._positions[0]

    def __getitem__(self, name: str) -> Array:
        return self.numpy(name)

    def names(self, source_layout: bool = False) -> list[str]:
        """Names of all tensors, in the order of the pack."""
        return [name for name, _, _ in self._layout(source_layout)]

    # -- decoding

    def numpy(self, name: str, *, source_layout: bool = False) -> Array:
        """Decodes a tensor: an array of its own dtype (linears: ml_dtypes.bfloat16), writable, that owns its memory.

        Raises KeyError for an unknown name, `DamagedPackError` if the values are not those that the manifest records,
        FileNotFoundError if the layer's file is absent, ValueError if the pack is closed.
        """
        return _dtypes.to_numpy(*self._read(name, source_layout))

    def torch(self, name: str, *, source_layout: bool = False) -> Tensor:
        """As `numpy`, as a tensor of torch on the CPU (linears: torch.bfloat16), without a copy."""
        _dtypes.import_torch()
        return _dtypes.to_torch(*self._read(name, source_layout))

    @overload
    def tensor(
        self, name: str, dtype: object | None = None, framework: Literal["np"] = "np", *, source_layout: bool = False
    ) -> Array: ...
    @overload
    def tensor(
        self, name: str, dtype: object | None = None, *, framework: Literal["pt"], source_layout: bool = False
    ) -> Tensor: ...
    def tensor(
        self, name: str, dtype: object | None = None, framework: Framework = "np", *, source_layout: bool = False
    ) -> Array | Tensor:
        """As `numpy` or `torch`, converted to `dtype`: a type, or the name of one, that holds every value of the tensor.

        Raises TypeError if `dtype` is no element type, ValueError for one that would round or for an unknown framework.
        """
        _check_framework(framework)
        _, stored, _ = self._entry(name, source_layout)
        target = _dtypes.checked_target(name, stored, dtype)
        if framework == "np":
            return self.numpy(name, source_layout=source_layout).astype(_dtypes.NUMPY[target], copy=False)
        torch = _dtypes.import_torch()
        converted: Tensor = self.torch(name, source_layout=source_layout).to(
            getattr(torch, _dtypes.TORCH[target])
        )
        return converted

    def stream(
        self,
        names: Iterable[str] | None = None,
        *,
        framework: Framework = "np",
        source_layout: bool = True,
        threads: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Decodes tensors (None: all) and yields them with their names, in order.

        `threads` threads (None: one for each processor) decode ahead of the consumer; at most `2 · threads + 1` tensors are in
        memory that the consumer has not taken.
        """
        _check_framework(framework)
        self._check_open()
        wanted = self.names(source_layout) if names is None else list(names)
        for name in wanted:
            self._entry(name, source_layout)
        convert: Callable[..., Any] = _dtypes.to_numpy if framework == "np" else _dtypes.to_torch
        return self._stream(wanted, convert, source_layout, threads)

    def _stream(
        self, names: list[str], convert: Callable[..., Any], source_layout: bool, threads: int | None
    ) -> Iterator[tuple[str, Any]]:
        ahead = ReadAhead(lambda name: self._read(name, source_layout), names, threads)
        try:
            for name in names:
                yield name, convert(*ahead.get(name))
        finally:
            ahead.close()

    def state_dict(
        self,
        framework: Framework = "pt",
        names: Iterable[str] | None = None,
        *,
        source_layout: bool = True,
        threads: int | None = None,
    ) -> dict[str, Any]:
        """Decodes tensors (None: all) into a dictionary, as `stream` does.

        With `source_layout` names and shapes are those of the source checkpoint, so that the dictionary can be given to the model
        class that loads it. Takes 2 bytes for each weight of the linears, besides the exact tensors in their own dtypes.
        """
        return dict(self.stream(names, framework=framework, source_layout=source_layout, threads=threads))

    # -- checking

    def verify(
        self,
        *,
        progress: Callable[[int, int], object] | None = None,
        threads: int | None = None,
        expected_fingerprint: str | None = None,
    ) -> _verification.VerifyReport:
        """As `ucpack.verify` for this pack's folder."""
        self._check_open()
        return _verification.verify(
            self.path, progress=progress, threads=threads, expected_fingerprint=expected_fingerprint
        )

    # -- measuring

    def statistics(self, name: str) -> dict[str, Any]:
        """What a tensor looks like; `.weight` may be left out of the name.

        "name", "layer", "file", "shape", "parameters", "sha256"; "values": minimum, maximum, mean, standard deviation, kurtosis,
        zeros, outliers and quantiles of its values; "storage": {"exact": dtype} or, for a linear, {"coded": {...}} with bits, rank,
        steps, the histogram of its levels ("values" and "counts") and their entropy in bits for each weight.
        """
        self._check_open()
        measured: dict[str, Any] = json.loads(self._native.statistics(name))
        return measured

    def diff(
        self,
        other: Pack,
        *,
        layer: int | None = None,
        decode: bool = True,
        threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> dict[str, Any]:
        """Compares this pack with another one of the same model, tensor by tensor; of one layer, if `layer` is given.

        "a", "b": fingerprints and totals of both; "identical"; "provenance": the fields of the manifests that differ; "summary":
        numbers of tensors by outcome and the error of all linears together; "tensors": for each the outcome, bits, rank and step
        in both packs, and with `decode` the error of the other pack's values against this pack's ("relative_squared_error",
        "signal_to_noise_db", …). Without `decode` only manifests are compared. `progress(done, total)` counts bytes of weights.

        Raises ValueError for packs of different models, KeyError for a layer that does not exist. After Ctrl-C the comparison ends
        in the background.
        """
        self._check_open()
        other._check_open()
        if threads is not None and threads < 1:
            raise ValueError(f"threads: found {threads}, expected at least 1")
        compared: dict[str, Any] = json.loads(
            _native.diff(self._native, other._native, layer, decode, threads or 0, progress)
        )
        return compared

    # -- internals

    def _layout(self, source_layout: bool) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of all tensors in one of the arrangements."""
        if source_layout and len(self._layouts) == 1:
            tensors = self._native.describe(True)
            self._positions.append({name: i for i, (name, _, _) in enumerate(tensors)})
            self._layouts.append(tensors)
        return self._layouts[int(source_layout)]

    def _entry(self, name: str, source_layout: bool) -> tuple[int, str, tuple[int, ...]]:
        """Position, dtype and shape of a tensor."""
        tensors = self._layout(source_layout)
        position = self._positions[int(source_layout)].get(name)
        if position is None:
            raise self._unknown(name, int(source_layout))
        _, dtype, shape = tensors[position]
        return position, dtype, shape

    def _read(self, name: str, source_layout: bool) -> tuple[bytearray, str, tuple[int, ...]]:
        """Values (row-major, little-endian), dtype and shape of a tensor."""
        self._check_open()
        position, dtype, shape = self._entry(name, source_layout)
        return self._native.read(source_layout, position, name), dtype, shape

    def _unknown(self, name: object, layout: int) -> KeyError:
        names = self._positions[layout]
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.75)
        hint = f"; near names: {', '.join(near)}" if near else "; list(pack) has all names"
        return KeyError(f"{self.path}: no tensor is named {name!r}{hint}")


def _exact_info(prefix: str, exact: _manifest.ExactEntry, layer: int | None) -> TensorInfo:
    return TensorInfo(
        name=prefix + exact.name,
        shape=exact.shape,
        dtype=exact.dtype,
        layer=layer,
        kind="exact",
        sha256=exact.sha256,
        source_sha256=exact.sha256,
    )


def _check_framework(framework: object) -> None:
    if framework not in ("np", "pt"):
        raise ValueError(f"framework: found {framework!r}, expected 'np' or 'pt'")
    if framework == "pt":
        _dtypes.import_torch()


def diff(a: Pack | str | os.PathLike[str], b: Pack | str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """As `Pack.diff`, for packs or their folders."""
    with contextlib.ExitStack() as stack:
        first, second = (pack if isinstance(pack, Pack) else stack.enter_context(Pack(pack)) for pack in (a, b))
        return first.diff(second, **options)
