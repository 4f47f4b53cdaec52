"""Running scripts with trainers' packages, whose dependencies exclude ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tag_runs import ROOT

# Where `make trainer-packages` puts what has no room beside our own dependencies.
PACKAGES = Path(os.environ.get("CURATE_TRAINER_PACKAGES", ROOT / ".trainers"))


def loaded_by(script: str, package: str, *arguments: object) -> str:
    """The last line that a script of tests/ prints in a process that has a project's packages."""
    folder = PACKAGES / package
    if not folder.is_dir():
        pytest.fail(f"{package} is not in {PACKAGES}: `make trainer-packages` puts it there")
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1]
