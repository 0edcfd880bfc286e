"""The manifest as frozen dataclasses. `docs/pack-format.md` defines the fields; sizes are bytes, digests 64 hexadecimal digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """The program that wrote the pack, and the release that last changed the bytes it writes."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Codec:
    """The codec of the linears; `settings` are those that decide the bytes of the pack, by their full names."""

    name: str
    source: str
    format: int
    settings: dict[str, str]
    arithmetic: str | None = None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hub at a commit."""

    repository: str
    commit: str


@dataclass(frozen=True, slots=True)
class Source:
    """The model that was compressed; `dtypes` counts its tensors by dtype."""

    name: str
    config_sha256: str
    files: tuple[FileEntry, ...]
    dtypes: dict[str, int]
    hub: HubSource | None = None


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """The windows that were asked for, and what of the text was read."""

    windows: int
    length: int
    text_bytes: int
    excerpts: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration text: `windows` windows of `length` tokens."""

    files: tuple[FileEntry, ...]
    windows: int
    length: int
    seed: int
    windows_sha256: str
    tokens: int
    request: WindowRequest | None = None


@dataclass(frozen=True, slots=True)
class LinearEntry:
    """A coded matrix `[outputs, inputs]`. `name` is relative to the layer's prefix; `bits` are those of this matrix alone."""

    name: str
    shape: tuple[int, int]
    source_sha256: str
    reconstructed_sha256: str
    bits: int
    rank: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of this matrix alone, for each of its weights."""
        return self.bits / (self.shape[0] * self.shape[1])


@dataclass(frozen=True, slots=True)
class ExactEntry:
    """A tensor that is stored unchanged. `name` is relative to the prefix if it is a layer's."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """A layer file and its tensors."""

    index: int
    file: str
    size: int
    sha256: str
    prefix: str
    linears: tuple[LinearEntry, ...]
    exact: tuple[ExactEntry, ...]

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file for each weight of its linears."""
        return 8 * self.size / sum(linear.shape[0] * linear.shape[1] for linear in self.linears)


@dataclass(frozen=True, slots=True)
class NonLayerEntry:
    """The file of the tensors outside the layers."""

    file: str
    size: int
    sha256: str
    tensors: tuple[ExactEntry, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the pack. The ratios are decimal strings, as the manifest has them."""

    linear_parameters: int
    linear_bits: int
    bits_per_weight_linears: str
    total_parameters: int
    total_bytes: int
    bits_per_weight_all: str
    source_bytes: int
    compression_ratio: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content and origin of a pack."""

    pack_version: int
    tool: Tool
    codec: Codec
    source: Source
    calibration: Calibration
    layers: tuple[LayerEntry, ...]
    non_layer: NonLayerEntry
    files: tuple[FileEntry, ...]
    totals: Totals


def _files(entries: list[dict[str, Any]]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(**entry) for entry in entries)


def _exact(entries: list[dict[str, Any]]) -> tuple[ExactEntry, ...]:
    return tuple(ExactEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries)


def _layer(entry: dict[str, Any]) -> LayerEntry:
    linears = tuple(LinearEntry(**{**linear, "shape": tuple(linear["shape"])}) for linear in entry.pop("linears"))
    return LayerEntry(linears=linears, exact=_exact(entry.pop("extras")), **entry)


def parse(manifest: dict[str, Any]) -> Manifest:
    """The dataclasses of a parsed manifest.json, whose fields the extension module has checked."""
    source, calibration, scaffold = manifest["source"], manifest["calibration"], manifest["scaffold"]
    hub, request = source.get("hub"), calibration.get("request")
    return Manifest(
        pack_version=manifest["pack_version"],
        tool=Tool(**manifest["tool"]),
        codec=Codec(**manifest["codec"]),
        source=Source(**{**source, "files": _files(source["files"]), "hub": HubSource(**hub) if hub else None}),
        calibration=Calibration(
            **{
                **calibration,
                "files": _files(calibration["files"]),
                "request": WindowRequest(**request) if request else None,
            }
        ),
        layers=tuple(_layer(layer) for layer in manifest["layers"]),
        non_layer=NonLayerEntry(**{**scaffold, "tensors": _exact(scaffold["tensors"])}),
        files=_files(manifest["files"]),
        totals=Totals(**manifest["totals"]),
    )
