"""The checks for a GPU run on a CPU as far as they make sense there, and without what they must
not need; one that fails stops no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check.__main__ import CHECKS, main, run, table
from benchmarks.gpu_check.models import Place
from benchmarks.gpu_check.result import Found, LeftOut
from tests.tag_runs import ROOT

_BLOCKED = ("pyarrow", "datasets", "pandas", "trl", "vllm", "ray", "scipy", "sklearn")
_OF_A_GPU = {5, 6, 8, 13}
# 9 and 18 measure the machine, and 11 draws for long.
_RUN = sorted(set(CHECKS) - {9, 11, 18})


def test_checks_pass_on_a_cpu_with_few_packages(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({_BLOCKED!r}))\n"
        "from benchmarks.gpu_check.__main__ import main\n"
        "sys.exit(main(['--cpu', '--only', *sys.argv[1:]]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, _RUN)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    records = {each["check"]: each for each in map(json.loads, lines[: len(_RUN)])}
    assert list(records) == _RUN
    left_out = {number for number, each in records.items() if each["passed"] is None}
    assert left_out == _OF_A_GPU | {16}  # Embeddings are read with pyarrow.
    assert all(each["passed"] for number, each in records.items() if number not in left_out)
    assert "pyarrow" in records[16]["text"] and records[7]["numbers"]["bitwise"] is True
    assert lines[-1].startswith("| 17 | training in float32 under autocast | passed |")


def test_what_fails_or_takes_long_stops_no_other(tmp_path: Path) -> None:
    def broken(place: Place) -> Found:
        raise RuntimeError("CUDA error: misaligned address\nmore of it")

    def elsewhere(place: Place) -> Found:
        raise LeftOut("not here")

    checks = {
        1: ("breaks", broken),
        2: ("is for others", elsewhere),
        3: ("finds", lambda place: Found(False, "0.3 | 0.4", {"x": 0.3})),
        4: ("holds", lambda place: Found(True, "fine")),
    }
    place = Place(torch.device("cpu"), True, tmp_path)
    records = list(run(place, list(checks), checks=checks))
    assert [each["passed"] for each in records] == [False, None, False, True]
    assert records[0]["text"] == "RuntimeError: CUDA error: misaligned address"
    text = table(records, "GPU (NVIDIA H200)")
    assert text.startswith("GPU (NVIDIA H200), torch ") and "0.3 \\| 0.4" in text
    late = list(run(place, list(checks), checks=checks, seconds=-1))
    assert {each["passed"] for each in late} == {None} and "were over" in late[0]["text"]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no CUDA GPU" in said.err
