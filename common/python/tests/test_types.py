"""The type hints, checked by mypy in its strict mode."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")


def test_the_package_passes_mypy_in_strict_mode(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path]
    checked = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
