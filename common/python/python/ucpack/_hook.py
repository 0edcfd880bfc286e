"""Lets transformers load packs, without importing transformers.

`import ucpack` must be quick, and transformers is not. So this module waits until somebody imports `transformers.modeling_utils`
and then calls `ucpack.transformers.install`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

TARGET = "transformers.modeling_utils"


class _Loader(importlib.abc.Loader):
    """The loader of the target, and what follows when the target has been loaded."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From now on the module is loaded and reloaded by its own loader.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module("ucpack.transformers").install()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: asks the other finders for the target and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Installs the hook once, unless UCPACK_NO_HOOK is set to something else than 0."""
    if os.environ.get("UCPACK_NO_HOOK", "0") not in ("", "0"):
        return
    if TARGET in sys.modules:
        importlib.import_module("ucpack.transformers").install()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
