"""Every benchmark imports, says what it does, and lies in a folder of one study."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from tests.tag_runs import ROOT

FOLDER = ROOT / "benchmarks"
MODULES = sorted(FOLDER.rglob("*.py"))
MOST_FILES = 18


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_every_benchmark_imports_and_those_that_are_run_answer_help(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if '__name__ == "__main__"' not in file.read_text(encoding="utf-8"):
        assert importlib.import_module(name_of(file).removesuffix(".__init__")).__doc__
        return
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    assert stopped.value.code in (0, None)
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {file.name}") and len(text.splitlines()) > 2


def test_every_folder_is_taken_in_at_a_glance() -> None:
    assert {file.name for file in FOLDER.glob("*.py")} == {"__init__.py"}
    for folder in FOLDER.iterdir():
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder
