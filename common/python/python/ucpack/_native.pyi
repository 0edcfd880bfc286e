"""The extension module. Its interface is private; use `ucpack`."""

from collections.abc import Callable

class PackError(Exception):
    """A pack cannot be read: its version is not supported, or it is damaged."""

class DamagedPackError(PackError):
    """A file of a pack differs from what the manifest or the format says."""

class Pack:
    def __new__(cls, path: str) -> Pack: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...
    def manifest_json(self) -> str: ...
    def describe(self, source_layout: bool) -> list[tuple[str, str, tuple[int, ...]]]: ...
    def read(self, source_layout: bool, position: int, name: str) -> bytearray: ...
    def statistics(self, name: str) -> str: ...

def verify(
    path: str,
    threads: int,
    expected_fingerprint: str | None,
    progress: Callable[[int, int], object] | None,
) -> str: ...

def diff(
    a: Pack,
    b: Pack,
    layer: int | None,
    decode: bool,
    threads: int,
    progress: Callable[[int, int], object] | None,
) -> str: ...
