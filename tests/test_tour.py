"""The commands of docs/tour.md, one after the other, on a run of the tiny model."""

import re
from pathlib import Path

import pytest

from tests.tag_runs import ROOT, additions, run_curate, tag, write_jsonl
from tests.tour import commands

PAGE = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
NEEDED = {"filter", "order", "report", "card", "push"}


# Every item that is ever right is easy; some are; none is, so that no other has easy ones to be
# compared with. Between them every tag comes out, or does not, on any machine.
@pytest.mark.parametrize("tau", ["0.001", "0.05", "0.9"])
def test_the_tour_runs_from_the_first_command_to_the_last_whatever_the_tags(
    tau: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    never = {"question": "what is 9 + 9 ?", "answer": "123456789"}
    dataset = write_jsonl(tmp_path / "sums.jsonl", [*additions(20), never])
    ran = tag(
        *(dataset, "--model", tiny_model, "--run-dir", "runs/demo", "--out", "sums.tagged.jsonl"),
        *("--min-rollouts", "64", "--tau", tau),
    )
    assert ran.status == 0, ran.stderr
    found = commands(PAGE)
    assert {arguments[1] for arguments in found} == NEEDED
    for program, *arguments in found:
        assert program == "curate"
        ran = run_curate(*arguments)
        assert ran.status == 0, (arguments, ran.stderr)
        assert ran.stdout.strip()
    for name in ("chosen.jsonl", "dropped.jsonl", "now_and_then.jsonl", "train.jsonl", "README.md"):
        assert (tmp_path / "tour" / name).stat().st_size
    assert (tmp_path / "runs/demo/report.html").exists()


def test_every_command_of_the_tour_shows_what_it_printed() -> None:
    for block in PAGE.split("```console\n")[1:]:
        lines = block.split("```")[0].strip().splitlines()
        assert len(lines) > sum(line.startswith("$ ") for line in lines)


def test_the_tour_is_of_the_run_that_readme_shows() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for tag_name in ("easy", "learnable", "unlearnable", "no_positive", "undetermined"):
        (shown,) = re.findall(rf"^{tag_name} +(\d+) ", readme, re.MULTILINE)
        first = re.findall(rf"^{tag_name} +(\d+) ", PAGE, re.MULTILINE)[0]
        assert first == shown, tag_name
