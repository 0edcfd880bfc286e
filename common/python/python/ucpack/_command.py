"""The command `ucpack`: the program `uc` of this package. Its stage programs lie beside it, where it looks for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LIBEXEC = Path(__file__).resolve().parent / "libexec"


def main() -> None:
    """Replaces this process by `uc` with the same arguments."""
    program = LIBEXEC / "uc"
    try:
        os.execv(program, ["ucpack", *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"cannot start {program}: {error.strerror}; reinstall ucpack from a wheel that `make wheel` built")


if __name__ == "__main__":
    main()
