"""Decoding a sequence of tensors by several threads, a bounded number of tensors ahead of the consumer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


class ReadAhead(Generic[T]):
    """Calls `read(name)` for the names in order, on `threads` threads, up to `2 · threads` names ahead of the last one asked for.

    At most `2 · threads` results exist besides those that were asked for. Names may be asked for in any order and more than once;
    those that were not prepared are read at once.
    """

    def __init__(self, read: Callable[[str], T], names: Sequence[str], threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads: found {threads}, expected at least 1")
        threads = threads or processors()
        self._read = read
        self._names = names
        self._positions = {name: position for position, name in enumerate(names)}
        self._ahead = 2 * threads
        self._next = 0
        self._prepared: dict[str, Future[T]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ucpack")

    def get(self, name: str) -> T:
        """The result for a name."""
        with self._lock:
            position = self._positions[name]
            future = self._prepared.pop(name, None) or self._pool.submit(self._read, name)
            # A jump forward leaves out what lies between: nobody may ask for it.
            self._next = max(self._next, position + 1)
            for upcoming in self._names[self._next : position + 1 + self._ahead]:
                if len(self._prepared) == self._ahead:
                    break
                self._prepared[upcoming] = self._pool.submit(self._read, upcoming)
                self._next += 1
        return future.result()

    def close(self) -> None:
        """Forgets what was prepared. Reads in progress end in the background."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._prepared.clear()
