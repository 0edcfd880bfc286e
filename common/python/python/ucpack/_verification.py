"""Verification of a pack: every hash recomputed, every difference listed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from . import _native


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between a pack and its manifest. `severity` is "error" or "warning"."""

    severity: str
    file: str
    tensor: str | None
    message: str

    def __str__(self) -> str:
        tensor = f" {self.tensor}" if self.tensor else ""
        return f"{self.severity}: {self.file}{tensor}: {self.message}"


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """The digest of the first linear, to compare with a report of another machine by eye."""

    tensor: str
    sha256: str
    matches: bool


class VerificationError(_native.DamagedPackError):
    """A pack did not pass its verification; `report` has the findings."""

    def __init__(self, report: VerifyReport) -> None:
        errors = [finding for finding in report.findings if finding.severity == "error"]
        more = len(errors) - 1 + report.findings_omitted
        suffix = f" (and {more} more findings)" if more > 0 else ""
        super().__init__(f"the pack does not match its manifest: {errors[0] if errors else report.verdict}{suffix}")
        self.report = report


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of a verification. Fields that come from the manifest are None if it cannot be read.

    `findings` are in the order of the manifest, at most 1000; `findings_omitted` counts the others. `bytes_checked` counts
    the bytes of the files whose SHA-256 was recomputed.
    """

    verdict: str
    findings: tuple[Finding, ...]
    findings_omitted: int
    fingerprint: str | None
    expected_fingerprint: str | None
    pack_version: int | None
    codec_name: str | None
    codec_source: str | None
    n_layers: int
    bits_per_weight_linears: str | None
    bits_per_weight_all: str | None
    spot_check: SpotCheck | None
    layer0_linears: int
    layer0_exact: int
    non_layer_present: bool
    tensors_checked: int
    bytes_checked: int

    @property
    def passed(self) -> bool:
        """Whether the verdict is "PASS": no finding is an error."""
        return self.verdict == "PASS"

    def raise_for_findings(self) -> None:
        """Raises `VerificationError` unless the pack passed. Warnings alone raise nothing."""
        if not self.passed:
            raise VerificationError(self)


def verify(
    path: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] | None = None,
    threads: int | None = None,
    expected_fingerprint: str | None = None,
) -> VerifyReport:
    """Recomputes every hash of the pack in the folder `path`, also if its manifest cannot be read.

    `progress(done, total)` is called on the calling thread with bytes, about fifty times a second. `threads` is the number of
    compute threads (None: one for each processor); `expected_fingerprint` the SHA-256 that the manifest must have: of another
    pack nothing is checked. A damaged pack raises nothing: see `VerifyReport.verdict`. Ctrl-C ends the verification.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads: found {threads}, expected at least 1")
    report = json.loads(_native.verify(os.fspath(path), threads or 0, expected_fingerprint, progress))
    report["findings"] = tuple(Finding(**finding) for finding in report["findings"])
    spot_check = report["spot_check"]
    report["spot_check"] = SpotCheck(**spot_check) if spot_check else None
    return VerifyReport(**report)
