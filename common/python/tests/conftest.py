"""Packs for the tests.

`make test-full` passes UCPACK_TEST_PACKS, a folder with NAME/model and NAME/pack for small models of some families. Without it
only the embedded model is used, which the command of the package compresses here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "examples/tiny-stories"
QUICK = ["calibration.windows=6", "calibration.length=128", "evaluation.windows=3", "evaluation.length=128"]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def ucpack_command(*arguments):
    """Runs the command of the package."""
    command = [sys.executable, "-m", "ucpack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def compress(model, run, bpw="5.0"):
    settings = [argument for setting in QUICK for argument in ("--set", setting)]
    made = ucpack_command("compress", model, "--run", run, "--bpw", bpw, "--no-eval", *settings)
    assert made.returncode == 0, made.stderr
    return Path(run) / "pack"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A pack of the embedded model at 5 bits."""
    return compress(TINY, tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def tiny_4(tmp_path_factory):
    """A pack of the embedded model at 4 bits."""
    return compress(TINY, tmp_path_factory.mktemp("tiny_4") / "run", "4.0")


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the pack, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def family():
    """The folders of source and pack of a family."""
    folder = os.environ.get("UCPACK_TEST_PACKS")

    def find(name):
        if not folder:
            pytest.skip("UCPACK_TEST_PACKS names no folder with packs of other families; `make test-full` makes one")
        return Path(folder) / name / "model", Path(folder) / name / "pack"

    return find
